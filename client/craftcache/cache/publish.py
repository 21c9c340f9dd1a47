"""Publication: how verified files become a model, by names that are given in one order.

    record -> blobs -> snapshot links -> manifest -> ref

The record says what is about to come into huggingface_hub's tree, see underway, until the manifest
does: what a kill leaves there is known to be ours by it, and is the first to go.
Beside the blobs of URLs stand torch.hub's links to them. The manifest's rename is the moment at
which the model exists for craftcache, the ref's the one at which it does for unmodified
huggingface_hub; before each, all that it leads to is in place and durable. A kill in between
leaves the old state whole, and blobs that the next try finds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from craftcache.dependencies import discover
from craftcache.sources import NO_SELECTION, HubSource, WatchSource, parse

from .manifest import FileRecord, Manifest, files_revision, manifest_key, now
from .underway import forget_underway, note_underway

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from craftcache.digests import Digests, HashedFile, Promise
    from craftcache.sources import RemoteSource, Selection, UrlSource

    from .directory import CacheDir
    from .manifest import Watched

__all__ = [
    "Verified",
    "publish_hub",
    "publish_url",
    "mark_asked_for",
    "mark_superseded",
    "publish_generation",
    "serve_generation",
    "record_index",
    "take_over",
]


@dataclass(frozen=True, slots=True)
class Verified:
    """A file whose bytes kept their promise, inspected if it is a checkpoint.

    The daemon does not inspect the files of dependencies until somebody asks for them by name.

    Attributes:
        file: The file, in staging or already published, with its digests and stamp.
        etag: The origin's validator; a Hub file always has one.
        bytes_fetched: Bytes downloaded for it.
        bytes_reused: Bytes of it that were on this node before.
        verified_at: Time when its bytes were hashed, UTC.
    """

    file: HashedFile
    etag: str | None
    bytes_fetched: int
    bytes_reused: int
    verified_at: datetime = field(default_factory=now)

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.file.path

    @property
    def digests(self) -> Digests:
        """Digests of all its bytes."""
        return self.file.digests


def publish_hub(
    cache: CacheDir,
    source: HubSource,
    commit: str,
    files: Mapping[str, tuple[Verified, Promise]],
    origin: str,
    *,
    is_named: bool,
    as_need: bool = False,
    selection: Selection = NO_SELECTION,
) -> Manifest:
    """Publish files of one commit of a repository.

    The caller holds the locks of the blobs, as far as they could be had, and removes the files'
    names in staging afterwards.

    Args:
        cache: The cache to publish in.
        source: The repository.
        commit: The commit that the files are of.
        files: Verified files by name, each with the promise that it was verified against.
        origin: Address that is shown as their origin, to which the file's name is added.
        is_named: Whether the Hub has just said that the source's revision is this commit, so that
            the ref is moved too. If not, huggingface_hub may have moved the ref on since the
            commit was known.
        as_need: Whether the source is published as a dependency, not because it was asked for.
        selection: The selection that ``files`` are all files of, if they are one.

    Raises:
        IntegrityError: A file was changed after it was verified; nothing is published.
        OSError: The manifest and the ref are unchanged.
    """
    tree = cache.hub_tree(source.repo_id)
    _note_underway(cache, source, commit, files, origin)
    records = []
    etags = {}
    for filename, (verified, promise) in files.items():
        etags[filename] = verified.etag or verified.digests.sha256
        blob = tree.publish_blob(verified.file, etags[filename], promise)
        records.append(
            _record(cache, filename, blob, verified, f"{origin}/{filename}", etags[filename])
        )
    tree.link_snapshot(commit, etags)
    earlier = _earlier(cache, source)
    manifest = Manifest.merged(
        earlier, source, commit, records, as_need=as_need, selection=selection
    )
    manifest = _with_needs(cache, source, manifest)
    if earlier is not None and earlier.revision != commit and not source.is_pinned:
        _keep_superseded(cache, source, earlier)
    cache.write_manifest(source, manifest)
    forget_underway(cache, f"{manifest_key(source)}-{commit}")
    if is_named:
        tree.move_ref(source.revision, commit)
    _forget_superseded(cache, HubSource(source.repo_id, commit), manifest)
    return manifest


def _note_underway(
    cache: CacheDir,
    source: HubSource,
    commit: str,
    files: Mapping[str, tuple[Verified, Promise]],
    origin: str,
) -> None:
    """Record the files that are about to come into the Hub's tree; not those that are there."""
    tree = cache.hub_tree(source.repo_id)
    coming = []
    for filename, (verified, _) in files.items():
        if verified.path.is_relative_to(cache.staging):
            etag = verified.etag or verified.digests.sha256
            blob = replace(verified.file, path=tree.blob(etag))
            coming.append(_record(cache, filename, blob, verified, f"{origin}/{filename}", etag))
    if coming:
        manifest = Manifest(source.shown, commit, tuple(coming), now())
        note_underway(cache, manifest_key(source), manifest)


