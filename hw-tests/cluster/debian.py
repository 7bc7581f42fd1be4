"""What comes from Debian: packages on this machine, and kernels unpacked into the cache.

A kernel is only ever unpacked, never installed: this machine boots what it booted before.
Another suite than this machine's is read through a package list of our own, inside the cache.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import Unusable
from .host import run

# What the guests are made of, and what runs in them.
CLUSTER_PACKAGES = [
    "busybox-static",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "perftest",
    "qemu-system-x86",
    "rdma-core",
    "util-linux",
]
# What rdma-sys, the layout oracle, is generated from.
ORACLE_PACKAGES = ["gcc", "libclang-dev", "libibverbs-dev", "librdmacm-dev", "pkg-config"]

# Where kernels come from: this machine's own package sources, or a line for a list of our own.
# trixie's is a later 6.12 than that of bookworm-backports, whose rxe (before 6.12.111) completes
# all receives with success when a QP goes to ERR while it receives a SEND.
_SIGNED = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
KERNELS = {
    "bookworm": None,
    "trixie": f"{_SIGNED} http://deb.debian.org/debian trixie main\n",
    "backports": f"{_SIGNED} http://deb.debian.org/debian bookworm-backports main\n",
}
DOWNLOAD_SECONDS = 600


def install(packages):
    """Installs those of `packages` that are missing."""
    if not shutil.which("dpkg-query") or not shutil.which("apt-get"):
        raise Unusable("hw-tests needs Debian 12: there is no dpkg-query or apt-get here")
    missing = [name for name in packages if not _is_installed(name)]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        raise Unusable(f"packages are missing; as root, run: {' '.join(command)}")
    print(f"installing {' '.join(missing)}", flush=True)
    run(["apt-get", "update", "-q"], DOWNLOAD_SECONDS)
    run(command, DOWNLOAD_SECONDS)


def kernel(suite, cache):
    """The directory of an unpacked kernel, that of one of KERNELS.

    A kernel that the cache already holds is used as it is; remove the cache to get a newer one.
    """
    home = cache / f"kernel-{suite}"
    if not home.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            source = KERNELS[suite]
            options = _own_lists(Path(scratch), source) if source else []
            package = _download_kernel(options, Path(scratch))
            unpacked = Path(scratch, "kernel")
            run(["dpkg-deb", "--extract", str(package), str(unpacked)], DOWNLOAD_SECONDS)
            unpacked.rename(home)
    return home


def _is_installed(package):
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    result = subprocess.run(query, capture_output=True, text=True)
    # An architecture-qualified package may answer once for each architecture.
    return "installed" in re.findall(r"not-installed|installed", result.stdout)


def _own_lists(home, source):
    """Options that make apt read one suite only, and write nothing outside `home`."""
    for folder in ["state/lists/partial", "cache/archives/partial"]:
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "sources.list").write_text(source)
    return [
        f"--option=Dir::Etc::sourcelist={home}/sources.list",
        "--option=Dir::Etc::sourceparts=-",
        f"--option=Dir::State={home}/state",
        "--option=Dir::State::status=/var/lib/dpkg/status",
        f"--option=Dir::Cache={home}/cache",
    ]


def _download_kernel(options, folder):
    if options or os.geteuid() == 0:
        run(["apt-get", *options, "update", "-q"], DOWNLOAD_SECONDS)
    depends = run(["apt-cache", *options, "depends", "linux-image-amd64"], DOWNLOAD_SECONDS)
    names = re.findall(r"Depends: (linux-image-\S+)", depends)
    if not names:
        raise Unusable("apt-cache knows no linux-image-amd64: is a Debian suite in its sources?")
    # Downloads by root are otherwise handed to a user that may not see this folder.
    unboxed = "--option=APT::Sandbox::User=root"
    download = ["apt-get", *options, unboxed, "download", "-q", names[0]]
    run(download, DOWNLOAD_SECONDS, folder)
    return next(folder.glob("*.deb"))
