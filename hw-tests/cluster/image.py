"""The initial ramdisk of a guest: busybox, the modules that it loads in their order, two scripts.

It is the guest's root for good. The host's root is mounted in it at /host, and its /usr, /etc
and the like are links into that: a guest runs the host's programs by their own paths.
"""

import lzma
import re
from pathlib import Path

from .errors import Unusable

# In the order of loading: the first are the way to the host, crc32_generic comes before
# rdma_rxe because rxe looks its checksum up by that name when a device is added.
MODULES = [
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "9pnet_virtio",
    "9p",
    "crc32_generic",
    "ib_uverbs",
    "rdma_ucm",
    "rdma_rxe",
]
MOUNT_POINTS = ["dev", "host", "modules", "proc", "run", "sys", "tmp"]
HOST_LINKS = ["bin", "etc", "home", "lib", "lib64", "opt", "root", "sbin", "usr", "var"]

DIRECTORY, FILE, LINK = 0o040755, 0o100755, 0o120777


def build(kernel, target):
    """Writes the ramdisk for an unpacked kernel; returns the kernel's own path and version."""
    images = list(kernel.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise Unusable(f"{kernel} holds {len(images)} kernels in place of one; remove it")
    version = images[0].name.removeprefix("vmlinuz-")
    here = Path(__file__).parent
    entries = [(name, DIRECTORY, b"") for name in MOUNT_POINTS]
    entries += [(name, LINK, f"host/{name}".encode()) for name in HOST_LINKS]
    entries.append(("busybox", FILE, Path("/usr/bin/busybox").resolve().read_bytes()))
    entries.append(("init", FILE, (here / "init.sh").read_bytes()))
    entries.append(("agent", FILE, (here / "agent.sh").read_bytes()))
    # Debian 13 moved the modules to /usr.
    homes = [kernel / parent / "modules" / version for parent in ("usr/lib", "lib")]
    home = next((path for path in homes if path.is_dir()), None)
    if not home:
        raise Unusable(f"{kernel} holds no modules of {version}; remove it")
    for position, (name, content) in enumerate(_modules(home)):
        entries.append((f"modules/{position:02}-{name}.ko", FILE, content))
    target.write_bytes(_archive(entries))
    return images[0], version


def _modules(folder):
    """Pairs of a name and the content of a module, each after those that it depends on."""
    paths = {}
    for path in folder.rglob("*.ko*"):
        paths[path.name.split(".")[0].replace("-", "_")] = path
    builtin_list = folder / "modules.builtin"
    builtin = {Path(line).stem.replace("-", "_") for line in builtin_list.read_text().split()}
    ordered = {}

    def add(name):
        if name in ordered or name in builtin:
            return
        if name not in paths:
            raise Unusable(f"the kernel in {folder} has no module {name}")
        content = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            content = lzma.decompress(content)
        found = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in filter(None, found.group(1).decode().split(",") if found else []):
            add(needed.replace("-", "_"))
        ordered[name] = content

    for name in MODULES:
        add(name)
    return ordered.items()


def _archive(entries):
    """A cpio archive in the `newc` format, the one that the kernel unpacks."""
    parts = []
    for inode, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        path = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device and rdev (2 each), name size, check
        fields = [inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0]
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += [_padded(header + path), _padded(content)]
    return b"".join(parts)


def _padded(data):
    return data + bytes(-len(data) % 4)
