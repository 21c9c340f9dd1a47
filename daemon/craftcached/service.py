"""What the daemon does, whichever socket it is asked on."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError, NotFound
from craftcache.manifest import manifest_key
from craftcache.sources import HubSource, check_filename, parse, wanted_files
from craftcache.version import VERSION

from .fetch import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.manifest import FileRecord, Manifest
    from craftcache.sources import RemoteSource
    from craftcache.wire import Progress

    from .records import Records, WarmJob
    from .settings import Settings
    from .store import Store
    from .warm import Warmed, Warmer

__all__ = ["Service", "Status", "OpenedModel"]

log = logging.getLogger("craftcached")

RETRY_SECONDS = 60.0
"""Pause before a queued warm that failed for no fault of the source is tried again."""


@dataclass(frozen=True, slots=True)
class Status:
    """How the daemon is.

    Attributes:
        version: Of the software.
        pid: Of the process.
        started_at: Seconds since the epoch.
        cache_dir: Where the models are.
        socket_dir: Where the sockets are.
        models: How many are cached.
        bytes: Of all cached models, each blob once.
        requests: How many different sources are being fetched, verified or published.
        queued: How many warms are promised and not done.
        has_token: Whether it can ask the Hub for what is not public.
    """

    version: str
    pid: int
    started_at: float
    cache_dir: str
    socket_dir: str
    models: int
    bytes: int
    requests: int
    queued: int
    has_token: bool


@dataclass(slots=True)
class OpenedModel:
    """Verified files of a model, open for reading; close it when they have been handed over.

    Attributes:
        manifest: What they are part of.
        records: In the order of the request.
        blobs: Descriptors, one a record.
        indexes: Descriptors, one a record; None where a checkpoint has no index.
    """

    manifest: Manifest
    records: tuple[FileRecord, ...]
    blobs: list[int] = field(default_factory=list)
    indexes: list[int | None] = field(default_factory=list)

    def is_intact(self) -> bool:
        """Whether what was opened is what was verified."""
        return all(
            record.describes(os.fstat(blob))
            for record, blob in zip(self.records, self.blobs, strict=True)
        )

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in (*self.blobs, *self.indexes):
            if descriptor is not None:
                os.close(descriptor)
        self.blobs, self.indexes = [], []


class Service:
    """The daemon's capabilities, decided here and nowhere else.

    Args:
        settings: In force.
        store: What is published.
        warmer: What makes it so.
        records: What was promised.
    """

    def __init__(
        self, *, settings: Settings, store: Store, warmer: Warmer, records: Records
    ) -> None:
        self._settings = settings
        self._store = store
        self._warmer = warmer
        self._records = records
        self._started_at = time.time()
        self._jobs: dict[int, asyncio.Task[None]] = {}

    async def resume(self) -> None:
        """Take up the warms that were promised before the last stop."""
        for job in await self._records.warm_jobs():
            self._start(job)

    async def close(self) -> None:
        """Stop the promised warms at a point from which the next start goes on."""
        tasks = tuple(self._jobs.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def open(
        self, text: str, filenames: Sequence[str], report: Callable[[Progress], None]
    ) -> OpenedModel:
        """Open the files of a source, bringing them first where they are missing.

        Raises:
            CraftcacheError: See Warmer.ensure.
        """
        source, names = self._parse(text, filenames)
        opened = self.open_nowait(text, filenames)
        while opened is None:
            await self._warmer.ensure(
                source, names, refresh=False, priority=Priority.WAITED_FOR, report=report
            )
            opened = self.open_nowait(text, filenames)  # None again only if removed in between
        return opened

    def open_nowait(self, text: str, filenames: Sequence[str]) -> OpenedModel | None:
        """Open the files of a source if all are published and untouched; None otherwise."""
        source, names = self._parse(text, filenames)
        manifest = self._store.manifest(source)
        records = manifest.select(source, names) if manifest else None
        if manifest is None or records is None:
            return None
        opened = OpenedModel(manifest, records)
        try:
            for record in records:
                opened.blobs.append(_open(self._store.cache.path(record)))
                opened.indexes.append(_open_if_there(self._store.cache.index_path(record.sha256)))
        except FileNotFoundError:  # removed since
            opened.close()
            return None
        except BaseException:
            opened.close()
            raise
        if not opened.is_intact():
            opened.close()
            return None
        return opened

    async def resolve(
        self, text: str, filename: str, report: Callable[[Progress], None]
    ) -> tuple[str, os.stat_result]:
        """Where a file stands below the cache directory, as huggingface_hub would name it."""
        source, names = self._parse(text, [filename])
        warmed = await self._warmer.ensure(
            source, names, refresh=False, priority=Priority.WAITED_FOR, report=report
        )
        record = warmed.manifest.file(names[0])
        if record is None:
            raise NotFound(f"no file {names[0]}", source=source.shown, hint="Try again")
        path = self._store.cache.path(record)
        if isinstance(source, HubSource):
            tree = self._store.cache.hub_tree(source.repo_id)
            path = tree.pointer(warmed.manifest.revision, record.filename)
        return self._store.cache.relative(path), path.stat()

    async def warm(
        self, text: str, filenames: Sequence[str], report: Callable[[Progress], None]
    ) -> Warmed:
        """Bring a source to its newest revision."""
        source, names = self._parse(text, filenames)
        started = time.monotonic()
        warmed = await self._warmer.ensure(
            source, names, refresh=True, priority=Priority.BACKGROUND, report=report
        )
        log.info(
            "warmed %s at %s: %d bytes fetched, %d reused, %.2f s",
            source.shown,
            warmed.manifest.revision,
            warmed.bytes_fetched,
            warmed.bytes_reused,
            time.monotonic() - started,
        )
        return warmed

    async def queue_warm(self, text: str, filenames: Sequence[str]) -> WarmJob:
        """Promise a warm; it outlives the request and a restart of the daemon."""
        self._parse(text, filenames)
        job = await self._records.add_warm_job(text, tuple(filenames))
        self._start(job)
        return job

    async def remove(self, text: str) -> int:
        """Remove a model; returns the bytes freed.

        Raises:
            NotFound: It is not in the cache.
        """
        source = parse(text)
        manifest = await self.model(text)
        freed = await self._warmer.remove(manifest_key(source), manifest)
        log.info("removed %s: %d bytes freed", source.shown, freed)
        return freed

    async def models(self) -> list[Manifest]:
        """All published models, by source."""
        return await self._store.manifests()

    async def model(self, text: str) -> Manifest:
        """One published model.

        Raises:
            NotFound: It is not in the cache.
        """
        source = parse(text)
        if manifest := self._store.manifest(source):
            return manifest
        raise NotFound(
            "not in the cache", source=source.shown, hint=f"craftcache warm {source.shown}"
        )

    def progress(self) -> list[Progress]:
        """How far each source has come that is being worked on."""
        return self._warmer.progress()

    async def status(self) -> Status:
        """How the daemon is at this moment."""
        manifests = await self._store.manifests()
        blobs = {record.path: record.size for manifest in manifests for record in manifest.files}
        return Status(
            version=VERSION,
            pid=os.getpid(),
            started_at=self._started_at,
            cache_dir=str(self._settings.cache_dir),
            socket_dir=str(self._settings.socket_dir),
            models=len(manifests),
            bytes=sum(blobs.values()),
            requests=self._warmer.running,
            queued=len(self._jobs),
            has_token=self._settings.hub_token is not None,
        )

    def _parse(self, text: str, filenames: Sequence[str]) -> tuple[RemoteSource, tuple[str, ...]]:
        source = parse(text)
        for filename in filenames:
            check_filename(filename, source=source.shown)
        return source, wanted_files(source, filenames)

    def _start(self, job: WarmJob) -> None:
        if job.id not in self._jobs:
            task = asyncio.create_task(self._keep(job))
            self._jobs[job.id] = task
            task.add_done_callback(lambda _: self._jobs.pop(job.id, None))

    async def _keep(self, job: WarmJob) -> None:
        """Do what was promised; what only time can mend is tried until it is."""
        while True:
            try:
                await self.warm(job.source, job.filenames, lambda _: None)
            except CraftcacheError as error:
                log.warning("queued warm failed: %s", error)
                if error.retryable:
                    await asyncio.sleep(error.retry_after or RETRY_SECONDS)
                    continue
            break
        await self._records.finish_warm_job(job)


def _open(path: os.PathLike[str]) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _open_if_there(path: os.PathLike[str]) -> int | None:
    try:
        return _open(path)
    except FileNotFoundError:
        return None
