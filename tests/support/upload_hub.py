"""A Hub that takes commits over HTTP, as far as upload_folder needs one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UploadHub", "upload_hub"]


class UploadHub:
    """Repositories by id, each with the files of its one commit.

    Attributes:
        endpoint: For ``HF_ENDPOINT``.
        repos: The files of each repository, by name.
        is_denied: Whether the token may not write.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.repos: dict[str, dict[str, bytes]] = {}
        self.is_denied = False

    def app(self) -> web.Application:
        """What it answers."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/api/repos/create", self._create)
        app.router.add_post("/api/validate-yaml", self._validate)
        app.router.add_post("/api/models/{org}/{name}/preupload/{revision}", self._preupload)
        app.router.add_post("/api/models/{org}/{name}/commit/{revision}", self._commit)
        app.router.add_get("/api/models/{org}/{name}{rest:.*}", self._info)
        return app

    async def _create(self, request: web.Request) -> web.Response:
        if self.is_denied:
            return web.json_response({"error": "no"}, status=403)
        body = await request.json()
        repo_id = f"{body['organization']}/{body['name']}"
        self.repos.setdefault(repo_id, {})
        return web.json_response({"url": f"{self.endpoint}/{repo_id}"})

    async def _validate(self, _request: web.Request) -> web.Response:
        return web.json_response({"errors": [], "warnings": []})

    async def _preupload(self, request: web.Request) -> web.Response:
        """All files travel inside the commit, as small ones do."""
        body = await request.json()
        names = [file["path"] for file in body["files"]]
        files = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
        return web.json_response({"files": files})

    async def _commit(self, request: web.Request) -> web.Response:
        if self.is_denied:
            return web.json_response({"error": "no"}, status=403)
        lines = [json.loads(line) for line in (await request.text()).splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        repo_id = _repo_id(request)
        for file in files:
            self.repos[repo_id][file["path"]] = base64.b64decode(file["content"])
        oid = hashlib.sha1(await request.read()).hexdigest()
        url = f"{self.endpoint}/{repo_id}/commit/{oid}"
        return web.json_response({"commitUrl": url, "commitOid": oid, "success": True})

    async def _info(self, request: web.Request) -> web.Response:
        shown: dict[str, Any] = {"id": _repo_id(request), "sha": "0" * 40, "siblings": []}
        return web.json_response(shown)


def _repo_id(request: web.Request) -> str:
    return f"{request.match_info['org']}/{request.match_info['name']}"


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """One in a thread of its own, for child processes."""
    hub = UploadHub()
    started = threading.Event()
    stopping: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        runner = web.AppRunner(hub.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        hub.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        stop = asyncio.Event()
        stopping.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield hub
    finally:
        loop, stop = stopping[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join()
