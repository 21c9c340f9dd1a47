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

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from craftcache.cache.directory import CacheDir
from craftcache.config import choose_cache_dir, choose_map, choose_socket_dir
from craftcache.daemon.client import DaemonClient
from craftcache.daemon.gpu_services import GpuServices
from craftcache.daemon.transport import Call, DaemonUnavailable
from craftcache.device.sharing import NotShared
from craftcache.errors import NotMounted, Unavailable
from craftcache.fallback.handler import FallbackHandler, is_offline
from craftcache.file_maps import may_map
from craftcache.logger import log
from craftcache.plan import Fallback, plan_load
from craftcache.sources import FILENAMES, LocalDirectory, LocalFile, WatchSource
from craftcache.wire import Follow, Identify, Load, Models, Resolve

from .local import open_local, resolve_local

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from craftcache.device.sharing import SharedDevice
    from craftcache.plan import PlanStep
    from craftcache.sources import Source
    from craftcache.wire import CachedModel, Generation, Loaded, Progress, Request

__all__ = ["Fallback", "Loader"]


AnswerT = TypeVar("AnswerT")

COLD_SECONDS = 15.0
"""Time to wait for a silent daemon if the files could otherwise only come from the origin."""

FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 5.0
"""Bounds of the pause between two attempts to reach an absent daemon while a watch is followed."""

WARM_SECONDS = 1.0
"""Time to wait for a silent daemon if a verified copy is in a cache."""


