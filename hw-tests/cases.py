"""The cases that run on the cluster.

A case is a function that gets the cluster (`c.guests`, two of them; `c.programs`, what was just
built; `c.full`, the long form) and returns the log of what it did, or raises `Failed`. Its name on the command line and in the report is the function's with dashes.
"""

import re

from cluster import host
from cluster.errors import Failed

CASES = []


def case(function):
    """Adds a case; they run in the order of this file."""
    function.title = function.__name__.replace("_", "-")
    CASES.append(function)
    return function


@case
def layout_oracle(c):
    """The checked-in verbs ABI has the layouts of this system's headers."""
    return host.run([c.programs.oracle], 60)


@case
def rxe_active(c):
    """Both guests have an active rxe0, and reach each other."""
    log = []
    for guest, other in zip(c.guests, reversed(c.guests)):
        shown = guest.run("ibv_devinfo -v -d rxe0")
        if not re.search(r"state:\s+PORT_ACTIVE", shown):
            raise Failed(f"{guest.name}: rxe0 is not active:\n{shown}")
        log += [shown, guest.run(f"ping -c 1 -W 5 {other.address}")]
    return "\n".join(log)


@case
def hca_loopback(c):
    """The tests of a libibverbs device pass on rxe, and none is skipped."""
    program = c.programs.test("hca_loopback")
    log = c.guests[0].run(f"{program} --nocapture --test-threads 1", 120)
    if "skipped" in log:
        raise Failed(f"a test was skipped:\n{log}")
    return log


@case
def rc_pingpong(c):
    """The stock RC ping-pong runs between the guests."""
    return pair(c, "ibv_rc_pingpong -d rxe0 -g 1 -n 200")


@case
def ud_pingpong(c):
    """The stock UD ping-pong runs between the guests."""
    return pair(c, "ibv_ud_pingpong -d rxe0 -g 1 -n 200 -s 1024")


def pair(c, command, seconds=60):
    """Runs a client-server program that takes the server's address as its last argument."""
    one, two = c.guests
    server = one.start(command, seconds)
    wait_listening(one, 18515)
    client = two.start(f"{command} {one.address}", seconds)
    try:
        return f"{client.succeed()}\n{server.succeed()}"
    finally:
        server.kill()


def wait_listening(guest, port, seconds=30):
    """Waits until a server in the guest listens on a TCP port."""
    guest.run(f"until ss -Htln | grep -q ':{port} '; do sleep 0.1; done", seconds)
