"""Jobs of `sojourn run` in the guests, while they run and when they have ended."""

import json
import secrets
import time

from . import host
from .errors import Failed

# Where the directory of a job listens, in the first guest.
JOB_PORT = 7000
# Between two looks at what a job has come to.
LOOK_SECONDS = 0.3
# Within which a job has ended everywhere once it has ended badly somewhere.
OTHERS_SECONDS = 15


class Job:
    """A job that is running: use it as a context manager, at whose end nothing is left of it.

    `ranks` of it are in each guest; one that has none need not run. What it writes can be looked at
    while it runs. Its ranks talk about their connections over `wire`. In each guest so many `restarts`
    may follow the death of a rank.
    """

    def __init__(self, c, program, ranks, seconds, device="rxe0", env="", wire=0, restarts=0):
        places = [(guest, count) for guest, count in zip(c.guests, ranks) if count]
        self.guests = share_key([guest for guest, _ in places])
        sojourn = f"{env} {c.programs.binary('sojourn')} run -n {sum(ranks)}".strip()
        sojourn += f" --restarts {restarts}" if restarts else ""
        common = f"--device {device} --key-file /run/key --timeout {seconds} -- {program}"
        at = f"{self.guests[0].addresses[wire]}:{JOB_PORT}"
        self.parts = []
        first = 0
        for guest, count in places:
            way = f"--join {at}" if self.parts else f"--listen {at}"
            which = f"--ranks {first}-{first + count - 1}"
            script = f"{sojourn} {which} {way} {common} >{OUTPUT} 2>&1; s=$?; cat {OUTPUT}; exit $s"
            self.parts.append(guest.start(script, seconds + 20))
            first += count
            if len(self.parts) == 1:
                self._wait_listening()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for part in self.parts:
            part.kill()

    def _wait_listening(self):
        try:
            wait_listening(self.guests[0], JOB_PORT)
        except Failed:
            # One that has ended says more than that nobody listens.
            if self.parts[0].ended.is_set():
                raise Failed(f"the job ended at once: {self.parts[0].wait().text}") from None
            self.parts[0].kill()
            raise

    def wait_for(self, pattern, seconds, guest=0):
        """Waits until the ranks in a guest have written a line that matches `pattern` (grep -E)."""
        command = f"until grep -Eq '{pattern}' {OUTPUT}; do sleep {LOOK_SECONDS}; done"
        part = self.parts[guest]
        waiting = self.guests[guest].start(command, seconds)
        while not waiting.ended.wait(LOOK_SECONDS):
            if part.ended.is_set() or time.monotonic() > waiting.deadline:
                waiting.kill()
                raise Failed(f"no `{pattern}` came, but: {part.wait().text}")

    def succeed(self):
        """What all ranks wrote, once all have ended well."""
        try:
            return "\n".join(part.succeed() for part in self.parts)
        except Failed as reason:
            # What the others wrote may say why; they end by themselves once one is gone.
            others = [part for part in self.parts if part.ended.wait(OTHERS_SECONDS)]
            texts = "\n".join(part.output.text for part in others if part.output)
            raise Failed(f"{reason}\nin all guests:\n{texts}") from None


# What the ranks in a guest write, in that guest.
OUTPUT = "/run/job.out"


def job(c, program, size, seconds):
    """Runs a program as a job over both guests, half of the ranks in each."""
    with Job(c, program, (size // 2, size - size // 2), seconds) as running:
        return running.succeed()


def heat_alone(c, problem):
    """What one rank reports. It uses no device, and computes on the host, which is faster."""
    return json.loads(host.run([c.programs.folder / "sojourn", *problem], 120))


def share_key(guests, file="/run/key"):
    """Gives all of the guests a fresh key, and returns them."""
    key = secrets.token_hex(32)
    for guest in guests:
        guest.run(f"umask 077; rm -f {file}; echo {key} >{file}")
    return guests


def wait_listening(guest, port, seconds=30):
    """Waits until a server in the guest listens on a TCP port."""
    guest.run(f"until ss -Htln | grep -q ':{port} '; do sleep 0.1; done", seconds)
