"""The errors of the cluster, one class for each way in which a caller may react."""


class Unusable(Exception):
    """This machine can't run the tests; the message says what to do."""


class Failed(Exception):
    """A case failed; the message says why."""


class GuestDied(Failed):
    """A guest panicked, ended or stopped answering."""