def _keep_superseded(cache: CacheDir, source: HubSource, earlier: Manifest) -> None:
    """Publish the revision that a newer one is about to take the place of, under its commit.

    Its snapshot stays for programs that name it, so its bytes are counted and can be removed. What
    it needs is not kept for its sake.
    """
    pinned = HubSource(source.repo_id, earlier.revision)
    if cache.manifest_at(manifest_key(pinned), ours=True) is None:
        cache.write_manifest(pinned, _superseded(earlier, pinned))


def _superseded(manifest: Manifest, pinned: HubSource) -> Manifest:
    return replace(
        manifest, source=pinned.shown, needs=(), unmet=(), needed_only=False, superseded=True
    )


def mark_superseded(cache: CacheDir, pinned: HubSource) -> None:
    """Record that a published revision has been superseded, and was not asked for by its commit.

    Raises:
        OSError: The manifest is unchanged.
    """
    manifest = _earlier(cache, pinned)
    if manifest is not None:
        cache.write_manifest(pinned, _superseded(manifest, pinned))


def _forget_superseded(cache: CacheDir, pinned: HubSource, current: Manifest) -> None:
    """Remove the manifest of a superseded revision that has become the current one again.

    It stays where it has files that the current one lacks: no other manifest names them.
    """
    key = manifest_key(pinned)
    manifest = cache.manifest_at(key, ours=True)
    if manifest is None or not manifest.superseded:
        return
    if all(current.file(record.filename) is not None for record in manifest.files):
        cache.manifest_path(key).unlink(missing_ok=True)


def publish_url(
    cache: CacheDir,
    source: UrlSource,
    files: Mapping[str, tuple[Verified, str]],
    *,
    as_need: bool = False,
) -> Manifest:
    """Publish files of a URL; the caller removes their names in staging afterwards.

    Args:
        cache: The cache to publish in.
        source: The URL.
        files: Verified files by name, each with its address as shown to people.
        as_need: Whether the source is published as a dependency, not because it was asked for.

    Raises:
        IntegrityError: A file was changed after it was verified; nothing is published.
        OSError: The manifest is unchanged.
    """
    records = []
    for filename, (verified, origin) in files.items():
        blob = cache.url_blobs.publish(verified.file)
        cache.torch.link(origin, blob.path)
        records.append(_record(cache, filename, blob, verified, origin, verified.etag))
    earlier = _earlier(cache, source)
    manifest = Manifest.merged(earlier, source, None, records, as_need=as_need)
    manifest = _with_needs(cache, source, manifest)
    cache.write_manifest(source, manifest)
    return manifest


def mark_asked_for(cache: CacheDir, source: RemoteSource) -> Manifest | None:
    """Record that a dependency, or a superseded revision, was asked for by its own name.

    Its checkpoints are inspected by now, so its own dependencies are recorded too.

    Raises:
        OSError: The manifest is unchanged.
    """
    manifest = _earlier(cache, source)
    if manifest is not None and not manifest.is_by_name:
        closed = _with_needs(cache, source, manifest)
        manifest = replace(closed, needed_only=False, superseded=False)
        cache.write_manifest(source, manifest)
    return manifest


