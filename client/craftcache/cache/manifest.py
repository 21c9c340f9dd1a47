"""A manifest: the verified files that a source consists of at one revision.

Stored as ``manifests/<key>.json`` in the cache directory. Renaming it into place is the single
moment at which a model exists for craftcache. Format, version 1::

    {"version": 1,
     "key": "<64 hex>",               that the file is named by
     "source": "org/name",            as shown to people; a URL's query is left out
     "revision": "<40 hex>",          a commit; of a URL or a watch, a digest over its files
     "published_at": "2026-01-31T12:00:00Z",
     "files": [{"filename": "state_dict.bin",
                "path": "models--org--name/blobs/<etag>",   below the cache directory
                "sha256": "<64 hex>", "size": 1336949,
                "origin": "https://...",                    without query
                "etag": "<validator>" or null,
                "verified_at": "2026-01-31T12:00:00Z",
                "inode": 12345, "mtime_ns": 1769860800000000000,
                "index_sha256": "<64 hex>" or null}],
     "needs": [{"source": "t5-base", "why": "the text encoder that state_dict.bin names",
                "filenames": ["config.json"], "one_of": [["model.safetensors"], ...],
                "optional": ["spiece.model", ...]}],
     "unmet": [{"what": "...", "why": "...", "hint": "..."}],
     "needed_only": true,                                    if cached as a dependency only
     "selections": [{"include": ["*.json"], "exclude": []}],    only if files were selected so
     "superseded": true,                                     if a newer revision took its place
     "watched": {"directory": "/runs/a/export", "generation": 3},   of a watch only
     "checksum": "<64 hex>"}          over all else, see craftcache.cache.sealed

``selections`` are the patterns of which all files of that revision are among ``files``.
``needs`` and ``unmet`` are the model's dependencies, see craftcache.dependencies; a manifest of an
earlier release has neither.

``inode`` and ``mtime_ns`` are of the moment of publication, for readers of release 0.1.0; whether a
file was touched since is told by its stamps, see craftcache.cache.stamps. A manifest of that
release has neither key nor checksum nor digests of indexes: its files are hashed once, and their
indexes made anew, before any of them is served.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from craftcache.dependencies import Dependency, UnmetDependency
from craftcache.digests import Digest, Promise, Stamp
from craftcache.sources import (
    NO_SELECTION,
    HubSource,
    Selection,
    UrlSource,
    check_filename,
    parse,
)

from .manifest_values import (
    ManifestError,
    count_of,
    filenames_of,
    flag_of,
    is_sha256,
    list_of,
    revision_of,
    sha256_of,
    shown_time,
    source_of,
    text_of,
    time_of,
)
from .sealed import CHECKSUM, check_seal, seal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from craftcache.digests import Digests
    from craftcache.locked import LockedRevision
    from craftcache.sources import RemoteSource

__all__ = [
    "FileRecord",
    "Watched",
    "Manifest",
    "ManifestError",
    "is_newer",
    "manifest_key",
    "files_revision",
    "now",
]

VERSION = 1
MAX_BYTES = 4 * 1024 * 1024
"""Bytes of a manifest's file; the largest export's manifest takes a hundredth of that."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One verified file of a source.

    Attributes:
        filename: Name as the source lists it.
        path: Path of the blob, relative to the cache directory, POSIX form.
        sha256: Digest of all its bytes, in hex.
        size: Size in bytes.
        origin: Address of the file as the origin that described it gave it, without its query.
            The bytes may have come from elsewhere: a mirror, another model, huggingface_hub's tree.
        verified_at: Time when its bytes were last hashed, UTC.
        inode: Inode number of the blob when it was verified.
        mtime_ns: Time of the blob's last write when it was verified, in ns since the epoch.
        etag: The origin's validator, unquoted, or None.
        index_sha256: Digest of the bytes of its index, in hex; None where it was not inspected.
    """

    filename: str
    path: str
    sha256: str
    size: int
    origin: str
    verified_at: datetime
    inode: int
    mtime_ns: int
    etag: str | None = None
    index_sha256: str | None = None

    @classmethod
    def of(
        cls,
        filename: str,
        path: str,
        digests: Digests,
        stamp: Stamp,
        *,
        origin: str,
        etag: str | None,
        verified_at: datetime,
        index_sha256: str | None = None,
    ) -> FileRecord:
        """The record of a verified file that stands at ``path``."""
        return cls(
            filename=filename,
            path=path,
            sha256=digests.sha256,
            size=digests.size,
            origin=origin,
            verified_at=verified_at,
            inode=stamp.inode,
            mtime_ns=stamp.mtime_ns,
            etag=etag,
            index_sha256=index_sha256,
        )

    @property
    def stamp(self) -> Stamp:
        """Stamp of the blob when it was verified."""
        return Stamp(self.size, self.inode, self.mtime_ns)

    @property
    def promise(self) -> Promise:
        """The promise that a file must keep to be this one."""
        return Promise(self.size, Digest("sha256", self.sha256), self.etag)


@dataclass(frozen=True, slots=True)
class Watched:
    """Where a watch's files come from.

    Attributes:
        directory: The export directory that is watched.
        generation: Number of the generation, counted from 1.
    """

    directory: str
    generation: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files and dependencies of a source at one revision.

    Attributes:
        source: The source as shown to people, without secrets.
        revision: Commit of the repository; for a URL or a watch, a digest over its files.
        files: Records of its files, by name.
        published_at: Time when this revision was published, UTC.
        watched: Directory and number of a watch's generation; None for other sources.
        needs: Dependencies: other sources that it cannot be loaded without.
        unmet: Dependencies that no cache can hold.
        needed_only: Whether it was never asked for by name: it is cached as a dependency, and is
            removed with the last model that depends on it.
        selections: Selections of which the revision's files are all in ``files``.
        superseded: Whether it is an earlier revision of a source that has moved on since, and was
            not asked for by its own name: the first to go when room is wanted.
    """

    source: str
    revision: str
    files: tuple[FileRecord, ...]
    published_at: datetime
    watched: Watched | None = None
    needs: tuple[Dependency, ...] = ()
    unmet: tuple[UnmetDependency, ...] = ()
    needed_only: bool = False
    selections: tuple[Selection, ...] = ()
    superseded: bool = False

    def file(self, filename: str) -> FileRecord | None:
        """The record of ``filename``, or None where the manifest has no such file."""
        return next((record for record in self.files if record.filename == filename), None)

    def select(
        self, source: RemoteSource, filenames: Iterable[str]
    ) -> tuple[FileRecord, ...] | None:
        """The records of ``filenames``; None unless each is there and is what ``source`` promises.

        The same URL may be named with a digest that the file recorded for it does not have.
        """
        records = []
        for filename in filenames:
            record = self.file(filename)
            promised = source.file_digest(filename) if isinstance(source, UrlSource) else None
            if record is None or not record.sha256.startswith(promised.hex if promised else ""):
                return None
            records.append(record)
        return tuple(records)

    @property
    def is_by_name(self) -> bool:
        """Whether it was asked for by its own name, and not kept for another reason alone."""
        return not (self.needed_only or self.superseded)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(record.size for record in self.files)

    def is_locked_by(self, lock: LockedRevision) -> bool:
        """Whether it is the revision that a lock means, with all its files."""
        digests = {record.filename: record.sha256 for record in self.files}
        has_commits = isinstance(parse(self.source), HubSource)
        return lock.is_met_by(self.revision, digests, has_commits=has_commits)

    @property
    def needed_keys(self) -> frozenset[str]:
        """Keys of the manifests of its dependencies."""
        return frozenset(manifest_key(need.parsed) for need in self.needs)

    @classmethod
    def merged(
        cls,
        known: Manifest | None,
        source: RemoteSource,
        commit: str | None,
        records: Iterable[FileRecord],
        *,
        as_need: bool = False,
        selection: Selection = NO_SELECTION,
    ) -> Manifest:
        """The manifest that publishes ``records``, beside what ``known`` has of the same revision.

        Args:
            known: The manifest that is published now, or None.
            source: The source that the manifest is for.
            commit: The revision; None for a source that has none but its files.
            records: New, or in place of those of the same name.
            as_need: Whether it is published only because another model needs it. A source that was
                once asked for by name stays ``needed_only=False``.
            selection: The selection that all ``records`` together are, if they are one.
        """
        keeps = known is not None and commit in (None, known.revision)
        files = {record.filename: record for record in (known.files if known and keeps else ())}
        files |= {record.filename: record for record in records}
        ordered = tuple(files[name] for name in sorted(files))
        digests = {record.filename: record.sha256 for record in ordered}
        revision = commit or files_revision(digests)
        needed_only = as_need and (known is None or known.needed_only)
        selections = dict.fromkeys(known.selections if known and keeps else ())
        selections |= {selection: None} if selection else {}
        return cls(
            source.shown,
            revision,
            ordered,
            now(),
            needed_only=needed_only,
            selections=tuple(selections),
        )

    def dump(self, key: str | None = None) -> bytes:
        """The manifest as the content of the file that is named by ``key``."""
        named = {} if key is None else {"key": key}
        return seal({"version": VERSION} | named | self.to_fields())

    def to_fields(self) -> dict[str, Any]:
        """The manifest as a JSON object, times in RFC 3339."""
        fields = asdict(self)
        fields["published_at"] = shown_time(self.published_at)
        for record in fields["files"]:
            record["verified_at"] = shown_time(record["verified_at"])
        if self.watched is None:
            del fields["watched"]
        for key in ("needed_only", "selections", "superseded"):
            if not fields[key]:
                del fields[key]
        return fields

    @classmethod
    def parse(cls, data: bytes, key: str | None = None) -> Manifest:
        """Read a manifest, trusting nothing.

        Args:
            data: The content of its file.
            key: Key that the file is named by; None if that is not to be checked.

        Raises:
            ManifestError: It is malformed, damaged, of a newer version or another file's, or names
                a path outside the cache.
        """
        try:
            raw = json.loads(data)
            if raw["version"] != VERSION:
                raise ManifestError(f"manifest version {raw['version']!r} is not {VERSION}")
            _check_whole(raw, key)
            return cls(
                source=source_of(raw["source"]),
                revision=revision_of(raw["revision"]),
                files=tuple(_record(item) for item in raw["files"]),
                published_at=time_of(raw["published_at"]),
                watched=_watched(raw.get("watched")),
                needs=tuple(_need(item) for item in list_of(raw.get("needs", []))),
                unmet=tuple(_unmet(item) for item in list_of(raw.get("unmet", []))),
                needed_only=flag_of(raw.get("needed_only", False)),
                selections=tuple(_selection(item) for item in list_of(raw.get("selections", []))),
                superseded=flag_of(raw.get("superseded", False)),
            )
        except ManifestError:
            raise
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ManifestError(f"malformed manifest: {error!r}") from error


