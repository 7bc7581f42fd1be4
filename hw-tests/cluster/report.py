"""Running cases, and telling how they went."""

import signal
import time
import traceback

from .errors import Failed

TAIL_LINES = 25


class OutOfTime(BaseException):
    """The deadline of everything has passed. Not an Exception: no case may catch it."""


class Interrupted(BaseException):
    """Somebody asked us to end (SIGINT, SIGTERM, SIGHUP)."""


def watch_signals():
    """Turns the signals that end us into exceptions, so that everything is cleaned up."""

    def end(number, _frame):
        # A second signal must not cut the cleaning up short.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGALRM:
            raise OutOfTime
        raise Interrupted(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, end)


class Report:
    """Counts what passed and what failed, and keeps each case's log."""

    def __init__(self, logs):
        self.passed = 0
        self.failed = 0
        self.logs = logs

    def run(self, name, case):
        """Runs one case; returns whether it passed."""
        start = time.monotonic()
        try:
            log = case() or ""
        except Failed as failure:
            return self.fail(name, str(failure))
        except Exception:
            # A fault of the case itself is a failure of that case, and of no other.
            return self.fail(name, traceback.format_exc())
        except (OutOfTime, Interrupted):
            self.fail(name, "it was cut off here")
            raise
        seconds = time.monotonic() - start
        self.passed += 1
        print(f"ok {name} ({seconds:.1f} s)", flush=True)
        self._keep(name, log)
        return True

    def fail(self, name, log):
        """Counts and tells a failure; returns False."""
        self.failed += 1
        print(f"FAIL {name}", flush=True)
        for line in log.strip().splitlines()[-TAIL_LINES:]:
            print(f"    {line}", flush=True)
        self._keep(name, log)
        return False

    def _keep(self, name, log):
        safe = "".join(c if c.isalnum() or c in "-.@" else "_" for c in name)
        (self.logs / f"{safe}.log").write_text(log)
