"""A handler that serves two files under any name that begins with ``hot``."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.errors import CraftcacheError, NotFound
from craftcache.sources import parse
from craftcache.wire import (
    DaemonStatus,
    Follow,
    Identified,
    Identify,
    Load,
    Loaded,
    Models,
    Resolve,
    Resolved,
    Status,
    Warm,
    WarmBatch,
    WarmedBatch,
    WarmedModel,
    first_page,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from craftcache.sources import RemoteSource
    from craftcache.wire import CachedModel, Progress, Request
    from craftcached.serve.peers import Peer

    Report = Callable[[Progress], None]
    Cold = Callable[["FunctionBackend", Load, Report], Awaitable[Loaded]]

BLOB = b"all the weights"
INDEX = b'{"index": 1}'


def load(text: str, *filenames: str) -> Load:
    """A request for a source that is named as users name it."""
    return Load(parse(text), filenames)


def status(**known: Any) -> DaemonStatus:
    """The status of a daemon of which there is nothing to say but what is ``known``."""
    nothing: dict[str, Any] = {
        "version": "0",
        "pid": 1,
        "started_at": 0.0,
        "cache_dir": "/c",
        "socket_dir": "/s",
        "models": 0,
        "bytes": 0,
        "requests": 0,
        "queued": 0,
        "resident_bytes": None,
        "has_token": False,
        "watches": {},
    }
    return DaemonStatus(**nothing | known)


def file_info(filename: str = "f", *, sha256: str = "0" * 64, size: int = 1) -> FileInfo:
    """What an answer says of a file."""
    return FileInfo(filename, size, "test", sha256, datetime.fromtimestamp(1, UTC))


async def nothing_there(_backend: FunctionBackend, request: Load, _report: Report) -> Loaded:
    raise NotFound("no such repository", source=request.source.shown)


class FunctionBackend:
    """Serves ``hot...`` at once and leaves all other loads to a function; a Handler.

    Args:
        directory: Where its two files are made.
        cold: What a load that is not at hand does.
        models: What is listed.
    """

    def __init__(
        self, directory: Path, *, cold: Cold = nothing_there, models: Iterable[CachedModel] = ()
    ) -> None:
        self._paths = (directory / "blob", directory / "index")
        for path, content in zip(self._paths, (BLOB, INDEX), strict=True):
            path.write_bytes(content)
        self._cold = cold
        self._models = list(models)

    def opened(self, source: RemoteSource | str, files: int = 2) -> Loaded:
        """The answer to a load: ``files`` files, of which the last has no index."""
        digest = hashlib.sha256(BLOB).hexdigest()
        opened = [
            OpenFile(
                file_info(f"{i}.bin", sha256=digest, size=len(BLOB)),
                self._open(0),
                self._open(1) if i < files - 1 else None,
            )
            for i in range(files)
        ]
        return Loaded(str(source), "r1", tuple(opened))

    def handle_nowait(self, request: Request[Any], peer: Peer) -> Any:
        if isinstance(request, Load) and str(request.source).startswith("hot"):
            return self.opened(request.source)
        return None

    async def handle(self, request: Request[Any], peer: Peer, report: Report) -> Any:
        match request:
            case Load():
                return await self._cold(self, request, report)
            case Resolve():
                return Resolved(f"models--{request.source}/{request.filename}", 1, 2)
            case Warm():
                return self._warmed(request)
            case WarmBatch():
                return WarmedBatch(tuple(map(self._result, request.warms)))
            case Status():
                return status(pid=peer.pid, models=peer.uid)
            case Models():
                return first_page(model for model in self._models if model.source > request.after)
            case Identify():
                return Identified("")
            case Follow():
                raise NotFound("no such watch", source=f"watch:{request.name}")

    def _open(self, which: int) -> int:
        return os.open(self._paths[which], os.O_RDONLY | os.O_CLOEXEC)

    def _warmed(self, warm: Warm) -> WarmedModel:
        if str(warm.source).startswith("hot"):
            return WarmedModel(warm.source.shown, "r1")
        raise NotFound("no such repository", source=warm.source.shown)

    def _result(self, warm: Warm) -> WarmedModel | CraftcacheError:
        try:
            return self._warmed(warm)
        except CraftcacheError as error:
            return error
