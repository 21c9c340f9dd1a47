"""Examines what is published, byte by byte, and mends what is not what it was.

    file -> index -> links, of each model; and the manifests, which say what a model is

A wrong file goes to quarantine at once, so that no worker is handed it any more. Where its origin
is known it is fetched anew, and only then counted as mended.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from craftcache.cache.stamps import FileStamp
from craftcache.checkpoint.filenames import is_checkpoint
from craftcache.daemon.administration import Verdict
from craftcache.digests import Stamp
from craftcache.errors import CraftcacheError
from craftcached.database import Hashing

from .find_damaged import DamagedManifest, find_damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.daemon.administration import Outcome, VerdictPart
    from craftcache.sources import RemoteSource
    from craftcached.database import Database
    from craftcached.events import Events
    from craftcached.store.store import Store
    from craftcached.store.verity import Verity

    from .hashing import FileHasher, Pace

__all__ = ["Examiner", "Mender", "PublishedFile", "PublishedModel", "published_files"]

log = logging.getLogger("craftcached")


class Mender(Protocol):
    """Brings anew what is wrong; see Warming."""

    async def mend(self, key: str, manifest: Manifest, filename: str) -> None:
        """Have a file of a published model, and its index, be what it was."""
        ...

    async def publish_anew(
        self,
        source: RemoteSource,
        filenames: tuple[str, ...],
        *,
        as_need: bool = False,
        superseded: bool = False,
    ) -> None:
        """Publish files of a source whose manifest cannot be read, as what they were before."""
        ...


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A published model.

    Attributes:
        key: Key of its manifest; its shown name may lack a secret that belongs to the key.
        manifest: The manifest.
    """

    key: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file on the disk, and all models that have it.

    Attributes:
        record: Record of the file in one of their manifests.
        models: The models.
    """

    record: FileRecord
    models: tuple[PublishedModel, ...]


def published_files(models: Iterable[PublishedModel]) -> list[PublishedFile]:
    """The files of these models, each once, in the order of the models."""
    found: dict[tuple[str, str], tuple[FileRecord, list[PublishedModel]]] = {}
    for model in models:
        for record in model.manifest.files:
            _, having = found.setdefault((record.path, record.sha256), (record, []))
            having.append(model)
    return [PublishedFile(record, tuple(having)) for record, having in found.values()]


class Examiner:
    """Examines published files and mends them; it has no state of its own.

    Args:
        store: The published models.
        mender: Fetches, and inspects, anew.
        records: The database, in which the time of each file's last hashing stands.
        events: The event stream.
        verity: Has the kernel enforce what was found right, where the file system can.
        clock: Returns the time in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        store: Store,
        mender: Mender,
        records: Database,
        events: Events,
        verity: Verity,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._mender = mender
        self._records = records
        self._events = events
        self._verity = verity
        self._clock = clock

    async def examine(
        self,
        file: PublishedFile,
        hasher: FileHasher,
        pace: Pace,
        report: Callable[[int], None] = lambda _: None,
    ) -> list[Verdict]:
        """Hash a file, look at its indexes, and mend both; a verdict for each model that has it.

        A model that is removed meanwhile has none.

        Args:
            file: The file.
            hasher: Hashes it.
            pace: How fast.
            report: Called with the bytes hashed so far.

        A file that cannot be read or put aside for a reason outside of it, such as a permission,
        is ``wrong``; where its content is, it is not served.
        """
        record = file.record
        try:
            found, quarantined = await self._hash(record, hasher, pace, report)
        except OSError as error:  # this one waits; the others do not wait for it
            return await self._unreadable(file, error)
        having = await self._still_having(file)
        if found != "right" and not having:
            return []
        verdicts = []
        # A superseded revision gets what the current one has brought, and nothing for itself.
        for model in sorted(having, key=lambda model: model.manifest.superseded):
            if found == "right":
                verdicts += _about(model, record, found, "file")
                verdicts += await self._examine_index(model, record)
                continue
            failure = await self._mend(model, record, "file")
            outcome = found if failure else "mended"
            verdicts += _about(model, record, outcome, "file", quarantined, failure)
        await self._note(record, is_broken=not all(each.is_sound for each in verdicts))
        return verdicts

    async def _unreadable(self, file: PublishedFile, error: OSError) -> list[Verdict]:
        failure = CraftcacheError(
            f"it cannot be read or put aside: {error}",
            hint="See what the daemon's user may do in the cache",
            retryable=True,
        )
        log.error("%s: %s", file.record.path, failure.message)
        await self._note(file.record, is_broken=True)
        return [
            verdict
            for model in file.models
            for verdict in _about(model, file.record, "wrong", "file", None, failure)
        ]

    async def _note(self, record: FileRecord, *, is_broken: bool) -> None:
        """Record that a file was looked at now."""
        await self._records.save_hashing(
            Hashing(record.path, record.sha256, self._clock(), is_broken)
        )

    @property
    def protects(self) -> bool:
        """Whether the file system can have files protected."""
        return self._verity.is_supported

    async def protect(self, record: FileRecord) -> None:
        """Have the kernel check a published file at each read, where the file system can.

        Not one of another daemon's cache, where nothing is changed.
        """
        if self._store.cache.is_owners(record):
            return
        with contextlib.suppress(FileNotFoundError):
            await self._verity.protect(self._store.cache.path(record), record.sha256)

    async def examine_links(self, model: PublishedModel) -> list[Verdict]:
        """Put right what leads to a model's files; a verdict for each that led elsewhere."""
        manifest = await self._store.manifest_at(model.key, owned=True)
        if manifest is None:
            return []
        # Not the manifest that is given: a file that was mended since has made another.
        model = PublishedModel(model.key, manifest)
        failure = None
        try:
            mended = await self._store.mend_links(model.key, manifest)
        except (CraftcacheError, OSError) as error:
            mended = list(manifest.files[:1])
            failure = _as_error(error, manifest.source)
        return self._about_links(model, mended, failure)

    async def examine_links_again(self, model: PublishedModel) -> list[Verdict]:
        """A verdict on a model whose links were put right and are wrong again.

        Another model's, which were put right after them, must stand in the same place.
        """
        manifest = await self._store.manifest_at(model.key, owned=True)
        if manifest is None or not await self._store.led_astray([(model.key, manifest)]):
            return []
        failure = CraftcacheError(
            "its links or its ref were put right, and lead elsewhere again",
            source=manifest.source,
            hint="See whether its directory in the cache, or one in it, is a link to another's",
        )
        return self._about_links(
            PublishedModel(model.key, manifest), list(manifest.files[:1]), failure
        )

    def _about_links(
        self, model: PublishedModel, records: list[FileRecord], failure: CraftcacheError | None
    ) -> list[Verdict]:
        verdicts = []
        for record in records:
            outcome: Outcome = "wrong" if failure else "mended"
            self._tell(model.manifest.source, record.filename, "link", failure)
            verdicts += _about(model, record, outcome, "link", None, failure)
        return verdicts

    async def examine_manifests(self) -> list[Verdict]:
        """Find manifests that cannot be read any more, and publish their models anew.

        One of a version that this release does not know is left alone, and named.
        """
        return [await self._mend_manifest(each) for each in await find_damaged(self._store)]

    async def _hash(
        self, record: FileRecord, hasher: FileHasher, pace: Pace, report: Callable[[int], None]
    ) -> tuple[Outcome, str | None]:
        """Hash a file; a wrong one goes to quarantine. Returns also its place there."""
        path, is_owners = self._store.cache.path(record), self._store.cache.is_owners(record)
        while True:
            try:
                await self.protect(record)
                stamp = Stamp.of(path.stat())
                sha256 = await hasher.hash(path, pace, report)
                after = Stamp.of(path.stat())
            except (FileNotFoundError, PermissionError):  # another mode is as good as no file
                return "missing", None
            if sha256 == record.sha256 and after == stamp:
                if after.ctime_ns == stamp.ctime_ns:
                    await self._store.record_stamp(sha256, FileStamp.of_stamp(stamp))
                return "right", None
            if is_owners and after == stamp:
                # It stays where it is, is served no more, and this node gets a copy of its own.
                await self._store.forget_stamps(record.sha256)
                return "wrong", None
            quarantined = await self._store.quarantine_wrong(record, stamp)
            if quarantined is not None:  # None: another file was put in its place, so hash that
                return "wrong", quarantined

    async def _still_having(self, file: PublishedFile) -> list[PublishedModel]:
        """The models of a file that are published and have it now."""
        having = []
        for model in file.models:
            now = await self._store.manifest_at(model.key, owned=True)
            records = now.files if now else ()
            wanted = (file.record.path, file.record.sha256)
            if now is not None and any((each.path, each.sha256) == wanted for each in records):
                having.append(PublishedModel(model.key, now))
        return having

    async def _mend(
        self, model: PublishedModel, record: FileRecord, part: VerdictPart
    ) -> CraftcacheError | None:
        """Have a model's file, or its index, made anew; the error if that fails."""
        own = next(each for each in model.manifest.files if each.path == record.path)
        failure = None
        try:
            await self._mender.mend(model.key, model.manifest, own.filename)
        except (CraftcacheError, OSError) as error:  # what is in its way is in no other's
            failure = _as_error(error, model.manifest.source)
        self._tell(model.manifest.source, own.filename, part, failure)
        return failure

    def _tell(
        self, source: str, filename: str, part: VerdictPart, failure: CraftcacheError | None
    ) -> None:
        """Tell of something that was not right, and whether it is now."""
        about = {"source": source, "file": filename, "part": part}
        if failure is None:
            log.warning("%s: %s (%s) was not right, and is mended", source, filename, part)
            self._events.tell("mended", **about)
        else:
            log.error("%s: %s (%s) is not mended: %s", source, filename, part, failure.message)
            self._events.tell("not_mended", **about, problem=failure.to_problem())

    async def _examine_index(self, model: PublishedModel, record: FileRecord) -> list[Verdict]:
        """Compare the index of a model's file with its digest; one that differs is made anew.

        Of a superseded revision nobody is handed it.
        """
        if model.manifest.superseded:
            return []
        own = next(each for each in model.manifest.files if each.path == record.path)
        if own.index_sha256 is None or not is_checkpoint(own.filename):
            return []
        if await self._store.index_files.is_right(own):
            return []
        failure = await self._mend(model, own, "index")
        return _about(model, own, "wrong" if failure else "mended", "index", None, failure)

    async def _mend_manifest(self, damaged: DamagedManifest) -> Verdict:
        failure = await self._publish_anew(damaged)
        self._tell(damaged.shown, damaged.path, "manifest", failure)
        return Verdict(
            damaged.shown,
            damaged.path,
            damaged.key,
            "wrong" if failure else "mended",
            "manifest",
            damaged.quarantined,
            failure,
        )

    async def _publish_anew(self, damaged: DamagedManifest) -> CraftcacheError | None:
        """Publish the model of a damaged manifest anew; the error if that fails."""
        if damaged.is_restored:
            return None
        if damaged.is_newer:
            return CraftcacheError(
                "its manifest is of a version that this release does not know; the cache is not",
                source=damaged.shown,
                hint=f"craftcache warm {damaged.source.spelled} publishes it anew, as a load does"
                if damaged.source
                else "Remove the file, or install the release that wrote it",
            )
        if damaged.source is None:
            return CraftcacheError(
                "the manifest cannot be read, and its source is not known",
                source=damaged.shown,
                hint="Warm again what is missing now",
            )
        try:
            await self._mender.publish_anew(
                damaged.source,
                damaged.filenames,
                as_need=damaged.as_need,
                superseded=damaged.superseded,
            )
        except (CraftcacheError, OSError) as error:
            return _as_error(error, damaged.shown)
        return None


def _about(
    model: PublishedModel,
    record: FileRecord,
    outcome: Outcome,
    part: VerdictPart,
    quarantined: str | None = None,
    failure: CraftcacheError | None = None,
) -> list[Verdict]:
    """The verdict on each file of a model that stands at the path of ``record``."""
    source = model.manifest.source
    return [
        Verdict(source, each.filename, each.sha256, outcome, part, quarantined, failure)
        for each in model.manifest.files
        if each.path == record.path
    ]


def _as_error(error: Exception, source: str) -> CraftcacheError:
    if isinstance(error, CraftcacheError):
        return error
    return CraftcacheError(str(error), source=source, hint="Move away what is in the way")
