"""A worker's own fetch without a daemon: one file after the other, then published together.

It publishes as the daemon would. Publishing serves later loads and must not fail this one: where a
lock is held for long or the cache cannot be written, the verified files are used all the same, and
the answer says why they were not kept.

Lock order: the locks of a repository's blobs, sorted by ETag, or the one lock of a URL's source;
inside them, for one rename, the directory's lock of cache.placing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from craftcache.cache.manifest import files_revision, manifest_key
from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.cache.publish import Verified, publish_hub, publish_url
from craftcache.cache.signed_urls import same_file
from craftcache.checkpoint.filenames import is_checkpoint, is_pickled
from craftcache.checkpoint.inspection import inspect
from craftcache.config import choose_insecure_hosts
from craftcache.digests import Digest, Promise, hash_stamped
from craftcache.errors import NotACheckpoint, UnsafeCheckpoint
from craftcache.network.token import authorization
from craftcache.origins.hub import HubApi, commit_origin, hub_endpoint
from craftcache.origins.policy import UrlPolicy
from craftcache.sources import NO_SELECTION, shown_url
from craftcache.wire import Loaded, Progress

from .abandonable import call_apart

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.hub_cache import HubTree
    from craftcache.daemon.transport import Cancellation
    from craftcache.locked import LockedRevision
    from craftcache.origins.hub import HubFile
    from craftcache.sources import HubSource, Selection, UrlSource

    from .stream import Download

__all__ = ["OwnFetchRequest", "OwnFetchResult", "Report", "fetch_hub", "fetch_url"]

Report: TypeAlias = Callable[[Progress], None]

HUB_SECONDS = 10.0
"""Time that the Hub may take to describe a file."""


@dataclass(frozen=True, slots=True)
class OwnFetchResult:
    """The result of a worker's own fetch.

    Attributes:
        files: The open files; the caller closes them.
        bytes_fetched: Bytes downloaded.
        bytes_reused: Bytes that were in the cache before.
        not_kept: Reason why the files were not published; None where they were.
        kept_in: The cache directory that they were published in; None where they were not.
    """

    files: Loaded
    bytes_fetched: int
    bytes_reused: int
    not_kept: str | None
    kept_in: Path | None = None


@dataclass(frozen=True, slots=True)
class OwnFetchRequest:
    """Which files of a source are to be fetched: named, selected by patterns, or locked.

    Attributes:
        names: Their names; empty where they are selected.
        selection: Patterns of their names.
        lock: The revision that they must be of, and their digests.
    """

    names: tuple[str, ...] = ()
    selection: Selection = NO_SELECTION
    lock: LockedRevision | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """Names of those that must be checkpoints, as they were asked for by name."""
        return () if self.selection or self.lock else self.names


def fetch_hub(
    cache: CacheDir,
    source: HubSource,
    what: OwnFetchRequest,
    *,
    token: str | None,
    lock_seconds: float,
    report: Report,
    cancellation: Cancellation,
) -> OwnFetchResult:
    """Fetch files of a repository at its newest commit, or at that of a lock.

    Args:
        cache: The cache that is fetched into.
        source: The repository.
        what: Which files.
        token: Access token, sent to the Hub only; None sends none.
        lock_seconds: Time to wait for each lock of huggingface_hub.
        report: Called with progress; what it raises ends the fetch.
        cancellation: Cancels the fetch at once, also while it waits for the origin.

    Raises:
        CraftcacheError: Any of the tree but those of loading; nothing was published.
        Cancelled: The fetch was cancelled; nothing was published.
    """
    tree = cache.hub_tree(source.repo_id)
    described = _describe(source, what, token, cancellation)
    by_etag = {file.etag: file for file in described}  # two names may have one content
    with contextlib.ExitStack() as stack:
        # Sorted, so that two workers that need the same blobs cannot deadlock.
        held = [stack.enter_context(tree.lock(e, seconds=lock_seconds)) for e in sorted(by_etag)]
        obtained = {
            etag: _obtain(stack, cache, tree, source, file, what, token, report, cancellation)
            for etag, file in by_etag.items()
        }
        files = {file.filename: (obtained[file.etag], file.promise) for file in described}
        if what.lock is not None:
            for filename, (verified, _) in files.items():
                what.lock.check(filename, verified.digests.sha256, source=source.shown)
        commit = described[0].commit
        origin = commit_origin(hub_endpoint(), source, commit)
        publish = partial(
            publish_hub,
            cache,
            source,
            commit,
            files,
            origin,
            is_named=True,
            as_need=what.lock is not None and what.lock.needed_only,
            selection=what.selection,
        )
        not_kept = _kept(publish, all(held))
        opened = {name: (file, f"{origin}/{name}") for name, (file, _) in files.items()}
        return _own_fetch(source.shown, opened, commit, not_kept)


def fetch_url(
    cache: CacheDir,
    source: UrlSource,
    what: OwnFetchRequest,
    *,
    lock_seconds: float,
    report: Report,
    cancellation: Cancellation,
) -> OwnFetchResult:
    """Fetch the files of a URL; see fetch_hub."""
    from .stream import Download

    with contextlib.ExitStack() as stack:
        is_held = stack.enter_context(cache.lock(manifest_key(source), seconds=lock_seconds))
        files: dict[str, tuple[Verified, str]] = {}
        for name in what.names:
            url = source.file_url(name)
            _policy().check_source(url)
            locked = what.lock.file(name) if what.lock else None
            digest = Digest("sha256", locked.sha256) if locked else source.file_digest(name)
            wanted = Download(source.shown, url, Promise(digest=digest))
            verified = _signed_before(cache, wanted, name) or _download(
                stack, cache, wanted, name, report, cancellation
            )
            files[name] = (verified, shown_url(url))
        as_need = what.lock is not None and what.lock.needed_only
        not_kept = _kept(lambda: publish_url(cache, source, files, as_need=as_need), is_held)
        published = cache.manifest(source) if not_kept is None else None
        digests = {name: verified.digests.sha256 for name, (verified, _) in files.items()}
        revision = published.revision if published else files_revision(digests)
        return _own_fetch(source.shown, files, revision, not_kept)


def _signed_before(cache: CacheDir, wanted: Download, name: str) -> Verified | None:
    """The file from a fetch with another signature, hashed again; None if there was none."""
    published = cache.published(ours=True)
    for record in same_file(published, wanted.url, wanted.promise.digest):
        with contextlib.suppress(OSError):
            hashed = hash_stamped(cache.path(record))
            if wanted.promise.is_kept_by(hashed.digests):
                _inspect(hashed.path, name, wanted.source)
                return Verified(hashed, record.etag, 0, hashed.digests.size)
    return None


def _describe(
    source: HubSource, what: OwnFetchRequest, token: str | None, cancellation: Cancellation
) -> list[HubFile]:
    """What the Hub says of the files; only the first question names the source's revision."""
    names, revision = what.names, what.lock.revision if what.lock else source.revision
    hub = HubApi(hub_endpoint(), token, HUB_SECONDS)
    if what.selection:
        ask = partial(hub.listing, source, revision)
        listing = call_apart(ask, cancellation=cancellation)
        names = what.selection.choose(listing.filenames, source=source.shown)
        revision = listing.commit
    described: list[HubFile] = []
    for name in names:
        ask_file = partial(hub.describe, source, name, revision)
        described.append(file := call_apart(ask_file, cancellation=cancellation))
        if what.lock is not None:
            what.lock.check_promise(name, file.promise, source=source.shown)
        revision = file.commit
    return described


