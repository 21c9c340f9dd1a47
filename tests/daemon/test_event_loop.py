"""Nothing that the daemon does on its event loop blocks it: ``no_blocking`` looks on."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import aiohttp

from craftcache import AsyncClient
from craftcached.app import Daemon
from craftcached.settings_reading import load_settings
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import OnDisk, Status

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub


async def test_a_day_in_the_life_of_a_daemon(inspected: Path, hub: TestHub) -> None:
    export = hub.repo("org/model")
    export.commit(EXPORT_FILES)
    hub.repo("org/copy").commit(EXPORT_FILES)
    for name, path in EXPORT_FILES.items():
        hub.files[f"/export/{name}"] = OnDisk(path)
    url = hub.cdn_url("/export/")
    # Without its index one file is inspected as well.
    next((inspected / "cache/.craftcache/index").iterdir()).unlink()
    settings = await asyncio.to_thread(
        load_settings,
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
