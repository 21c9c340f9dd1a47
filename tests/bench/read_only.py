"""What a read-only node's hot load takes, beside one of the cache's owner.

``python -m tests.bench.read_only`` measures both in turn in one run; as root, for the mount.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
from pathlib import Path

from tests.bench.integrity import SOURCE, Figure, in_turn, loading
from tests.bench.load import FILENAME, SHAPES, make_checkpoint
from tests.support.daemons import DaemonProcess
from tests.support.hub import hub_in_thread
from tests.support.hub.content import OnDisk
from tests.support.mounts import mounted_read_only, unmount

MOST = 1.1
"""Times as long as the owner's hot load that a read-only node's may take."""


def measure(directory: Path, rounds: int) -> Figure:
    """A hot load by a node that has the owner's cache mounted, beside one by the owner."""
    checkpoint, twin = directory / "checkpoint", directory / "twin"
    make_checkpoint(SHAPES[0], checkpoint, twin)
    twin.unlink()
    owners, nodes = directory / "owner", directory / "node"
    owners.mkdir()
    (nodes / "cache").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(hub_in_thread())
        hub.repo(SOURCE).commit({FILENAME: OnDisk(checkpoint)})
        owner = stack.enter_context(DaemonProcess(owners, HF_ENDPOINT=hub.endpoint))
        by_owner = stack.enter_context(owner.client())
        by_owner.warm(SOURCE, filenames=(FILENAME,))
        mounted_read_only(owner.cache_dir, nodes / "cache")
        stack.callback(unmount, nodes / "cache")
        node = stack.enter_context(
            DaemonProcess(nodes, "--read-only", "true", HF_ENDPOINT=hub.endpoint)
        )
        by_node = stack.enter_context(node.client())
        return in_turn(
            "hot load by a read-only node, or by the owner",
            loading(by_node, "daemon"),
            loading(by_owner, "daemon"),
            rounds,
            MOST,
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="craftcache-bench-") as directory:
        try:
            print(measure(Path(directory), arguments.rounds))
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"no mount here: {error.stderr}") from None


if __name__ == "__main__":
    main()