def _obtain(
    stack: contextlib.ExitStack,
    cache: CacheDir,
    tree: HubTree,
    source: HubSource,
    file: HubFile,
    what: OwnFetchRequest,
    token: str | None,
    report: Report,
    cancellation: Cancellation,
) -> Verified:
    """One file, from the Hub's tree if it is there and right, else fetched."""
    from .stream import Download

    report(Progress(source.shown, file.filename, 0, file.promise.size, "verifying"))
    present = tree.adopt(file.etag, file.promise)
    if present is None:
        headers = authorization(token, source=source.shown)
        wanted = Download(source.shown, file.url, file.promise, headers)
        is_asked_by_name = file.filename in what.named
        return _download(
            stack,
            cache,
            wanted,
            file.filename,
            report,
            cancellation,
            etag=file.etag,
            is_asked_by_name=is_asked_by_name,
        )
    _inspect(
        present.path, file.filename, source.shown, is_asked_by_name=file.filename in what.named
    )
    return Verified(present, file.etag, 0, present.digests.size)


def _download(
    stack: contextlib.ExitStack,
    cache: CacheDir,
    wanted: Download,
    name: str,
    report: Report,
    cancellation: Cancellation,
    *,
    etag: str | None = None,
    is_asked_by_name: bool = True,
) -> Verified:
    """Fetch one file into staging, verify and inspect it; ``stack`` removes it from there."""
    from .stream import download

    fetched = download(
        wanted,
        staging=cache.staging,
        check_url=_policy().check_url,
        report=lambda done, total: report(Progress(wanted.source, name, done, total, "fetching")),
        cancellation=cancellation,
    )
    stack.callback(cache.discard, fetched.file)
    _inspect(fetched.file.path, name, wanted.source, is_asked_by_name=is_asked_by_name)
    return Verified(fetched.file, etag or fetched.etag, fetched.file.digests.size, 0)


def _policy() -> UrlPolicy:
    return UrlPolicy(insecure_hosts=choose_insecure_hosts(), hub_endpoint=hub_endpoint())


def _inspect(path: Path, filename: str, source: str, *, is_asked_by_name: bool = True) -> None:
    """Refuse a checkpoint that cannot be loaded safely; what was not named need not be one."""
    if not (is_checkpoint if is_asked_by_name else is_pickled)(filename):
        return
    try:
        inspect(path, source=source)
    except (NotACheckpoint, UnsafeCheckpoint) as error:
        if is_asked_by_name or isinstance(error, UnsafeCheckpoint):
            raise error.in_file(filename) from error


def _kept(publish: Callable[[], object], is_held: bool) -> str | None:
    """Publish; returns the reason if it could not be done, else None."""
    if not is_held:
        return "another process holds the cache's lock"
    try:
        publish()
    except OSError as error:
        return f"the cache cannot be written ({error})"
    return None


def _own_fetch(
    source: str, files: dict[str, tuple[Verified, str]], revision: str, not_kept: str | None
) -> OwnFetchResult:
    opened = tuple(
        OpenFile(
            FileInfo.of(name, verified.digests, origin),
            os.open(verified.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK),
        )
        for name, (verified, origin) in files.items()
    )
    return OwnFetchResult(
        Loaded(source, revision, opened, "origin"),
        sum(verified.bytes_fetched for verified, _ in files.values()),
        sum(verified.bytes_reused for verified, _ in files.values()),
        not_kept,
    )
