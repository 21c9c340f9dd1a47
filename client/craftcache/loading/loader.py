"""From a source's name to open, verified files: the resolution order and its fallbacks.

1. an existing local file, 2. an existing local directory: read in this process, but for an export
directory that the daemon says it watches, of which the last verified generation is served;
3. a URL, 4. a Hub id, and watches: asked of the daemon, and had without it where it is absent,
refuses, goes silent, speaks another protocol or fails by its own fault.

What is the user's to mend (no such repository, a wrong hash, an unsafe checkpoint, a full disk) is
raised and not tried another way, with one exception: what the daemon may not read, a process with
a token of its own may fetch for itself. The token never crosses the socket.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from craftcache.cache.directory import CacheDir
from craftcache.cache.opened import FileInfo
from craftcache.config import choose_cache_dir, choose_socket_dir
from craftcache.daemon.client import (
    CachedModel,
    DaemonClient,
    DaemonUnavailable,
    WarmedModel,
    own_token,
)
from craftcache.dependencies import DependencyState
from craftcache.errors import NotMounted, Offline, Unavailable
from craftcache.fallback.resolver import Resolver
from craftcache.sources import FILENAMES, LocalDirectory, LocalFile, WatchSource, wanted_files

from .local import open_local, resolve_local

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

    from craftcache.cache.opened import OpenFiles
    from craftcache.daemon.transport import Cancellation
    from craftcache.fallback.own_fetch import OwnFetch
    from craftcache.sources import RemoteSource, Source
    from craftcache.wire import Generation, Progress

__all__ = ["Fallback", "Loader"]

log = logging.getLogger("craftcache")

Fallback: TypeAlias = Literal["origin", "cache", "none"]

COLD_SECONDS = 15.0
"""How long a silent daemon is waited for where only the origin is left."""

FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 5.0
"""Between two attempts to reach a daemon that is away while one of its watches is followed."""

WARM_SECONDS = 1.0
"""How long it is waited for where a verified copy is in a cache."""


class Loader:
    """Opens what a source names; thread-safe, fork-safe.

    Args:
        socket_dir: Of the daemon; None chooses as the contract says.
        cache_dir: The shared cache as this process sees it; None chooses likewise.
        fallback: What to do without the daemon: fetch from the ``origin`` what no ``cache`` has,
            use only what a cache has, or ``none``: raise.
        cold_seconds: How long a silent daemon is waited for where only the origin is left.
    """

    def __init__(
        self,
        *,
        socket_dir: str | os.PathLike[str] | None,
        cache_dir: str | os.PathLike[str] | None,
        fallback: Fallback,
        cold_seconds: float = COLD_SECONDS,
    ) -> None:
        if fallback not in get_args(Fallback):
            raise ValueError(f"fallback is {fallback!r}, not one of {get_args(Fallback)}")
        self.socket_dir = choose_socket_dir(socket_dir)
        self.cache_dir = choose_cache_dir(cache_dir)
        self.fallback = fallback
        self._cold_seconds = cold_seconds
        self._cache = CacheDir(self.cache_dir)
        self._resolver = Resolver(self._cache)
        self._node = DaemonClient(self.socket_dir, self.patience)
        self._has_warned = False

    def close(self) -> None:
        """Close idle connections; the loader stays usable."""
        self._node.close()

    def open(
        self,
        source: Source,
        names: Sequence[str],
        *,
        cancellation: Cancellation,
        report: Callable[[Progress], None],
    ) -> OpenFiles:
        """Open ``names`` of ``source``, bringing them first where they are missing.

        Args:
            source: Whose they are.
            names: Of files.
            cancellation: Ends the wait.
            report: Called with progress.

        Raises:
            CraftcacheError: Any of the tree but UnknownDevice.
        """
        match source:
            case LocalFile(path):
                return open_local(dict.fromkeys(names, path))
            case LocalDirectory(path):
                watch = self.watch_of(path, names, cancellation=cancellation)
                if watch is None:
                    return open_local({name: path / name for name in names})
                source = watch
        try:
            return self._node.open(source, names, cancellation, report)
        except DaemonUnavailable as away:
            return self._open_alone(source, names, away, cancellation, report)

    def resolve(
        self,
        source: Source,
        filename: str,
        *,
        cancellation: Cancellation,
        report: Callable[[Progress], None],
    ) -> Path:
        """Where a file stands for this process, brought there first where it is missing.

        Raises:
            NotMounted: The daemon has it, and this process does not see the same file under its
                own cache directory.
            CraftcacheError: Any of the tree but UnknownDevice.
        """
        match source:
            case LocalFile(path):
                return path
            case LocalDirectory(path):
                return resolve_local(path / filename)
        (name,) = wanted_files(source, (filename,))
        try:
            resolved = self._node.resolve(source, name, cancellation, report)
        except DaemonUnavailable as away:
            self._open_alone(source, (name,), away, cancellation, report).close()
            if own := self._resolver.path(source, name):
                return own
            raise Unavailable(
                "it was fetched, and could not be kept in a cache",
                source=source.shown,
                hint="Try again, or use load instead",
            ) from away
        path = self.cache_dir / resolved.path
        try:
            status = path.stat()
        except OSError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != (resolved.device, resolved.inode):
            raise NotMounted(
                f"the daemon has {filename}, and {self.cache_dir} is not its cache directory",
                source=source.shown,
                hint="Mount the cache and set CRAFTCACHE_CACHE_DIR, or use load instead",
            )
        return path

    def warm(
        self,
        source: RemoteSource,
        filenames: Sequence[str],
        *,
        resident: bool = False,
        pair_only: bool = False,
        cancellation: Cancellation,
        report: Callable[[Progress], None],
    ) -> WarmedModel:
        """Bring one source to its newest revision; into memory too, where the daemon does it.

        What the source needs is brought by the daemon alone.
        """
        names = wanted_files(source, filenames)
        try:
            return self._node.warm(
                *(source, filenames, cancellation, report), resident=resident, pair_only=pair_only
            )
        except DaemonUnavailable as away:
            self._permit_origin(source, away)
            self._warn(away)
            if not pair_only:
                log.warning(
                    "%s: without the daemon its own files are warmed, and nothing that it needs",
                    source.shown,
                )
            fetched = self._fetch(source, names, away, cancellation, report)
            with fetched.files as files:
                if fetched.not_kept is not None:
                    raise Unavailable(
                        f"it was fetched, and not kept: {fetched.not_kept}",
                        source=source.shown,
                        hint="Try again, or set CRAFTCACHE_CACHE_DIR to a cache of your own",
                    ) from away
                return WarmedModel(
                    source.shown,
                    files.revision,
                    fetched.bytes_fetched,
                    fetched.bytes_reused,
                    "origin",
                )

    def next_generation(
        self, name: str, after: int | None, *, has_daemon: bool, cancellation: Cancellation
    ) -> Generation:
        """The generation of a watch that is served, as soon as it is another than ``after``.

        Args:
            name: Of the watch.
            after: The number of the one that is known; None for whichever is served.
            has_daemon: Whether there is known to be a daemon, so that it is waited for.
            cancellation: Ends the wait.

        Raises:
            NotFound: There is no such watch, or no more.
            Unavailable: There is no daemon, and was none before.
        """
        pause = FIRST_PAUSE_SECONDS

        def heard(_progress: Progress) -> None:
            nonlocal has_daemon, pause
            has_daemon, pause = True, FIRST_PAUSE_SECONDS

        while True:
            try:
                return self._node.follow(name, after, cancellation, heard)
            except DaemonUnavailable as away:
                if not has_daemon:
                    raise _no_daemon(away, WatchSource(name)) from away
                log.info("following watch:%s goes on when the daemon is back: %s", name, away)
            cancellation.pause(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)

    def status(self, *, cancellation: Cancellation) -> dict[str, Any]:
        """What the daemon says of itself.

        Raises:
            Unavailable: There is no daemon.
        """
        try:
            return self._node.status(cancellation)
        except DaemonUnavailable as away:
            raise _no_daemon(away) from away

    def models(self, *, cancellation: Cancellation) -> list[CachedModel]:
        """What is cached: by the daemon's account, or as the cache directory shows without it."""
        try:
            return self._node.models(cancellation)
        except DaemonUnavailable:
            manifests = sorted(self._cache.manifests(), key=lambda manifest: manifest.source)
            return [
                CachedModel(
                    m.source,
                    m.revision,
                    tuple(map(FileInfo.recorded, filter(self._cache.is_intact, m.files))),
                    needs=tuple(
                        DependencyState(need.parsed.shown, need.why, self._cache.has_need(need))
                        for need in m.needs
                    ),
                    unmet=m.unmet,
                    is_needed_only=m.needed_only,
                )
                for m in manifests
            ]

    def watch_of(
        self, path: Path, names: Sequence[str], *, cancellation: Cancellation
    ) -> WatchSource | None:
        """The watch that serves ``names`` of a local directory, if the daemon has one of it."""
        if not set(names) <= set(FILENAMES.values()):
            return None
        try:
            status = path.stat()
            return self._node.watch_of(status.st_dev, status.st_ino, cancellation)
        except (OSError, DaemonUnavailable):
            return None

    def _open_alone(
        self,
        source: RemoteSource,
        names: Sequence[str],
        away: DaemonUnavailable,
        cancellation: Cancellation,
        report: Callable[[Progress], None],
    ) -> OpenFiles:
        if self.fallback == "none":
            raise away.refusal or _no_daemon(away, source) from away
        self._warn(away)
        files = self._resolver.cached(source, names)
        if files is None:
            try:
                self._permit_origin(source, away)
                fetched = self._fetch(source, names, away, cancellation, report)
                if fetched.not_kept is not None:
                    log.warning("%s is loaded and not kept: %s", source.shown, fetched.not_kept)
                files = fetched.files
            except (Offline, Unavailable):
                files = self._resolver.unverified(source, names)
                if files is None:
                    raise
        files.fallback_reason = str(away)
        return files

    def obstacle(self, *, is_cached: bool) -> str | None:
        """Why a source may not be had without the daemon; None where it may.

        Args:
            is_cached: Whether a cache has it, so that it need not be fetched.
        """
        if self.fallback == "none":
            return "fallback='none' forbids to do without the daemon"
        if is_cached:
            return None
        if _is_offline():
            return "HF_HUB_OFFLINE is set"
        return None if self.fallback == "origin" else "fallback='cache' forbids it"

    def has_unverified(self, source: RemoteSource, names: Sequence[str]) -> bool:
        """Whether huggingface_hub left files of these names, to be verified when they are used."""
        return all(self._resolver.path(source, name) is not None for name in names)

    def _permit_origin(self, source: RemoteSource, away: DaemonUnavailable) -> None:
        """Raise unless this process may fetch by itself."""
        obstacle = self.obstacle(is_cached=False)
        if obstacle is None:
            return
        if away.refusal is not None:
            raise away.refusal from away
        if self.fallback == "none":
            raise _no_daemon(away, source) from away
        raise Offline(
            f"it would have to be fetched, {obstacle}, and {away}",
            source=source.shown,
            hint="Start craftcached, or warm the model first",
        ) from away

    def _fetch(
        self,
        source: RemoteSource,
        names: Sequence[str],
        away: DaemonUnavailable,
        cancellation: Cancellation,
        report: Callable[[Progress], None],
    ) -> OwnFetch:
        return self._resolver.fetch(
            source,
            names,
            token=own_token(),
            is_private=away.refusal is not None,
            report=_checked(report, cancellation),
            cancellation=cancellation,
        )

    def patience(self, source: RemoteSource | None, names: Sequence[str]) -> float:
        """How many seconds a silent daemon is waited for, by what could be had without it.

        Args:
            source: What is asked for; None of what only the daemon knows.
            names: The files that are to be opened; none for a warm, which no cached copy answers.
        """
        if self.fallback == "none" or source is None or not names:
            return self._cold_seconds
        return WARM_SECONDS if self._resolver.has_cached(source, names) else self._cold_seconds

    def _warn(self, away: DaemonUnavailable) -> None:
        """Say once why the daemon is not used; say nothing where there never was one."""
        if self._has_warned or self.socket_dir is None:
            return
        self._has_warned = True
        log.warning("loading without the daemon: %s", away)


def _checked(
    report: Callable[[Progress], None], cancellation: Cancellation
) -> Callable[[Progress], None]:
    def checked(progress: Progress) -> None:
        cancellation.check()
        report(progress)

    return checked


def _is_offline() -> bool:
    """Whether huggingface_hub is told not to fetch, and so this process by itself."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _no_daemon(away: DaemonUnavailable, source: RemoteSource | None = None) -> Unavailable:
    return Unavailable(
        str(away),
        source=source.shown if source else None,
        hint="Start craftcached, or set CRAFTCACHE_SOCKET_DIR to its socket directory",
    )
