"""Two guests and the wires between them, from boot to end."""

import socket
import time
from collections import Counter

from . import image
from .errors import Failed, GuestDied
from .guest import Guest

# A boot takes about 6 s on an idle machine. Emulation on a busy one may take many times that.
BOOT_SECONDS = 120
# One boot in many panics under emulation before anything of ours runs; a second try may follow
# there, and nowhere else.
BOOT_TRIES = 2
# Two, so that a process has another device to go to.
WIRES = 2
# A guest that does not answer for so long is taken for dead.
ALIVE_SECONDS = 30


class Machines:
    """The two guests. Use it as a context manager: at the end nothing is left of them."""

    def __init__(self, kernel, logs, accelerator="tcg"):
        self.logs = logs
        self.version = None
        self.guests = []
        self._kernel = kernel
        self._image = None
        self._boots = Counter()
        self._accelerator = accelerator
        self._ramdisk = logs / "ramdisk"
        # Datagrams of one end arrive at the other: frames, one each.
        self._wires = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(WIRES)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for guest in self.guests:
            guest.power_off()
        for end in (end for wire in self._wires for end in wire):
            end.close()
        self._ramdisk.unlink(missing_ok=True)

    def boot(self):
        """Boots both guests at once; returns, when both answer, what kernel they run."""
        self._image, self.version = image.build(self._kernel, self._ramdisk)
        self.guests = [self._start(number) for number in (1, 2)]
        for number in (1, 2):
            self._wait_ready(number)
        return f"kernel {self.version}"

    def power_on(self, number):
        """Boots a guest that was powered off. Nothing is left of what ran in it."""
        self.guests[number - 1] = self._start(number)
        self._wait_ready(number)

    def _start(self, number):
        self._boots[number] += 1
        console = self.logs / f"guest{number}-boot{self._boots[number]}.console"
        wires = [wire[number - 1] for wire in self._wires]
        return Guest(number, self._image, self._ramdisk, wires, console, self._accelerator)

    def _wait_ready(self, number):
        for attempt in range(1, BOOT_TRIES + 1):
            guest = self.guests[number - 1]
            if guest.wait_ready(time.monotonic() + BOOT_SECONDS):
                return
            reason = guest.how_it_died()
            guest.power_off()
            if attempt == BOOT_TRIES:
                raise GuestDied(f"{guest.name} did not boot in {attempt} tries: {reason}")
            print(f"note: {guest.name} did not boot ({reason}); a second try", flush=True)
            self.guests[number - 1] = self._start(number)

    def examine(self, name):
        """After a failure: keeps the kernels' messages; returns whether both guests still answer."""
        alive = True
        for guest in self.guests:
            try:
                messages = guest.run("dmesg", ALIVE_SECONDS)
                (self.logs / f"{name}.{guest.name}.dmesg").write_text(messages)
            except Failed:
                alive = False
        return alive
