"""Nothing that the daemon does on its event loop blocks it.

Accepted by design are calls on names (stat, unlink, rename and the like): on a local disk they
take a few microseconds, less than a hop to a thread. What reads, writes, syncs or hashes the
content of files, waits for a lock or for a network, is not.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import aiohttp
import pytest
from blockbuster import blockbuster_ctx

from craftcache import AsyncClient
from craftcached.app import Daemon
from craftcached.settings import Settings
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import OnDisk, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hub import TestHub

ON_NAMES = (
    *("os.access", "os.link", "os.listdir", "os.mkdir", "os.readlink", "os.remove", "os.rename"),
    *("os.replace", "os.rmdir", "os.scandir", "os.stat", "os.symlink", "os.unlink"),
    *("os.path.abspath", "os.path.islink", "os.path.ismount", "os.path.samestat"),
    *("os.path.sameopenfile", "os.getcwd"),
)
"""Calls on names rather than on content, which are allowed on the event loop."""

SMALL = (
    # A manifest, once each time that it has changed: some kilobytes, written a moment ago.
    ("io.BufferedReader.read", "craftcache/cache/directory.py", "manifest_at"),
    # At the very end: one byte into a pipe, at which the thread that reads inotify ends.
    ("os.write", "craftcached/watch/inotify.py", "__exit__"),
    ("threading.Lock.acquire", "craftcached/watch/inotify.py", "__exit__"),
)
"""Calls on content that take no longer than those on names: what, in which file and function."""


@pytest.fixture
def only_names() -> Iterator[None]:
    """Any call of the daemon's that blocks on more than a name fails, wherever it is made."""
    with blockbuster_ctx("craftcached") as buster:
        for name in ON_NAMES:
            buster.functions[name].deactivate()
        for name, file, function in SMALL:
            buster.functions[name].can_block_in(file, function)
        yield


async def test_a_day_in_the_life_of_a_daemon(
    inspected: Path, hub: TestHub, only_names: None
) -> None:
    export = hub.repo("org/model")
    export.commit(EXPORT_FILES)
    hub.repo("org/copy").commit(EXPORT_FILES)
    for name, path in EXPORT_FILES.items():
        hub.files[f"/export/{name}"] = OnDisk(path)
    url = hub.cdn_url("/export/")
    # Without its index one file is inspected as well.
    next((inspected / "cache/.craftcache/index").iterdir()).unlink()
    settings = await asyncio.to_thread(
        Settings.load,
        {
            "cache_dir": inspected / "cache",
            "socket_dir": inspected / "run",
            "state_dir": inspected / "state",
            "hub_endpoint": hub.endpoint,
            "insecure_hosts": ("127.0.0.1",),
        },
    )
    connector = aiohttp.UnixConnector(str(inspected / "run/craftcache.sock"))
    async with (
        Daemon(settings),
        aiohttp.ClientSession("http://craftcached/v1/", connector=connector) as http,
        AsyncClient(socket_dir=inspected / "run", cache_dir=inspected / "cache") as client,
    ):

        async def ask(method: str, path: str, body: object = None) -> int:
            async with http.request(method, path, json=body) as answer:
                await answer.read()
                return answer.status

        warm_all = {"sources": ["org/model", "org/copy", url]}
        assert await ask("POST", "warm", warm_all) == 200
        assert await ask("POST", "warm", warm_all) == 200
        assert await ask("POST", "warm", {"sources": ["org/none"], "wait": False}) == 202
        assert await ask("POST", "warm", {"sources": ["org/none"]}) == 404
        for target in (
            "health",
            "status",
            "models",
            "models/org/model",
            f"models/{url}",
            "/metrics",
        ):
            assert await ask("GET", target) == 200
        assert await ask("POST", "verify") == 200
        for source in ("org/model", url):
            assert (await client.load(source)).served_by == "daemon"
        assert await client.resolve("org/model", "state_dict.bin")
        assert len(await client.models()) == 3
        assert (await client.status()).models == 3
        export.commit({"state_dict.bin": EXPORT_FILES["compression_state_dict.bin"]})
        assert await ask("POST", "warm", {"sources": ["org/model"]}) == 200
        hub.inject(Status(503), path="/org/model/*", method="HEAD", times=None)
        assert await ask("POST", "warm", {"sources": ["org/model"]}) == 503
        for source in ("org/model", "org/copy", url):
            assert await ask("DELETE", f"models/{source}") == 200
        assert os.listdir(inspected / "cache/.craftcache/manifests") == []
