"""Fixtures of the daemon's tests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from craftcache.digests import hash_file
from craftcached.inspect import Inspector
from tests.support.api import Api
from tests.support.daemons import EXPORT_FILES, DaemonProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hub import Repo, TestHub


@pytest.fixture(scope="session")
def export_indexes() -> dict[str, bytes]:
    """The indexes of the export's files by sha256, as the real inspector writes them."""

    async def inspect() -> dict[str, bytes]:
        async with Inspector() as inspector:
            return {
                hash_file(path).sha256: await inspector.inspect(path, source="export")
                for path in EXPORT_FILES.values()
            }

    return asyncio.run(inspect())


@pytest.fixture
def inspected(base: Path, export_indexes: dict[str, bytes]) -> Path:
    """A base directory whose cache has seen the export before, so that no test waits for torch."""
    indexes = base / "cache" / ".craftcache" / "index"
    indexes.mkdir(parents=True)
    for sha256, index in export_indexes.items():
        (indexes / f"{sha256}.json").write_bytes(index)
    return base


@pytest.fixture
def daemon(inspected: Path, threaded_hub: TestHub, export_repo: Repo) -> Iterator[DaemonProcess]:
    """A daemon in a process of its own, whose Hub has ``export_repo``."""
    with DaemonProcess(
        inspected, "--insecure-host", "127.0.0.1", HF_ENDPOINT=threaded_hub.endpoint
    ) as running:
        yield running


@pytest.fixture
def api(daemon: DaemonProcess) -> Iterator[Api]:
    """The HTTP interface of ``daemon``."""
    with Api(daemon.socket_dir) as connected:
        yield connected