def is_newer(data: bytes) -> bool:
    """Whether a manifest is of a later version than this release reads, and not just damaged.

    A later version has the same checksum over whatever it says.
    """
    try:
        raw = json.loads(data)
        if type(raw["version"]) is not int or raw["version"] <= VERSION:
            return False
        check_seal(raw)
    except (KeyError, TypeError, ValueError, RecursionError):
        return False
    return True


def manifest_key(source: RemoteSource) -> str:
    """The name under which the manifest of ``source`` is kept: 64 hex digits."""
    return _sha256(str(source))


@lru_cache(maxsize=4096)
def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> datetime:
    """The present moment, UTC, to the second: as precise as a manifest keeps it."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def files_revision(digests: Mapping[str, str]) -> str:
    """The revision of a source that has no commits: 40 hex digits over its files.

    Args:
        digests: The sha256 of each, by name.
    """
    lines = sorted(f"{sha256}  {filename}\n" for filename, sha256 in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:40]


def _check_whole(raw: dict[str, Any], key: str | None) -> None:
    """Refuse a manifest whose checksum is wrong; release 0.1.0 wrote none."""
    if CHECKSUM in raw:
        check_seal(raw)
    elif "key" in raw:
        raise ManifestError("it has lost its checksum")
    if key is not None and not (raw.get("key", key) == key and _is_named(raw["source"], key)):
        raise ManifestError("it is another source's")


def _is_named(shown: object, key: str) -> bool:
    """Whether the manifest of that source has that key, or a key that begins with it.

    Of a URL with a query that cannot be told: the query is no part of what is shown.
    """
    source = parse(source_of(shown))
    is_hidden = isinstance(source, UrlSource) and "?" in source.url
    return is_hidden or manifest_key(source) == key.partition("-")[0]


def _record(raw: dict[str, Any]) -> FileRecord:
    sha256 = sha256_of(raw["sha256"])
    index_sha256 = raw.get("index_sha256")
    record = FileRecord(
        filename=check_filename(text_of(raw["filename"]), source="manifest"),
        path=check_filename(text_of(raw["path"]), source="manifest"),
        sha256=sha256,
        size=count_of(raw["size"]),
        origin=text_of(raw["origin"]),
        verified_at=time_of(raw["verified_at"]),
        inode=count_of(raw["inode"]),
        mtime_ns=count_of(raw["mtime_ns"]),
        etag=None if raw.get("etag") is None else text_of(raw["etag"]),
        index_sha256=None if index_sha256 is None else sha256_of(index_sha256),
    )
    name = record.path.rpartition("/")[2]
    if is_sha256(name) and name != sha256:  # ours, and the Hub's of large files, are named so
        raise ManifestError(f"{record.path} is no file of that sha256")
    return record


def _need(raw: dict[str, Any]) -> Dependency:
    """A need; its source is fetched and its names are looked for, so both are checked."""
    need = Dependency(
        text_of(raw["source"]),
        text_of(raw["why"]),
        filenames_of(raw["filenames"]),
        tuple(filenames_of(group) for group in list_of(raw["one_of"])),
        filenames_of(raw["optional"]),
    )
    _ = need.parsed
    return need


def _unmet(raw: dict[str, Any]) -> UnmetDependency:
    return UnmetDependency(text_of(raw["what"]), text_of(raw["why"]), text_of(raw["hint"]))


def _selection(raw: dict[str, Any]) -> Selection:
    include, exclude = (tuple(map(text_of, list_of(raw[key]))) for key in ("include", "exclude"))
    return Selection(include, exclude)


def _watched(raw: dict[str, Any] | None) -> Watched | None:
    return None if raw is None else Watched(text_of(raw["directory"]), count_of(raw["generation"]))
