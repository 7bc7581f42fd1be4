"""Cases in which contexts go from one rxe device to another, by order or because a path has failed."""

import json
import re
from contextlib import contextmanager
from itertools import cycle, islice

from cases import case
from cluster.errors import Failed
from cluster.jobs import OUTPUT, Job, heat_alone

HEAT = ["heat", "--size", "256x192", "--json", "--steps"]
# Between the guests a rank moves in half a second to two, of which most is no blackout, and one after the other:
# the last of eight moves is to come in mid-run, however slow they are.
STEPS_BETWEEN, STEPS_WITHIN = "800", "1500"
# An order, or a failure, is to come in mid-run, however fast the machine is.
STEPS_OF_ORDER = STEPS_OF_FAILURE = "1200"
# The ping-pong is to last longer than three orders.
ROUNDS = 4000
# Of which the first come before it is connected.
MOST_ORDERS = 60
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
    program = f"sh -c 'echo pid $$; exec {heat_program(c, STEPS_OF_ORDER)} --progress'"
    with Job(c, program, (1, 1), 120) as running:
        running.wait_for(f"{PROGRESS} [1-9][0-9]", 60)
        refused = running.guests[0].start(order(c, "rxe7"), 60).wait()
        log = running.succeed()
    check_heat(c, log, STEPS_OF_ORDER)
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
        running.wait_for(f"{PROGRESS} [1-9][0-9]", 60)
        running.guests[1].run("ip link set eth0 down")
        log = running.succeed()
    check_heat(c, log, STEPS_OF_FAILURE)
    return log


@case
def witness_first(c):
    """Every message arrives once, in order, intact, while the first of two ranks moves 20 times."""
    return witness(c, "first", 20, RELIABLE)


@case
def witness_last(c):
    """The same while the last one does."""
    return witness(c, "last", 20, RELIABLE)


@case
def witness_all(c):
    """The same while both do, in each other's way."""
    return witness(c, "all", 12, RELIABLE)


@case
def witness_records(c):
    """The same where nobody looks at packet numbers, and peers record how far they have come."""
    return witness(c, "last", 8, RELIABLE, more="SOJOURN_EVIDENCE=record")


@case
def witness_unreliable(c):
    """Of what is unreliable each message arrives once at most, intact, while ranks move."""
    # Of one packet each: rxe waits for ever for the rest of a message over UC that has lost one.
    return "\n".join(witness(c, "all", 4, mix, 1024) for mix in ("uc-send,uc-write", "ud-send"))


# Without atomics and READs: on plain rxe of 6.1, without any move, those stall beside SENDs (6 of 6 runs on
# raw queue pairs, both ends at RTS, no packet on its way, the requester's next ones never sent), and
# these stall, or break the connection, where the machine is so slow that packets are sent again.
RELIABLE = "send,send-imm,write,write-imm"


def witness(c, who, moves, mix, largest=8192, more=""):
    """The witness between the guests; each of `who` makes so many moves; with more variables."""
    # One queue pair: more would share receives, and those who do cannot follow to rxe1 alone.
    options = f"--qps 1 --max-size {largest} --messages 200 --pause-ms 50 --mix {mix} --json"
    devices = f"--moves {moves} --who {who} --devices rxe1,rxe0"
    program = f"{c.programs.binary('witness')} {options} {devices}"
    # What is found wrong is found long after it went wrong.
    with Job(c, program, (1, 1), 120, env=f"SOJOURN_LOG=debug {more}") as running:
        log = running.succeed()
    found = re.search(r"^\[0\] (\{.*\})$", log, re.MULTILINE)
    made = len(json.loads(found.group(1))["moves"]) if found else 0
    if made != moves * (2 if who == "all" else 1):
        raise Failed(f"{made} moves were made:\n{log}")
    return log


@case
def preload_relocated(c):
    """The stock RC ping-pong goes to rxe1 and back in mid-run, by order, and notices nothing."""
    library = c.programs.binary("libsojourn_preload.so")
    command = f"ibv_rc_pingpong -c -n {ROUNDS}"
    server, client = c.guests
    script = (
        f"export LD_PRELOAD={library}; [ $SOJOURN_RANK = 0 ] && echo pid $$ && exec {command}; "
        f"for _ in $(seq 100); do {command} {server.address} && exit 0; sleep 0.2; done; exit 1"
    )
    moves = []
    with Job(c, f"sh -c '{script}'", (1, 1), 120) as running:
        running.wait_for("pid", 60)
        # Before it is connected it moves alone; that it is it tells only as it ends.
        for device in islice(cycle(["rxe1", "rxe0"]), MOST_ORDERS):
            moves.append(server.run(order(c, device)))
            if sum(" 1 peers" in move for move in moves) == 3:
                break
        else:
            raise Failed(f"no three moves with a peer:\n{''.join(moves)}")
        log = running.succeed()
    if log.count(" iters in ") != 2 or "invalid data" in log:
        raise Failed(f"no result of each rank in:\n{log}")
    return "".join(moves) + log


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
    # Slow as they are, the last moves may come when the computation is over, and find no queue pair.
    for rank in range(sum(ranks)):
        moves = re.findall(rf"rank {rank}: (\S+) to (\S+), (\d+) queue pairs", log)
        ways = [move[:2] for move in moves]
        if ways != list(zip([devices[-1], *devices], devices)) or moves[0][2] == "0":
            raise Failed(f"rank {rank} made the moves {moves}:\n{log}")
    return log


def check_heat(c, log, steps):
    """The field is that of one process."""
    found = re.search(r"^\[0\] (\{.*\})$", log, re.MULTILINE)
    alone = heat_alone(c, [*HEAT, steps])["checksum"]
    if not found or json.loads(found.group(1))["checksum"] != alone:
        raise Failed(f"checksum {alone} expected:\n{log}")
