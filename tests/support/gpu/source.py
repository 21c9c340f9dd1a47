"""In the place of the daemon: a worker socket that serves given checkpoints under any source.

It takes no more than the client and the worker socket's own code, so that it runs where the
daemon's libraries are not.
"""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.checkpoint.index import dump
from craftcache.checkpoint.reader import read_index
from craftcache.digests import hash_file
from craftcache.errors import InvalidSource
from craftcache.wire import Load, Loaded
from tests.support.sockets.serving import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from craftcache.wire import Progress, Request
    from craftcached.serve.peers import Peer


class FileSource:
    """Serves files by their names; a Handler.

    Args:
        files: Paths by filename.
        digests: Their sha256; they are hashed where none is given.
    """

    def __init__(self, files: Mapping[str, Path], digests: Mapping[str, str] | None = None) -> None:
        self._files = dict(files)
        self._digests = dict(digests or {})
        self._indexes: dict[str, bytes] = {}
        for name, path in self._files.items():
            self._digests.setdefault(name, "")
            self._digests[name] = self._digests[name] or hash_file(path).sha256
            fd = os.open(path, os.O_RDONLY)
            try:
                self._indexes[name] = dump(read_index(fd))
            finally:
                os.close(fd)

    def handle_nowait(self, request: Request[Any], peer: Peer) -> Any:
        if not isinstance(request, Load):
            raise InvalidSource(f"no {request.TYPE} here")
        return Loaded(str(request.source), "r1", tuple(map(self._opened, request.names)))

    async def handle(
        self, request: Request[Any], peer: Peer, report: Callable[[Progress], None]
    ) -> Any:
        raise AssertionError("all is at hand")

    def _opened(self, name: str) -> OpenFile:
        path = self._files[name]
        index = os.memfd_create("index")
        os.write(index, self._indexes[name])
        info = FileInfo(
            name, path.stat().st_size, "test", self._digests[name], datetime.fromtimestamp(1, UTC)
        )
        return OpenFile(info, os.open(path, os.O_RDONLY | os.O_CLOEXEC), index)


@contextlib.contextmanager
def file_source(
    socket_dir: Path, files: Mapping[str, Path], digests: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Serve files on ``worker/handles.sock`` until the block ends."""
    with serving(socket_dir, FileSource(files, digests)):
        yield