class Loader:
    """Opens the files of sources, and gets requests answered; thread-safe, fork-safe.

    It has no lock: its state is set once, but for the daemon client's, which has its own, and for
    the reasons not to share memory that were told.

    Args:
        socket_dir: The daemon's socket directory; None takes the one of the settings.
        cache_dir: The shared cache as this process sees it; None takes the one of the settings.
        fallback: What to do without the daemon.
        cold_seconds: See COLD_SECONDS.

    Attributes:
        fallback_handler: Answers requests without the daemon.
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
        self._map = choose_map()
        self._mode: Fallback = fallback
        self._cold_seconds = cold_seconds
        self._daemon = DaemonClient(self.socket_dir, self.patience)
        self._gpus = GpuServices(self.socket_dir, self.patience)
        self._told: set[str] = set()
        self.fallback_handler = FallbackHandler(
            CacheDir(self.cache_dir), fallback, may_warn=self.socket_dir is not None
        )

    def close(self) -> None:
        """Close idle connections; the loader stays usable."""
        self._daemon.close()
        self._gpus.close()

    def handle(self, request: Request[AnswerT], call: Call) -> AnswerT:
        """Answer a request: by the daemon, or by the fallback where the daemon is unavailable.

        Raises:
            CraftcacheError: Any of the tree but UnknownDevice.
        """
        try:
            return self._daemon.handle(request, call)
        except DaemonUnavailable as away:
            answer: Any = None
            try:
                answer = self.fallback_handler.handle(request, away, call)
            finally:
                if isinstance(request, Load):
                    self._daemon.fell_back(away, answer.served_by if answer else "nobody")
            return cast("AnswerT", answer)

    def plan(self, source: Source) -> tuple[PlanStep, ...]:
        """The ways that a load of ``source`` tries, in order."""
        return plan_load(
            source,
            fallback=self._mode,
            has_sockets=self.socket_dir is not None,
            is_offline=is_offline(),
        )

    def open(
        self,
        source: Source,
        names: Sequence[str],
        call: Call,
        *,
        share: SharedDevice | None = None,
    ) -> Loaded:
        """Open files of a source by its plan; missing ones are fetched first.

        Args:
            source: The source.
            names: Names of the files.
            call: Reports progress, and cancels the load.
            share: The GPU in whose memory those are that can be shared; None asks for files.

        Raises:
            NotShared: The GPU has no service, or the files are this process's own.
            CraftcacheError: Any of the tree but UnknownDevice.
        """
        for step in self.plan(source):
            if (loaded := self._take(step, source, names, call, share)) is not None:
                for file in loaded.files:
                    if file.memory_bytes is None:
                        file.mapped &= may_map(file.descriptor, self._map or loaded.map)
                return loaded
        raise AssertionError("the last way of a plan leads there or raises")

    def refuse_sharing(self, why: NotShared, source: str) -> None:
        """Say, once for each reason, that a private copy is made in place of a shared one.

        Raises:
            Unavailable: The client's fallback is ``none``.
        """
        if self._mode == "none":
            raise Unavailable(
                f"its memory cannot be shared: {why}", source=source, hint=why.hint, retryable=False
            ) from why
        if str(why) not in self._told:
            self._told.add(str(why))
            log.warning("a private copy is made, not a shared one: %s. %s", why, why.hint)

    def _take(
        self,
        step: PlanStep,
        source: Source,
        names: Sequence[str],
        call: Call,
        share: SharedDevice | None,
    ) -> Loaded | None:
        """The files by one step of the plan; None if the step does not have them.

        The step ``daemon`` includes those after it in the plan: handle goes on with the fallback
        where the daemon is unavailable.
        """
        match source:
            case LocalDirectory(path) if step.way == "watched directory":
                watch = self.watch_of(path, names, call)
                if watch is None or share is None:
                    return self._generation(watch, names, call) if watch else None
                return self._gpus.load(share.uuid, Load(watch, tuple(names)), call)
            case LocalFile() | LocalDirectory() if share is not None:
                raise NotShared(
                    "a local file is read by each process itself",
                    "Have its directory watched: craftcache watch add",
                )
            case LocalFile(path):
                return open_local(source, [path] * len(names))
            case LocalDirectory(path):
                return open_local(source, [path / name for name in names])
        request = Load(source, tuple(names))
        if share is not None:
            return self._gpus.load(share.uuid, request, call)
        return self.handle(request, call)

    def _generation(self, watch: WatchSource, names: Sequence[str], call: Call) -> Loaded | None:
        """The served generation of a directory; None where only the directory itself can be had."""
        request = Load(watch, tuple(names))
        try:
            return self._daemon.handle(request, call)
        except DaemonUnavailable as away:
            cached = self._mode != "none" and self.fallback_handler.resolver.cached(
                watch, request.names
            )
            self._daemon.fell_back(away, "cache" if cached else "nobody")
            return replace(cached, fallback_reason=str(away)) if cached else None

    def resolve(self, source: Source, filename: str, call: Call) -> Path:
        """The path of a file in this process's view; a missing file is fetched first.

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
        resolved = self.handle(Resolve(source, filename), call)
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

    def next_generation(self, request: Follow, call: Call, *, has_daemon: bool) -> Generation:
        """The served generation of a watch, as soon as it is another than the known one.

        Args:
            request: The watch, and the number of the known generation.
            call: Cancels the wait.
            has_daemon: Whether this process has heard of a daemon before; then one that is absent
                now is expected back.

        Raises:
            NotFound: There is no such watch, or it was removed.
            Unavailable: There is no daemon, and was none before.
        """
        pause = FIRST_PAUSE_SECONDS

        def heard(_progress: Progress) -> None:
            nonlocal has_daemon, pause
            has_daemon, pause = True, FIRST_PAUSE_SECONDS

        while True:
            try:
                return self._daemon.handle(request, replace(call, report=heard))
            except DaemonUnavailable as away:
                if not has_daemon:
                    return self.fallback_handler.handle(request, away, call)
                name = request.name
                log.info("following watch:%s goes on when the daemon is back: %s", name, away)
            call.cancellation.pause(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)

    def models(self, call: Call) -> list[CachedModel]:
        """All cached models, from the daemon or, without it, from the cache directory."""
        models: list[CachedModel] = []
        after = ""
        while True:
            page = self.handle(Models(after), call)
            models += page.models
            after = page.next
            if not after:
                return models

    def watch_of(self, path: Path, names: Sequence[str], call: Call) -> WatchSource | None:
        """The watch that serves ``names`` of a local directory, if the daemon has one."""
        if not set(names) <= set(FILENAMES.values()):
            return None
        try:
            status = path.stat()
            watch = self._daemon.handle(Identify(status.st_dev, status.st_ino), call).watch
        except (OSError, DaemonUnavailable):
            return None
        return WatchSource(watch) if watch else None

    def patience(self, request: Request[Any]) -> float:
        """Seconds to wait for a silent daemon, which depend on where else the files are."""
        match request:
            case Identify():  # without an answer the directory itself is loaded
                return 0.0
            case Load(source=source):
                names = request.names
            case Resolve(source=source):
                names = (request.name,)
            case _:
                return self._cold_seconds
        if self._mode == "none" or self.fallback_handler.resolver.known(source, names) is None:
            return self._cold_seconds
        return WARM_SECONDS
