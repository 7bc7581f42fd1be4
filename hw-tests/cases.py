"""The cases that run on the cluster.

A case is a function that gets the cluster (`c.guests`, two of them; `c.machines`, to boot one anew;
`c.programs`, what was just built; `c.full`, the long form) and returns the log of what it did, or raises `Failed`. Its name on the command line and in the report is the function's with dashes.
"""

import json
import re

from cluster import host
from cluster.errors import Failed
from cluster.jobs import JOB_PORT, heat_alone, job, share_key, wait_listening

CASES = []

# Fewer cases than this is no conformance suite; what rxe lacks is a handful.
MIN_CONFORMING = 100
# Of 2 MiB: two memories of 6 MiB, and one to spare.
TRACKING_HUGE_PAGES = 8


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
def dirty_tracking(c):
    """Each back end tells every change but what rxe writes, which virtual verbs tell."""
    guest = c.guests[0]
    release = guest.run("uname -r")
    version = tuple(int(part) for part in re.match(r"(\d+)\.(\d+)", release).groups())
    expected = ["soft-dirty", "protect"] + (["scan"] if version >= (6, 7) else [])
    # Explicit huge pages; what the guest boots with is none.
    guest.run(f"echo {TRACKING_HUGE_PAGES} > /proc/sys/vm/nr_hugepages")
    variable = f"SOJOURN_TEST_DEVICE=rxe0 SOJOURN_EXPECT_TRACKING={','.join(expected)}"
    program = c.programs.test("tracking")
    log = guest.run(f"{variable} {program} --nocapture --test-threads 1", 300)
    guest.run("echo 0 > /proc/sys/vm/nr_hugepages")
    if "skipped" in log:
        raise Failed(f"a test was skipped:\n{log}")
    return release + log


@case
def device_writes(c):
    """Every byte that rxe writes, whatever two processes do to each other, is in what virtual verbs report as written."""
    test = "virt::core::tests::written::oracle::every_changed_byte_is_reported_over_a_nic"
    program = c.programs.test("sojourn_fabric")
    log = c.guests[0].run(f"SOJOURN_TEST_DEVICE=rxe0 {program} --exact --nocapture {test}", 120)
    if "skipped" in log or " 1 passed" not in log:
        raise Failed(f"{test} did not run:\n{log}")
    return log


@case
def devices(c):
    """`sojourn devices` lists rxe0 as what it is."""
    text = c.guests[0].run(f"{c.programs.binary('sojourn')} devices --json")
    found = [device for device in json.loads(text) if device["name"] == "rxe0"]
    if not found or found[0]["kind"] != "hca":
        raise Failed(f"no rxe0 of kind hca among:\n{text}")
    return text


@case
def conformance(c):
    """Every conformance case passes on rxe, raw and virtual, or says why it does not apply."""
    sojourn = c.programs.binary("sojourn")
    return conforming(c.guests[0].run(f"{sojourn} selftest --device rxe0", 240))


@case
def conformance_between(c):
    """The same with one side of each case in either guest."""
    one, two = share_key(c.guests)
    sojourn = f"{c.programs.binary('sojourn')} selftest --device rxe0 --key-file /run/key"
    at = f"{one.address}:{JOB_PORT}"
    listening = one.start(f"{sojourn} --listen {at}", 240)
    try:
        wait_listening(one, JOB_PORT)
        log = conforming(two.run(f"{sojourn} --connect {at}", 240))
        return f"{log}\n{listening.succeed()}"
    finally:
        listening.kill()


def conforming(log):
    """Both layers ran, whole, nothing failed, and the packet number is live."""
    lines = log.splitlines()
    for layer in ["raw", "virtual"]:
        passed = [line for line in lines if line.startswith(f"ok {layer}/")]
        if len(passed) < MIN_CONFORMING:
            raise Failed(f"only {len(passed)} cases passed as {layer}:\n{log}")
    if not re.fullmatch(r"\d+ passed, 0 failed, \d+ not applicable", lines[-1]):
        raise Failed(f"not all passed:\n{log}")
    if not lines[-2].startswith("packet number: live"):
        raise Failed(f"rxe's packet number is live, and was not found to be:\n{log}")
    return log


