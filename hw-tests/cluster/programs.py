"""The programs that the cases run, built by cargo on the host.

CARGO_TARGET_DIR is honoured. The layout oracle has a target directory of its own, because it is
no member of the workspace.
"""

import json
import os
from pathlib import Path

from . import host
from .errors import Unusable

BUILD_SECONDS = 1200

# Packages whose programs run in the guests.
PACKAGES = ["sojourn", "sojourn-pagerank", "sojourn-witness"]
# Packages whose shared objects are preloaded there.
LIBRARIES = ["sojourn-preload"]
# Tests that run in the guests, by name, with their packages: those of a library have its name.
TESTS = {
    "sojourn_fabric": "sojourn-fabric",
    "hca_loopback": "sojourn-fabric",
    "tracking": "sojourn-snapshot",
    "epochs": "sojourn-snapshot",
}


class Programs:
    """What was built."""

    def __init__(self, root):
        self.root = root
        self.oracle = root / "hw-tests/oracle/target/release/sojourn-layout-oracle"
        target = os.environ.get("CARGO_TARGET_DIR", "target")
        self.folder = (root / target).resolve() / "release"
        # Cargo gives tests names with a hash; this remembers them for --no-build.
        self._tests = root / "hw-tests/.cache/tests.json"

    def build(self):
        """Builds all of it."""
        packages = [f"--package={name}" for name in PACKAGES]
        self._cargo("build", *packages, "--bins")
        self._cargo("build", *[f"--package={name}" for name in LIBRARIES], "--lib")
        tests = {}
        for name, package in TESTS.items():
            which = "--lib" if name == package.replace("-", "_") else f"--test={name}"
            output = self._cargo(
                *["test", "--no-run", f"--package={package}", which, "--message-format=json"]
            )
            messages = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
            tests[name] = next(
                message["executable"]
                for message in messages
                if message.get("target", {}).get("name") == name and message.get("executable")
            )
        self._tests.write_text(json.dumps(tests))
        oracle = self.oracle.parents[2]
        self._cargo("build", f"--manifest-path={oracle}/Cargo.toml", f"--target-dir={oracle}/target")

    def binary(self, name):
        """The path, in a guest, of a program or a shared object."""
        return self._in_guest(self.folder / name)

    def test(self, name):
        """The path, in a guest, of a test."""
        if not self._tests.exists():
            raise Unusable(f"the test {name} was not built; leave --no-build away")
        return self._in_guest(Path(json.loads(self._tests.read_text())[name]))

    def _in_guest(self, path):
        if not path.exists():
            raise Unusable(f"{path} was not built; leave --no-build away")
        return f"/host{path}"

    def _cargo(self, verb, *arguments):
        command = ["cargo", verb, "--release", *arguments]
        print(" ".join(command), flush=True)
        return host.run(command, BUILD_SECONDS, self.root)
