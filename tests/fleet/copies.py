"""Files that nodes are warmed with, and the copies of them that the origin sends."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.support.api import Api
from tests.support.hub import Generated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub


MIB = 1024 * 1024
SIZE = 8 * MIB + 777
NAME = "weights.safetensors"
"""No checkpoint, so that nothing is inspected: these tests are about bytes."""

PATIENCE_S = 60.0


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; the machine may be busy."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, condition
        threading.Event().wait(0.01)  # the hub runs in this process, too


def put(
    hub: TestHub, repo_id: str, seed: int, *, size: int = SIZE, config: bytes = b"{}"
) -> Generated:
    """A repository with one large file."""
    content = Generated(size, seed)
    hub.repo(repo_id, gated=repo_id == "org/gated").commit({NAME: content, "config.json": config})
    return content


def warm(node: DaemonProcess, repo_id: str, *names: str) -> httpx.Response:
    with Api(node.socket_dir) as api:
        return api.warm(repo_id, files=names or (NAME,))


def warm_all(nodes: Sequence[DaemonProcess], repo_id: str) -> None:
    """Warm at once on all nodes, which all succeed with the right bytes."""
    with ThreadPoolExecutor(len(nodes)) as workers:
        for answer in workers.map(lambda node: warm(node, repo_id), nodes):
            assert answer.status_code == 200, answer.text


def right(node: DaemonProcess, content: Generated) -> bool:
    """Whether the node has the very bytes."""
    blobs = list(node.cache_dir.glob(f"models--*/blobs/{content.sha256}"))
    return bool(blobs) and all(blob.read_bytes() == content.data for blob in blobs)


class Copies:
    """Copies of a file that the origin sends from now on."""

    def __init__(self, hub: TestHub, content: Generated) -> None:
        self._hub = hub
        self._content = content
        self._before = self._sent()

    def _sent(self) -> int:
        return self._hub.bytes_sent(f"*{self._content.sha256}*", origin="cdn")

    @property
    def value(self) -> float:
        return (self._sent() - self._before) / self._content.size


def metric(node: DaemonProcess, name: str) -> float:
    """The sum of a metric over its labels."""
    with Api(node.socket_dir) as api:
        text = api.request("GET", "http://craftcached/metrics").text
    found = re.findall(rf"^craftcache_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for value in found)
