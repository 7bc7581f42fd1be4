"""Cases in which contexts go from one rxe device to another, by order or because a path has failed."""

import json
import re
from contextlib import contextmanager

from cases import case
from cluster.errors import Failed
from cluster.jobs import OUTPUT, Job, heat_alone

HEAT = ["heat", "--size", "256x192", "--json", "--steps"]
# Between the guests a rank moves in one to two seconds, of which most is no blackout.
STEPS_BETWEEN, STEPS_WITHIN, STEPS_OF_FAILURE = "300", "1500", "400"
# What heat's lines of progress begin with.
PROGRESS = "progress"


@case
def relocate_between(c):
    """Ranks in both guests go to rxe1 and back in mid-run; the field is that of one process."""
    return heat_moves(c, (2, 2), ["rxe1", "rxe0"], STEPS_BETWEEN)


@case
def relocate_within(c):
    """The same with all ranks in one guest."""
    return heat_moves(c, (4, 0), ["rxe1", "rxe0"], STEPS_WITHIN)


@case
def relocate_to_soft(c):
    """Ranks in one guest go from rxe to soft and back."""
    return heat_moves(c, (3, 0), ["soft0", "rxe0"], STEPS_WITHIN)


@case
def relocate_to_nowhere(c):
    """An order to go to a device that is not there is refused by name; the run goes on."""
    # A rank that is asked for its pid, as an operator would look it up.
    program = f"sh -c 'echo pid $$; exec {heat_program(c, STEPS_BETWEEN)} --progress'"
    with Job(c, program, (1, 1), 120) as running:
        running.wait_for(f"{PROGRESS} 1[0-9][0-9] ", 60)
        refused = running.guests[0].start(order(c, "rxe7"), 60).wait()
        log = running.succeed()
    check_heat(c, log, STEPS_BETWEEN)
    expected = 'device "rxe7" not found; this machine has: rxe0, rxe1'
    if refused.status != 1 or expected not in refused.text:
        raise Failed(f"`{expected}` and status 1 expected, and not:\n{refused.text}")
    return f"{refused.text}\n{log}"


@case
def path_failure(c):
    """rxe0's link goes down in mid-run: all go on over rxe1 by themselves, to the same field."""
    program = f"{heat_program(c, STEPS_OF_FAILURE)} --progress"
    # What the ranks say to each other of their connections goes by the link that stays.
    with Job(c, program, (2, 2), 150, wire=1) as running, restored(running.guests[1], "eth0"):
        running.wait_for(f"{PROGRESS} 1[0-9][0-9] ", 60)
        running.guests[1].run("ip link set eth0 down")
        log = running.succeed()
    check_heat(c, log, STEPS_OF_FAILURE)
    return log


@contextmanager
def restored(guest, interface):
    """At the end the link is up as it was, and its device active."""
    try:
        yield
    finally:
        guest.run(f"ip link set {interface} up")
        device = interface.replace("eth", "rxe")
        state = f"/sys/class/infiniband/{device}/ports/1/state"
        guest.run(f"until grep -q ACTIVE {state}; do sleep 0.1; done")


def order(c, device):
    """Takes the rank that the first guest's job has told the pid of to a device."""
    pid = f"$(sed -n 's/^.*pid //p' {OUTPUT} | head -1)"
    return f"{c.programs.binary('sojourn')} relocate --pid {pid} {device}"


def heat_program(c, steps):
    """Heat as a rank is to run it."""
    return " ".join([c.programs.binary("sojourn"), *HEAT, steps])


def heat_moves(c, ranks, devices, steps):
    """Heat whose ranks all go to `devices` in turn."""
    program = f"{heat_program(c, steps)} --relocate {','.join(devices)}"
    with Job(c, program, ranks, 120) as running:
        log = running.succeed()
    check_heat(c, log, steps)
    froms = [devices[-1], *devices[:-1]]
    for rank in range(sum(ranks)):
        for old, new in zip(froms, devices):
            if not re.search(rf"rank {rank}: {old} to {new}, [1-9]", log):
                raise Failed(f"rank {rank} did not go from {old} to {new}:\n{log}")
    return log


def check_heat(c, log, steps):
    """The field is that of one process."""
    found = re.search(r"^\[0\] (\{.*\})$", log, re.MULTILINE)
    alone = heat_alone(c, [*HEAT, steps])["checksum"]
    if not found or json.loads(found.group(1))["checksum"] != alone:
        raise Failed(f"checksum {alone} expected:\n{log}")
