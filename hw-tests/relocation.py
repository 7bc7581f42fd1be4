"""Cases in which contexts go from one rxe device to another, by order or because a path has failed."""

import json
import re

from cases import case
from cluster.errors import Failed
from cluster.jobs import Job, heat_alone

HEAT = ["heat", "--size", "256x192", "--steps", "300", "--json"]


@case
def relocate_between(c):
    """Ranks in both guests go to rxe1 and back in mid-run; the field is that of one process."""
    return heat_moves(c, (2, 2), ["rxe1", "rxe0"])


@case
def relocate_within(c):
    """The same with all ranks in one guest."""
    return heat_moves(c, (4, 0), ["rxe1", "rxe0"])


@case
def relocate_to_soft(c):
    """Ranks in one guest go from rxe to soft and back."""
    return heat_moves(c, (3, 0), ["soft0", "rxe0"])


def heat_moves(c, ranks, devices):
    """Heat whose ranks all go to `devices` in turn."""
    program = " ".join([c.programs.binary("sojourn"), *HEAT, "--relocate", ",".join(devices)])
    with Job(c, program, ranks, 120) as running:
        log = running.succeed()
    check_heat(c, log, HEAT)
    froms = [devices[-1], *devices[:-1]]
    for rank in range(sum(ranks)):
        for old, new in zip(froms, devices):
            if not re.search(rf"rank {rank}: {old} to {new}, [1-9]", log):
                raise Failed(f"rank {rank} did not go from {old} to {new}:\n{log}")
    return log


def check_heat(c, log, problem):
    """The field is that of one process."""
    found = re.search(r"^\[0\] (\{.*\})$", log, re.MULTILINE)
    alone = heat_alone(c, problem)["checksum"]
    if not found or json.loads(found.group(1))["checksum"] != alone:
        raise Failed(f"checksum {alone} expected:\n{log}")
