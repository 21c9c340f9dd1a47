"""A worker on its own: what it does where no daemon can be had.

First what stands verified in a cache, then the origin. What it fetches it publishes as the daemon
would: in the shared cache where that belongs to the worker's own user, else in the user's own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .cache import CacheDir
from .config import choose_insecure_hosts, default_hub_cache
from .errors import NotFound, Offline
from .hub import HubFile, describe, hub_endpoint
from .manifest import FileRecord, Manifest, manifest_key
from .opened import FileInfo, OpenFile, OpenFiles
from .policy import UrlPolicy
from .publish import Verified, publish_hub, publish_url
from .sources import HubSource, UrlSource, WatchSource, shown_url
from .verify import Digest, Promise, hash_descriptor
from .wire import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from .hub_cache import HubTree
    from .sources import RemoteSource
    from .stream import Download

__all__ = ["Resolver", "Report", "OwnFetch"]

Report: TypeAlias = Callable[[Progress], None]

HUB_SECONDS = 10.0
"""How long the Hub may take to describe a file."""


@dataclass(frozen=True, slots=True)
class OwnFetch:
    """What a fetch of the worker's own brought.

    Attributes:
        files: Open; the caller closes them.
        bytes_fetched: That came over the network.
        bytes_reused: That were in the cache before.
    """

    files: OpenFiles
    bytes_fetched: int
    bytes_reused: int


class Resolver:
    """Finds and fetches without a daemon; thread-safe, for it keeps no state.

    Args:
        cache: The shared cache directory.
    """

    def __init__(self, cache: CacheDir) -> None:
        own = CacheDir(default_hub_cache())
        self._caches = (cache,) if own.root == cache.root else (cache, own)

    @property
    def own_cache(self) -> CacheDir:
        """Where this user may publish: the shared cache if it is theirs, else their own."""
        shared = self._caches[0]
        return shared if shared.is_writable() else self._caches[-1]

    def has_cached(self, source: RemoteSource, names: Sequence[str]) -> bool:
        """Whether a verified copy of all ``names`` is in a cache (a few stats)."""
        return any(self._manifest(cache, source, names) for cache in self._caches)

    def cached(self, source: RemoteSource, names: Sequence[str]) -> OpenFiles | None:
        """Open the verified copy in a cache; None where there is none."""
        for cache in self._caches:
            manifest = self._manifest(cache, source, names)
            if manifest is not None and (files := _open_published(cache, source, manifest, names)):
                return OpenFiles(manifest.revision, "cache", files)
        return None

    def path(self, source: RemoteSource, filename: str) -> Path | None:
        """Where a verified copy stands, as huggingface_hub would name it; None if nowhere."""
        for cache in self._caches:
            manifest = self._manifest(cache, source, [filename])
            record = manifest.file(filename) if manifest else None
            if manifest is not None and record is not None:
                if isinstance(source, HubSource):
                    return cache.hub_tree(source.repo_id).pointer(manifest.revision, filename)
                return cache.path(record)
        return None

    def unverified(self, source: RemoteSource, names: Sequence[str]) -> OpenFiles | None:
        """What huggingface_hub itself left in a cache, hashed now; None where it is not whole.

        A blob's name there is its digest, so it can be verified without asking the Hub.
        """
        if not isinstance(source, HubSource):
            return None
        for cache in self._caches:
            tree = cache.hub_tree(source.repo_id)
            commit = source.revision if source.is_pinned else tree.commit_of(source.revision)
            if commit and (files := _open_snapshot(tree, source, commit, names)):
                return OpenFiles(commit, "cache", files)
        return None

    def fetch(
        self, source: RemoteSource, names: Sequence[str], *, token: str | None, report: Report
    ) -> OwnFetch:
        """Fetch ``names`` from the origin at its newest revision, and publish them.

        Raises:
            CraftcacheError: Any of the tree but those of loading; nothing was published.
        """
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Offline(
                "a fetch is needed, and HF_HUB_OFFLINE is set",
                source=source.shown,
                hint="Warm the model first, or start the daemon",
            )
        cache = self.own_cache
        cache.create()
        with contextlib.ExitStack() as stack:
            match source:
                case HubSource():
                    return _fetch_hub(stack, cache, source, sorted(names), token, report)
                case UrlSource():
                    return _fetch_url(stack, cache, source, names, report)
                case WatchSource():
                    raise NotFound(
                        "only the daemon knows watches",
                        source=source.shown,
                        hint="Start craftcached, or name the directory",
                    )

    def _manifest(
        self, cache: CacheDir, source: RemoteSource, names: Sequence[str]
    ) -> Manifest | None:
        manifest = cache.manifest(source)
        records = manifest.select(source, names) if manifest else None
        if records is None or not all(cache.path(record).exists() for record in records):
            return None
        return manifest


def _open_published(
    cache: CacheDir, source: RemoteSource, manifest: Manifest, names: Sequence[str]
) -> dict[str, OpenFile] | None:
    """Open a manifest's files; hash those that somebody else may have touched."""
    is_trusted = cache.is_trusted(cache.manifest_path(source))
    files: dict[str, OpenFile] = {}
    with contextlib.ExitStack() as opened:
        for name in names:
            record = manifest.file(name)
            descriptor = _open(cache.path(record)) if record else None
            if record is None or descriptor is None:
                return None
            opened.callback(os.close, descriptor)
            is_known = is_trusted and cache.is_trusted(cache.path(record))
            if not (is_known and record.describes(os.fstat(descriptor))) and (
                hash_descriptor(descriptor).sha256 != record.sha256
            ):
                return None
            index = _read_index(cache, record) if is_trusted else None
            files[name] = OpenFile(FileInfo.recorded(record), descriptor, index)
        opened.pop_all()
    return files


