"""One virtual machine, and commands that run in it.

The host talks to the guest's agent (agent.sh) over a socket pair that QEMU inherits: there is
no socket in the file system, and nothing to connect to. QEMU ends when the thread that started
it does, however that happens.
"""

import base64
import itertools
import socket
import subprocess
import threading
import time
from dataclasses import dataclass

from .errors import Failed, GuestDied

MEMORY_MIB = 1024
CPUS = 2
# Room for the largest of RDMA's path MTUs, 4096, and rxe's headers.
LINK_MTU = 4200
# The first wire is 10.77.0.0/24, the next 10.78.0.0/24.
FIRST_SUBNET = 77
# A guest that is alive answers the killing of a command within this time.
KILL_SECONDS = 20
# A reply holds at most 1 MiB of output.
MAX_REPLY = 2 << 20


@dataclass
class Output:
    """What a command in a guest wrote (both streams), its exit status, and what it left."""

    text: str
    status: int
    leftovers: int


class Command:
    """A command that is running in a guest."""

    def __init__(self, guest, script, seconds):
        self.guest = guest
        self.script = script
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.name = None
        self.ended = threading.Event()
        self.output = None

    def wait(self):
        """The output, once the command has ended; past its deadline it is killed and failed."""
        late = not self._ended_by(self.deadline)
        if late:
            self.kill()
        if self.output is None:
            raise GuestDied(f"{self.guest.name}: {self.guest.how_it_died()}")
        if late:
            raise Failed(
                f"{self.guest.name}: `{self.script}` did not end within {self.seconds:.0f} s; "
                f"it wrote:\n{self.output.text}"
            )
        return self.output

    def succeed(self):
        """The text that the command wrote, once it has ended with status 0 and left nothing."""
        output = self.wait()
        if output.status != 0:
            raise Failed(
                f"{self.guest.name}: `{self.script}` ended with status {output.status}; "
                f"it wrote:\n{output.text}"
            )
        if output.leftovers:
            raise Failed(
                f"{self.guest.name}: `{self.script}` left {output.leftovers} processes behind"
            )
        return output.text

    def kill(self):
        """Ends the command and all that it has started, and waits until it has ended."""
        # It has ended with its guest, too.
        if not self.ended.is_set() and self.guest.is_alive():
            self.guest.send(f"echo 1 >/sys/fs/cgroup/{self.name}/cgroup.kill")
            self._ended_by(time.monotonic() + KILL_SECONDS)

    def _ended_by(self, deadline):
        while time.monotonic() < deadline and self.guest.is_alive():
            # The process is looked at every now and then: a guest that dies answers nothing.
            if self.ended.wait(min(1.0, max(0.0, deadline - time.monotonic()))):
                return True
        return self.ended.is_set()


class Guest:
    """A virtual machine from its start to its end.

    It has an interface and an rxe device for each wire: eth0 and rxe0 on the first, and so on. Each
    wire is a subnet of its own, so rxe1 of one guest reaches rxe1 of the other, and no rxe0.
    """

    def __init__(self, number, kernel, ramdisk, wires, console, accelerator):
        self.name = f"guest{number}"
        # One on each wire.
        self.addresses = [f"10.{FIRST_SUBNET + wire}.0.{number}" for wire in range(len(wires))]
        self.address = self.addresses[0]
        self.console = console
        self.kernel = None
        self._names = itertools.count(1)
        self._running = {}
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._channel, agent_end = socket.socketpair()
        addresses = ",".join(self.addresses)
        settings = {"name": self.name, "addresses": addresses, "mtu": LINK_MTU}
        words = ["console=ttyS0", "quiet", "panic=-1", "mitigations=off"]
        words += [f"sojourn.{name}={value}" for name, value in settings.items()]
        command = [
            *["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"],
            *["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
            *["-machine", "pc", "-accel", accelerator, "-cpu", "max"],
            *["-smp", str(CPUS), "-m", str(MEMORY_MIB)],
            *["-kernel", str(kernel), "-initrd", str(ramdisk), "-append", " ".join(words)],
            *["-serial", f"file:{console}"],
            # The host's root, for reading only; several file systems of the host may be in it.
            "-virtfs",
            "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            *["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"],
            *["-chardev", f"socket,id=agent,fd={agent_end.fileno()}"],
            *["-device", "virtserialport,chardev=agent,name=agent"],
        ]
        # The kernel numbers interfaces in the order of these.
        for place, wire in enumerate(wires):
            mac = f"52:54:00:77:{place:02x}:{number:02x}"
            command += ["-netdev", f"dgram,id=wire{place},local.type=fd,local.str={wire.fileno()}"]
            command += ["-device", f"virtio-net-pci,netdev=wire{place},mac={mac},romfile="]
        # Its own process group: a Ctrl-C is for the tests, which then end it in order.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=console.with_suffix(".qemu").open("w"),
            pass_fds=[agent_end.fileno(), *(wire.fileno() for wire in wires)],
            process_group=0,
        )
        agent_end.close()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_ready(self, deadline):
        """Whether the agent has answered before `deadline`."""
        while time.monotonic() < deadline and self.is_alive():
            if self._ready.wait(0.2):
                return True
        return False

    def start(self, script, seconds=60):
        """Starts a shell script in the guest, to end within `seconds`."""
        command = Command(self, script, seconds)
        self.send(script, command)
        return command

    def run(self, script, seconds=60):
        """Runs a shell script in the guest; returns what it wrote, and fails if it does."""
        return self.start(script, seconds).succeed()

    def send(self, script, command=None):
        """Hands the agent a script; its reply goes to `command`, or nowhere."""
        with self._lock:
            name = str(next(self._names))
            if command:
                command.name = name
                self._running[name] = command
            try:
                word = base64.b64encode(script.encode()).decode()
                self._channel.sendall(f"{name} {word}\n".encode())
            except OSError:
                raise GuestDied(f"{self.name}: {self.how_it_died()}") from None

    def is_alive(self):
        """Whether the virtual machine still runs."""
        return self.process.poll() is None

    def how_it_died(self):
        """One sentence on why nothing more comes from this guest."""
        log = self.console.read_text(errors="replace") if self.console.exists() else ""
        panic = [line for line in log.splitlines() if "Kernel panic" in line]
        if panic:
            return panic[0]
        if self.is_alive():
            return "the guest no longer answers"
        errors = self.console.with_suffix(".qemu").read_text(errors="replace").strip()
        return f"QEMU ended with status {self.process.returncode} {errors}".strip()

    def power_off(self):
        """Ends the virtual machine as a power cut does: nothing in it is told."""
        if self.is_alive():
            self.process.kill()
        self.process.wait()
        self._channel.close()

    def _listen(self):
        try:
            with self._channel.makefile("rb") as replies:
                while line := replies.readline(MAX_REPLY):
                    name, status, leftovers, *rest = line.decode("ascii").split()
                    text = base64.b64decode(rest[0]).decode(errors="replace") if rest else ""
                    if name == "ready":
                        self.kernel = text.strip()
                        self._ready.set()
                        continue
                    with self._lock:
                        command = self._running.pop(name, None)
                    if command:
                        command.output = Output(text, int(status), int(leftovers))
                        command.ended.set()
        except (OSError, ValueError):
            # The guest is gone, or writes nonsense as it dies: the waiting side finds out.
            pass
