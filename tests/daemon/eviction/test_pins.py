"""What a locked pin covers, as the kernel counts the daemon's locked memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.daemons import EXPORT_FILES

if TYPE_CHECKING:
    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess


def locked_bytes(daemon: DaemonProcess) -> int:
    match = re.search(r"VmLck:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


def test_a_file_that_is_added_at_the_same_revision_is_locked_too(
    api: Api, daemon: DaemonProcess
) -> None:
    size = 0
    for name, path in EXPORT_FILES.items():
        assert api.warm("org/model", files=(name,)).status_code == 200
        assert api.request("PUT", "/pins/org/model", json={"lock": True}).status_code == 200
        size += path.stat().st_size
        assert locked_bytes(daemon) >= size