def _open_snapshot(
    tree: HubTree, source: HubSource, commit: str, names: Sequence[str]
) -> dict[str, OpenFile] | None:
    files: dict[str, OpenFile] = {}
    with contextlib.ExitStack() as opened:
        for name in names:
            etag = tree.etag_of(commit, name)
            digest = Digest.from_hub_etag(etag) if etag else None
            descriptor = _open(tree.blob(etag)) if etag else None
            if digest is None or descriptor is None:
                return None
            opened.callback(os.close, descriptor)
            digests = hash_descriptor(descriptor, git=digest.algorithm == "git-sha1")
            if not Promise(digest=digest).is_kept_by(digests):
                return None
            origin = f"{hub_endpoint()}/{source.repo_id}/resolve/{commit}/{name}"
            files[name] = OpenFile(FileInfo.of(name, digests, origin), descriptor)
        opened.pop_all()
    return files


def _fetch_hub(
    stack: contextlib.ExitStack,
    cache: CacheDir,
    source: HubSource,
    names: Sequence[str],
    token: str | None,
    report: Report,
) -> OwnFetch:
    tree = cache.hub_tree(source.repo_id)
    described: list[HubFile] = []
    files: dict[str, tuple[Verified, Promise]] = {}
    all_held = True
    for name in names:
        revision = described[0].commit if described else source.revision
        file = describe(
            source,
            name,
            revision=revision,
            endpoint=hub_endpoint(),
            token=token,
            timeout=HUB_SECONDS,
        )
        described.append(file)
        all_held &= stack.enter_context(tree.lock(file.etag))
        report(Progress(source.shown, name, 0, file.promise.size, "verifying"))
        present = tree.adopt(file.etag, file.promise)
        if present is not None:
            verified = Verified(tree.blob(file.etag), present, file.etag, 0, present.size)
        else:
            from .stream import Download

            headers = {"Authorization": f"Bearer {token}"} if token else {}
            wanted = Download(source.shown, file.url, file.promise, headers)
            verified = _download(stack, cache, wanted, name, report, etag=file.etag)
        files[name] = (verified, file.promise)
    commit = described[0].commit
    origin = f"{hub_endpoint()}/{source.repo_id}/resolve/{commit}"
    opened = _open_verified(
        {name: (verified, f"{origin}/{name}") for name, (verified, _) in files.items()}, commit
    )
    if all_held:
        publish_hub(cache, source, commit, files, origin)
    return _own_fetch(opened, [verified for verified, _ in files.values()])


def _fetch_url(
    stack: contextlib.ExitStack,
    cache: CacheDir,
    source: UrlSource,
    names: Sequence[str],
    report: Report,
) -> OwnFetch:
    from .stream import Download

    is_held = stack.enter_context(cache.lock(manifest_key(source)))
    files: dict[str, tuple[Verified, str]] = {}
    for name in names:
        url = source.file_url(name)
        wanted = Download(source.shown, url, Promise(digest=source.file_digest(name)))
        verified = _download(stack, cache, wanted, name, report, etag=None)
        files[name] = (verified, shown_url(url))
    opened = _open_verified(files, "")
    if is_held:
        opened.revision = publish_url(cache, source, files).revision
    return _own_fetch(opened, [verified for verified, _ in files.values()])


def _download(
    stack: contextlib.ExitStack,
    cache: CacheDir,
    wanted: Download,
    name: str,
    report: Report,
    *,
    etag: str | None,
) -> Verified:
    """One file into staging, verified and safe to load; ``stack`` removes it from there."""
    from . import weights_only
    from .stream import download

    policy = UrlPolicy(insecure_hosts=choose_insecure_hosts(), hub_endpoint=hub_endpoint())
    fetched = download(
        wanted,
        staging=cache.staging,
        check_url=policy.check_url,
        report=lambda done, total: report(Progress(wanted.source, name, done, total, "fetching")),
    )
    stack.callback(fetched.path.unlink, missing_ok=True)
    weights_only.load(fetched.path, map_location="meta", source=wanted.source)
    return Verified(fetched.path, fetched.digests, etag or fetched.etag, fetched.digests.size, 0)


def _open_verified(files: dict[str, tuple[Verified, str]], revision: str) -> OpenFiles:
    opened: dict[str, OpenFile] = {}
    for name, (verified, origin) in files.items():
        descriptor = os.open(verified.path, os.O_RDONLY | os.O_CLOEXEC)
        opened[name] = OpenFile(FileInfo.of(name, verified.digests, origin), descriptor)
    return OpenFiles(revision, "origin", opened)


def _own_fetch(opened: OpenFiles, files: Sequence[Verified]) -> OwnFetch:
    return OwnFetch(
        opened,
        sum(file.bytes_fetched for file in files),
        sum(file.bytes_reused for file in files),
    )


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _read_index(cache: CacheDir, record: FileRecord) -> bytes | None:
    path = cache.index_path(record.sha256)
    if not cache.is_trusted(path):
        return None
    try:
        return path.read_bytes()
    except OSError:
        return None
