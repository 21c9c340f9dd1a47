"""A stand-in for the Hub with one repository of one commit on loopback, which counts what it sends.

It answers as the Hub does for ``/{org}/{name}/resolve/{revision}/{file}``, so that the unmodified
huggingface_hub client can use it as well.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

import aiofiles
from aiohttp import web

from craftcache.digests import hash_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DemoHub", "HubStatistics"]

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """The hub's counters since its start.

    Attributes:
        requests: Requests answered or being answered.
        bytes_sent: Bytes of files' contents that were sent.
    """

    requests: int
    bytes_sent: int


class DemoHub:
    """Serves the files of a directory as one repository; an async context manager.

    Args:
        repo_id: Id of the repository, ``org/name``.
        directory: Directory of the served files; they must not change meanwhile.
    """

    def __init__(self, repo_id: str, directory: Path) -> None:
        self._repo_id = repo_id
        self._paths = {path.name: path for path in sorted(directory.iterdir())}
        self._digests = {name: hash_file(path).sha256 for name, path in self._paths.items()}
        self.commit = hashlib.sha1(repr(self._digests).encode()).hexdigest()  # noqa: S324 - a commit's form
        self._requests = 0
        self._bytes_sent = 0
        app = web.Application()
        app.router.add_get("/{repo_id:[^/]+/[^/]+}/resolve/{revision}/{file:.+}", self._resolve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def endpoint(self) -> str:
        """Its address, as ``HF_ENDPOINT`` wants it."""
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    def statistics(self) -> HubStatistics:
        """The counters now."""
        return HubStatistics(self._requests, self._bytes_sent)

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        self._requests += 1
        name = request.match_info["file"]
        if missing := self._missing(
            request.match_info["repo_id"], request.match_info["revision"], name
        ):
            return web.Response(status=HTTPStatus.NOT_FOUND, headers={"X-Error-Code": missing})
        size, digest = self._paths[name].stat().st_size, self._digests[name]
        headers = {
            "Accept-Ranges": "bytes",
            "ETag": f'"{digest}"',
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(size),
            "X-Repo-Commit": self.commit,
        }
        try:
            wanted = request.http_range
        except ValueError:
            return _unsatisfiable(size)
        start, stop, _ = wanted.indices(size)
        is_part = (wanted.start, wanted.stop) != (None, None)
        if is_part and start >= stop:
            return _unsatisfiable(size)
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        status = HTTPStatus.PARTIAL_CONTENT if is_part else HTTPStatus.OK
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = stop - start
        await response.prepare(request)
        if request.method == "GET":
            await self._send(response, self._paths[name], start, stop)
        await response.write_eof()
        return response

    def _missing(self, repo_id: str, revision: str, name: str) -> str | None:
        """What of an address does not exist, in the Hub's words."""
        if repo_id != self._repo_id:
            return "RepoNotFound"
        if revision not in ("main", self.commit):
            return "RevisionNotFound"
        return None if name in self._paths else "EntryNotFound"

    async def _send(self, response: web.StreamResponse, path: Path, start: int, stop: int) -> None:
        async with aiofiles.open(path, "rb") as file:
            await file.seek(start)
            while start < stop:
                chunk = await file.read(min(CHUNK_BYTES, stop - start))
                await response.write(chunk)
                self._bytes_sent += len(chunk)
                start += len(chunk)


def _unsatisfiable(size: int) -> web.Response:
    return web.Response(
        status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        headers={"Content-Range": f"bytes */{size}"},
    )
