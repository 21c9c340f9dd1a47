"""A backend that serves two files under any name that begins with ``hot``."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from craftcache.errors import NotFound
from craftcache.wire import (
    Identified,
    Loaded,
    Resolved,
    ServedFile,
    StatusReport,
    Warmed,
    WarmResult,
)
from craftcached.serve.backend import Opened

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from craftcache.wire import (
        Follow,
        Generation,
        Identify,
        Load,
        Model,
        Models,
        Progress,
        Resolve,
        Warm,
    )
    from craftcached.serve.peers import Peer

    Report = Callable[[Progress], None]
    Cold = Callable[["FunctionBackend", Load, Report], Awaitable[Opened]]

BLOB = b"all the weights"
INDEX = b'{"index": 1}'


async def nothing_there(_backend: FunctionBackend, request: Load, _report: Report) -> Opened:
    raise NotFound("no such repository", source=request.source)


class FunctionBackend:
    """Serves ``hot...`` at once and leaves all other loads to a function.

    Args:
        directory: Where its two files are made.
        cold: What a load that is not at hand does.
        models: What is listed.
    """

    def __init__(
        self, directory: Path, *, cold: Cold = nothing_there, models: Iterable[Model] = ()
    ) -> None:
        self._paths = (directory / "blob", directory / "index")
        for path, content in zip(self._paths, (BLOB, INDEX), strict=True):
            path.write_bytes(content)
        self._cold = cold
        self._models = list(models)

    def opened(self, source: str, files: int = 2) -> Opened:
        """The answer to a load: ``files`` files, of which the last has no index."""
        digest = hashlib.sha256(BLOB).hexdigest()
        served = tuple(
            ServedFile(f"{i}.bin", digest, len(BLOB), "test", 1.0, has_index=i < files - 1)
            for i in range(files)
        )
        blob, index = self._paths
        paths = [path for file in served for path in ((blob, index) if file.has_index else (blob,))]
        flags = os.O_RDONLY | os.O_CLOEXEC
        return Opened(Loaded(source, "r1", served), [os.open(path, flags) for path in paths])

    def load_nowait(self, request: Load, caller: Peer) -> Opened | None:
        return self.opened(request.source) if request.source.startswith("hot") else None

    async def load(self, request: Load, caller: Peer, report: Report) -> Opened:
        return await self._cold(self, request, report)

    async def resolve(self, request: Resolve, caller: Peer, report: Report) -> Resolved:
        return Resolved(f"models--{request.source}/{request.filename}", 1, 2)

    async def warm(self, request: Warm, caller: Peer, report: Report) -> Warmed:
        return Warmed(
            tuple(
                WarmResult(revision="r1")
                if source.startswith("hot")
                else WarmResult(error=NotFound("no such repository", source=source))
                for source in request.sources
            )
        )

    async def status(self, caller: Peer) -> StatusReport:
        return StatusReport({"pid": caller.pid, "uid": caller.uid})

    async def models(self, request: Models, caller: Peer) -> list[Model]:
        return [model for model in self._models if model.source > request.after]

    async def identify(self, request: Identify, caller: Peer) -> Identified:
        return Identified("")

    async def follow(self, request: Follow, caller: Peer) -> Generation:
        raise NotFound("no such watch", source=f"watch:{request.name}")
