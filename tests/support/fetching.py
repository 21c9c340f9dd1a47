"""An engine over a directory of its own, and remote files of the test hub for it."""

from __future__ import annotations

import hashlib
import re
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.digests import Digest, Promise
from craftcached.fetch import Engine, EngineSettings, Fetched, Fetcher, Priority, RemoteFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from craftcached.fetch import Mirrors
    from tests.support.hub import Content, TestHub

MIB = 1024 * 1024

QUICK = EngineSettings(
    piece_bytes=256 * 1024,
    backoff_seconds=0.001,
    max_backoff_seconds=2.0,
    stall_seconds=20.0,
    minimum_rate=1024,
)
"""Small pieces, so that small files have many; short waits, so that faults cost no time."""

IMPATIENT = replace(QUICK, stall_seconds=0.25)


class Rig:
    """An engine and what a caller sees of it."""

    def __init__(self, engine: Engine, staging: Path) -> None:
        self.engine = engine
        self._fetcher: Fetcher = engine
        self.staging = staging
        self.reports: list[tuple[int, int | None]] = []

    async def fetch(self, file: RemoteFile, *, priority: Priority = Priority.BACKGROUND) -> Fetched:
        return await self._fetcher.fetch(file, priority=priority, report=self._report)

    def _report(self, done: int, total: int | None) -> None:
        self.reports.append((done, total))

    @property
    def left(self) -> list[str]:
        """What lies in staging; what is random in the names of taken files is left out."""
        names = (path.name for path in self.staging.iterdir())
        return sorted(re.sub(r"-[0-9a-f]{16}\.whole$", ".whole", name) for name in names)


@asynccontextmanager
async def rig_at(
    base: Path,
    settings: EngineSettings = QUICK,
    *,
    check_url: Callable[[str], None] = lambda _: None,
    boot_id: str | None = None,
    free: Callable[[], int] | None = None,
    mirrors: Mirrors | None = None,
) -> AsyncIterator[Rig]:
    staging = base / "staging"
    async with Engine(
        staging, settings, check_url=check_url, boot_id=boot_id, free=free, mirrors=mirrors
    ) as engine:
        yield Rig(engine, staging)


def remote(
    content: Content,
    url: str,
    *,
    key: str = "k",
    promised: bool = True,
    headers: Mapping[str, str] | None = None,
) -> RemoteFile:
    """``content`` at ``url``, with or without a promise of its size and sha256."""
    promise = Promise(content.size, Digest("sha256", content.sha256)) if promised else Promise()
    return RemoteFile("org/model", url, promise, key, headers or {})


def hub_file(
    hub: TestHub, content: Content, name: str = "state_dict.bin", *, key: str = "k"
) -> RemoteFile:
    """``content`` as an LFS file of a new commit of a repository."""
    repo_id = f"org/{name.partition('.')[0].replace('_', '-')}"
    commit = hub.repo(repo_id).commit({name: content}, lfs=[name])
    return remote(content, hub.resolve_url(repo_id, name, commit), key=key)


def cdn_file(
    hub: TestHub, content: Content, path: str = "/w.bin", *, promised: bool = True, key: str = "k"
) -> RemoteFile:
    """``content`` as a plain file of the CDN."""
    hub.files[path] = content
    return remote(content, hub.cdn_url(path), promised=promised, key=key)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
