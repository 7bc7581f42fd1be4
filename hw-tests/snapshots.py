"""Cases in which ranks keep epochs in a guest's memory, and go back to them when a machine or a rank is gone."""

import json
import re
from contextlib import contextmanager

from cases import case
from cluster.errors import Failed
from cluster.jobs import OUTPUT, Job, heat_alone, share_key, wait_listening

STORE_PORT = 7400
STORE_KEY = "/run/store-key"
# Of a plate that a wire of some MB/s carries in a fraction of a second.
HEAT = ["heat", "--size", "128x128", "--json", "--recover", "--steps"]
# So many that there are some epochs before the last step, and some steps left when there are.
STEPS = "1500"
EPOCH_SECONDS = 0.5
# A later one than that has overwritten a slot.
EPOCHS = 3

# Of those between processes; the others kill somebody at each step in turn, which takes minutes here.
EPOCHS_TESTS = [
    "inbound::what_devices_write_between_epochs_is_in_the_next_though_no_tracker_sees_it",
    "lives::a_killed_process_goes_on_from_memory_and_windows_in_a_store_as_if_nothing_had_happened",
    "torn::what_a_peer_writes_at_full_speed_is_of_one_moment_in_every_epoch",
    "an_epoch_is_restored_bit_for_bit_in_another_life_and_goes_on_from_there",
    "deaths::a_store_that_dies_in_mid_epoch_is_replaced_in_that_epoch",
    "deaths::memory_that_is_restored_lazily_survives_the_store_that_it_is_read_from",
    "refusals::an_older_life_is_told_that_a_newer_one_writes",
    "refusals::memory_that_is_not_that_of_the_snapshot_is_refused_area_by_area_and_the_epoch_stays",
]


@case
def epochs_power_off(c):
    """A guest is powered off in mid-run; the other goes on from the last epoch, which it holds in its memory."""
    writer, keeper = c.guests
    share_key(c.guests, STORE_KEY)
    with stores(c, [keeper]) as env:
        try:
            with Job(c, program(c), (2, 0), 90, env=env) as running:
                running.wait_for(committed(EPOCHS), 60)
                writer.power_off()
            # As on a third machine: a rank keeps nothing in the memory of its own.
            with Job(c, program(c), (0, 2), 90, env=f"{env} SOJOURN_NODE=spare") as again:
                log = again.succeed()
        finally:
            if not writer.is_alive():
                c.machines.power_on(1)
    check_field(c, log)
    check_back(log, ranks=2)
    return log


@case
def epochs_killed_rank(c):
    """A rank is killed; its successor and the other rank go back to an epoch, each in the other guest's memory."""
    share_key(c.guests, STORE_KEY)
    with stores(c, c.guests) as env, Job(c, program(c), (1, 1), 120, env=env, restarts=1) as running:
        running.wait_for(committed(EPOCHS), 60)
        running.guests[1].run(f"kill -9 $(sed -n 's/^.*pid //p' {OUTPUT} | head -1)")
        log = running.succeed()
    check_field(c, log)
    check_back(log, ranks=2)
    if "rank 1 ended by signal 9 (SIGKILL); starting it anew" not in log:
        raise Failed(f"rank 1 was not killed:\n{log}")
    return log


@case
def epochs_one_guest(c):
    """Epochs of processes and stores in one guest, over rxe: restored bit for bit, whoever dies."""
    program = c.programs.test("epochs")
    # It starts programs of its own by their paths on the host.
    link = "top=$(echo {0} | cut -d/ -f3); [ -e /$top ] || ln -s /host/$top /$top"
    tests = " ".join(EPOCHS_TESTS)
    command = f"SOJOURN_TEST_DEVICE=rxe0 {program} --exact --nocapture --test-threads 1 {tests}"
    log = c.guests[0].run(f"{link.format(program)}; {command}", 120)
    if "skipped" in log or f" {len(EPOCHS_TESTS)} passed" not in log:
        raise Failed(f"not all of {tests} ran:\n{log}")
    return log


@contextmanager
def stores(c, guests):
    """A store in each of the guests; the variables that tell a job of them."""
    running = []
    try:
        named = []
        for guest in guests:
            at = f"tcp:{guest.address}:{STORE_PORT}"
            options = f"--name {guest.name} --listen {at} --key-file {STORE_KEY}"
            command = f"{c.programs.binary('sojourn')} store {options} --device rxe0 --bytes 64M"
            running.append(guest.start(f"SOJOURN_LOG=debug {command}", 600))
            named.append(f"{guest.name}={at}")
        for guest in guests:
            wait_listening(guest, STORE_PORT)
        variables = {
            "SOJOURN_STORES": ",".join(named),
            "SOJOURN_STORE_KEY_FILE": STORE_KEY,
            "SOJOURN_EPOCH_SECONDS": EPOCH_SECONDS,
            "SOJOURN_LOG": "info,sojourn=debug",
        }
        yield " ".join(f"{name}={value}" for name, value in variables.items())
    finally:
        for each in running:
            each.kill()


def program(c):
    """Heat as a rank is to run it, which tells its pid first."""
    return f"sh -c 'echo pid $$; exec {' '.join([c.programs.binary('sojourn'), *HEAT, STEPS])}'"


def committed(epoch):
    """What a rank's log says once it has that epoch."""
    return f"epoch {epoch} .*is committed"


def check_field(c, log):
    """The field is that of one process that nothing has happened to."""
    found = re.search(r"^\[0\] (\{.*\})$", log, re.MULTILINE)
    alone = heat_alone(c, [*HEAT, STEPS])["checksum"]
    if not found or json.loads(found.group(1))["checksum"] != alone:
        raise Failed(f"checksum {alone} expected:\n{log}")


def check_back(log, ranks):
    """All ranks went back to one step, which is not the first, and to an epoch that had been waited for."""
    back = re.findall(r"rank (\d+) is back at step (\d+) \(epoch (\d+)\)", log)
    places = {(int(step), int(epoch)) for _, step, epoch in back}
    if {rank for rank, *_ in back} != {str(rank) for rank in range(ranks)} or len(places) != 1:
        raise Failed(f"all ranks were to go back to one step, and not {back}:\n{log}")
    ((step, epoch),) = places
    if step == 0 or epoch < EPOCHS:
        raise Failed(f"back at step {step} of epoch {epoch}, where {EPOCHS} were committed:\n{log}")
