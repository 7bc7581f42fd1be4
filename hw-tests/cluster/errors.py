"""The errors of the cluster, one class for each way in which a caller may react."""


class Failed(Exception):
    """A case failed; the message says why."""


class Unusable(Failed):
    """This machine can't do what was asked of it; the message says why, or what to do."""


class GuestDied(Failed):
    """A guest panicked, ended or stopped answering."""