@case
def rc_pingpong(c):
    """The stock RC ping-pong runs between the guests."""
    return pair(c, "ibv_rc_pingpong -d rxe0 -g 1 -n 200")


@case
def ud_pingpong(c):
    """The stock UD ping-pong runs between the guests."""
    return pair(c, "ibv_ud_pingpong -d rxe0 -g 1 -n 200 -s 1024")


@case
def preload_looks(c):
    """Under the preload the stock tools see rxe0 and its GIDs, outside a job."""
    preload = f"LD_PRELOAD={c.programs.binary('libsojourn_preload.so')}"
    listed = c.guests[0].run(f"{preload} ibv_devices")
    shown = c.guests[0].run(f"{preload} SOJOURN_DEVICE=rxe0 ibv_devinfo -v")
    if not re.search(r"rxe0.*\n(.*\n)*.*soft0", listed) or "RoCE v2" not in shown:
        raise Failed(f"not all is there:\n{listed}\n{shown}")
    return f"{listed}\n{shown}"


@case
def preload_pingpong(c):
    """The stock RC ping-pong runs between the guests over virtual verbs, by LIDs that rxe lacks."""
    library = c.programs.binary("libsojourn_preload.so")
    log = []
    for options in ("-n 200 -c", "-n 100 -e -s 65536"):
        command = f"ibv_rc_pingpong {options}"
        # Each rank is in a guest of its own, so the client tries until the server listens.
        script = (
            f"export LD_PRELOAD={library}; [ $SOJOURN_RANK = 0 ] && exec {command}; "
            f"for _ in $(seq 100); do {command} {c.guests[0].address} && exit 0; sleep 0.2; done; "
            "exit 1"
        )
        log.append(job(c, f"sh -c '{script}'", 2, 120))
        for expected in ("local address:  LID 0x0001", "local address:  LID 0x0002"):
            if expected not in log[-1] or log[-1].count(" iters in ") != 2:
                raise Failed(f"no `{expected}`, or no result of each rank, in:\n{log[-1]}")
    return "\n".join(log)


@case
def heat(c):
    """Heat on 4 ranks, 2 in each guest, computes the field that one process computes."""
    problem = ["heat", "--size", "256x192", "--steps", "300", "--json"]
    alone = heat_alone(c, problem)
    log = []
    for how in [[], ["--raw"]] if c.full else [[]]:
        program = " ".join([c.programs.binary("sojourn"), *problem, *how])
        log.append(job(c, program, 4, 180))
        report = json.loads(re.search(r"^\[0\] (\{.*\})$", log[-1], re.MULTILINE).group(1))
        expected = (4, "rxe0", bool(how), alone["steps"], alone["checksum"])
        fields = ("ranks", "device", "raw", "steps", "checksum")
        if tuple(report[name] for name in fields) != expected:
            raise Failed(f"{expected} expected for {fields}; 4 ranks reported:\n{log[-1]}")
    return "\n".join(log)


@case
def pagerank(c):
    """PageRank on timely, over byte streams between the guests, ranks as one process does."""
    problem = ["--graph", "dpkg", "--iterations", "10"]
    alone = host.run([c.programs.folder / "pagerank", *problem], 120)
    checksum = re.search(r"^checksum: .*$", alone, re.MULTILINE).group()
    program = " ".join([c.programs.binary("pagerank"), *problem, "--check"])
    log = job(c, program, 4 if c.full else 2, 120)
    for expected in ("over verbs (rxe0)", checksum, "check: ok"):
        if expected not in log:
            raise Failed(f"no `{expected}` in:\n{log}")
    return log


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