def publish_generation(
    cache: CacheDir, name: str, watched: Watched, files: Mapping[str, Verified]
) -> Manifest:
    """Publish a generation of a watch under its number; the served generation stays the same.

    The caller removes the files' names in staging afterwards.

    Args:
        cache: The cache to publish in.
        name: Name of the watch.
        watched: Directory and number of the generation.
        files: Verified files by name.

    Raises:
        IntegrityError: A file was changed after it was verified; nothing is published.
        OSError: The generation was not published.
    """
    records = []
    for filename, verified in sorted(files.items()):
        blob = cache.url_blobs.publish(verified.file)
        records.append(
            _record(
                cache, filename, blob, verified, f"{watched.directory}/{filename}", verified.etag
            )
        )
    revision = files_revision({record.filename: record.sha256 for record in records})
    source = WatchSource(name, watched.generation)
    manifest = Manifest(source.shown, revision, tuple(records), now(), watched)
    manifest = _with_needs(cache, source, manifest)
    cache.write_manifest(source, manifest)
    return manifest


def serve_generation(cache: CacheDir, name: str, generation: Manifest) -> Manifest:
    """Make a published generation the one that ``watch:NAME`` stands for, by one rename.

    Raises:
        OSError: The served generation is the same as before.
    """
    source = WatchSource(name)
    manifest = replace(generation, source=source.shown)
    cache.write_manifest(source, manifest)
    return manifest


def _with_needs(cache: CacheDir, source: RemoteSource, manifest: Manifest) -> Manifest:
    """The manifest with the dependencies of its files, as far as these were inspected."""
    files = tuple(
        replace(record, index_sha256=cache.index_digest(record.sha256)) for record in manifest.files
    )
    indexes = {
        record.filename: index for record in files if (index := cache.index(record)) is not None
    }
    closure = discover(indexes)
    needs = tuple(need for need in closure.needs if need.parsed != source)
    return replace(manifest, files=files, needs=needs, unmet=closure.unmet)


def record_index(cache: CacheDir, sha256: str) -> None:
    """Record a checkpoint's current index in all manifests of ours that name the checkpoint.

    A model's dependencies are found in its indexes, so they are recorded too.

    Raises:
        OSError: Some of the manifests are unchanged.
    """
    digest = cache.index_digest(sha256)
    for key, manifest in cache.holders(sha256, ours=True):
        files = tuple(
            replace(record, index_sha256=digest) if record.sha256 == sha256 else record
            for record in manifest.files
        )
        if files == manifest.files:
            continue
        changed = replace(manifest, files=files)
        if not manifest.needs and not manifest.unmet and manifest.is_by_name:
            changed = _with_needs(cache, parse(manifest.source), changed)
        cache.write_manifest_at(key, changed)


def take_over(cache: CacheDir, key: str, manifest: Manifest) -> None:
    """Write a manifest anew that others may write to, once all its files are verified.

    The digests of its indexes are found anew, and not taken from it. One that was removed or
    replaced since it was verified stays so.

    Raises:
        OSError: The manifest is unchanged.
    """
    if cache.manifest_at(key, owned=True) != manifest:
        return
    files = tuple(
        replace(record, index_sha256=cache.index_digest(record.sha256)) for record in manifest.files
    )
    cache.write_manifest_at(key, replace(manifest, files=files))


def _record(
    cache: CacheDir,
    filename: str,
    blob: HashedFile,
    verified: Verified,
    origin: str,
    etag: str | None,
) -> FileRecord:
    """The record of a verified file that was published as ``blob``."""
    return FileRecord.of(
        filename,
        cache.relative(blob.path),
        blob.digests,
        blob.stamp,
        origin=origin,
        etag=etag,
        verified_at=verified.verified_at,
    )


def _earlier(cache: CacheDir, source: RemoteSource) -> Manifest | None:
    """The manifest so far, if only trusted users can have written it."""
    return cache.manifest_at(manifest_key(source), ours=True)
