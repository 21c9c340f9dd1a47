"""The fallback: answers this process's requests without the daemon, as far as possible.

A load follows the steps of :mod:`craftcache.plan` after the daemon. Errors that the user must mend
(no such repository, a wrong hash, a full disk) are raised, and no further step is tried. After
Offline or Unavailable the copy in huggingface_hub's cache is still tried, and the error is raised
if there is none.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from craftcache.daemon.client import own_token
from craftcache.errors import CraftcacheError, Offline, Unavailable
from craftcache.logger import log
from craftcache.plan import plan_without_daemon
from craftcache.sources import WatchSource
from craftcache.wire import (
    CachedModel,
    Load,
    Loaded,
    Models,
    ModelsPage,
    Resolve,
    Resolved,
    Warm,
    WarmedModel,
)

from .own_fetch import OwnFetchRequest
from .resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from craftcache.cache.directory import CacheDir
    from craftcache.cache.manifest import Manifest
    from craftcache.daemon.transport import Call, DaemonUnavailable
    from craftcache.plan import Fallback, PlanStep
    from craftcache.sources import RemoteSource
    from craftcache.wire import Progress, Request

    from .own_fetch import OwnFetchResult

__all__ = ["FallbackHandler", "is_offline"]


AnswerT = TypeVar("AnswerT")


class FallbackHandler:
    """Answers requests where the daemon is unavailable; thread-safe, fork-safe, without a lock.

    Args:
        cache: The shared cache as this process sees it.
        fallback: What it may use: a cache, the origin too, or nothing.
        may_warn: Whether to log once why the daemon is not used, and what nothing vouches for: not
            on a machine without one.

    Attributes:
        resolver: Finds and fetches files.
    """

    def __init__(self, cache: CacheDir, fallback: Fallback, *, may_warn: bool) -> None:
        self._cache = cache
        self._fallback = fallback
        self._may_warn = self._says_why = self._may_tell_place = may_warn
        self._unrecorded: set[RemoteSource] = set()
        self.resolver = Resolver(cache)

    def handle(self, request: Request[AnswerT], away: DaemonUnavailable, call: Call) -> AnswerT:
        """Answer a request, without the daemon.

        Args:
            request: The request that the daemon did not answer.
            away: The reason why it did not.
            call: Reports progress, and cancels the request.

        Raises:
            Unavailable: Only the daemon can answer this; or as below.
            CraftcacheError: Any of the tree but UnknownDevice and NotMounted.
        """
        answer: Any
        match request:
            case Load():
                answer = self._load(request, away, call)
            case Resolve():
                answer = self._resolve(request, away, call)
            case Warm():
                answer = self._warm(request, away, call)
            case Models():
                answer = self._models(request.after)
            case _:
                raise no_daemon(away, request.about) from away
        return cast("AnswerT", answer)

    def plan(self) -> tuple[PlanStep, ...]:
        """The steps of a load after the daemon."""
        return plan_without_daemon(self._fallback, is_offline=is_offline())

    def _load(self, request: Load, away: DaemonUnavailable, call: Call) -> Loaded:
        """Take the remaining steps until one has all files."""
        failure: CraftcacheError | None = None
        for step in self.plan():
            if step.obstacle is not None:
                failure = failure or self._forbidden(step.obstacle, request.source, away)
                continue
            self._warn(away)
            try:
                loaded = self._take(step, request, away, call)
            except (Offline, Unavailable) as error:
                failure = error  # a copy that huggingface_hub made may still serve
                continue
            if loaded is not None:
                return replace(loaded, fallback_reason=str(away))
        raise failure or no_daemon(away, request.source) from away

    def _take(
        self, step: PlanStep, request: Load, away: DaemonUnavailable, call: Call
    ) -> Loaded | None:
        """The files by one step of the plan; None if the step does not have them."""
        source, names = request.source, request.names
        if step.way == "cache":
            return self.resolver.cached(source, names)
        if step.way == "hub cache":
            return self._hub_snapshot(source, names)
        fetched = self._fetch(source, OwnFetchRequest(names), away, call)
        if fetched.not_kept is not None:
            log.warning("%s is loaded and not kept: %s", source.shown, fetched.not_kept)
        self._tell_place(fetched, away)
        return fetched.files

    def _hub_snapshot(self, source: RemoteSource, names: Sequence[str]) -> Loaded | None:
        """What huggingface_hub left; it is said once of each source that nothing else vouches."""
        found = self.resolver.hub_snapshot(source, names)
        if found is None:
            return None
        if not found.is_recorded and self._says_why and source not in self._unrecorded:
            self._unrecorded.add(source)
            log.warning(
                "%s is loaded as huggingface_hub left it: each file is what its blob's name "
                "promises, but no manifest here says which files the model has",
                source.shown,
            )
        return found.loaded

    def _resolve(self, request: Resolve, away: DaemonUnavailable, call: Call) -> Resolved:
        """The path of a file in this process's view; it is absolute."""
        self._load(Load(request.source, (request.name,)), away, call).close()
        own = self.resolver.path(request.source, request.name)
        if own is None:
            raise Unavailable(
                "it was fetched, and could not be kept in a cache",
                source=request.source.shown,
                hint="Try again, or use load instead",
            ) from away
        status = own.stat()
        return Resolved(os.path.abspath(own), status.st_dev, status.st_ino)

    def _warm(self, request: Warm, away: DaemonUnavailable, call: Call) -> WarmedModel:
        """Fetch a source's own files and publish them; without ``refresh``, cached ones suffice."""
        source, options = request.source, request.options
        if (known := self._known(request)) is not None:
            return WarmedModel(source.shown, known.revision, 0, known.size, "cache")
        obstacle = next(step.obstacle for step in self.plan() if step.way == "origin")
        if obstacle is not None:
            raise self._forbidden(obstacle, source, away) from away
        self._warn(away)
        if not (options.pair_only or options.lock):
            log.warning(
                "%s: without the daemon its own files are warmed, and nothing that it needs",
                source.shown,
            )
        what = OwnFetchRequest(request.names, options.selection, options.lock)
        fetched = self._fetch(source, what, away, call)
        with fetched.files as files:
            if fetched.not_kept is not None:
                raise Unavailable(
                    f"it was fetched, and not kept: {fetched.not_kept}",
                    source=source.shown,
                    hint="Try again, or set CRAFTCACHE_CACHE_DIR to a cache of your own",
                ) from away
            self._tell_place(fetched, away)
            return WarmedModel(
                source.shown,
                files.revision,
                fetched.bytes_fetched,
                fetched.bytes_reused,
                "origin",
            )

    def _models(self, after: str) -> ModelsPage:
        """All models whose manifests are in the cache directory, on one page."""
        manifests = sorted(self._cache.manifests(), key=lambda manifest: manifest.source)
        return ModelsPage(
            tuple(
                CachedModel.of(
                    each, filter(self._cache.is_intact, each.files), self._cache.has_need
                )
                for each in manifests
                if each.source > after
            )
        )

    def _known(self, request: Warm) -> Manifest | None:
        """A verified copy that is all that a warm asks for, without asking the origin."""
        options = request.options
        if options.lock is not None:
            known = self.resolver.known(request.source, request.names)
            return known if known and known.is_locked_by(options.lock) else None
        if options.refresh:
            return None
        if options.selection:
            return self.resolver.selected(request.source, options.selection)
        return self.resolver.known(request.source, request.names)

    def _fetch(
        self, source: RemoteSource, what: OwnFetchRequest, away: DaemonUnavailable, call: Call
    ) -> OwnFetchResult:
        if isinstance(source, WatchSource):
            raise Unavailable(
                f"only the daemon knows watches, and {away}",
                source=source.shown,
                hint="Start craftcached, or name the directory",
            )
        return self.resolver.fetch(
            source,
            what,
            token=own_token(),
            is_private=away.refusal is not None,
            report=_checked(call),
            cancellation=call.cancellation,
        )

    def _forbidden(
        self, obstacle: str, source: RemoteSource, away: DaemonUnavailable
    ) -> CraftcacheError:
        """The error of a load whose remaining step has an obstacle."""
        if away.refusal is not None:
            return away.refusal
        if self._fallback == "none":
            return no_daemon(away, source)
        return Offline(
            f"it would have to be fetched, {obstacle}, and {away}",
            source=source.shown,
            hint="Start craftcached, or warm the model first",
        )

    def _tell_place(self, fetched: OwnFetchResult, away: DaemonUnavailable) -> None:
        """Log where files are kept if that is not the shared cache, the first time only."""
        if self._may_tell_place and fetched.kept_in not in (None, self._cache.root):
            self._may_tell_place = False
            if away.refusal is None:
                why = f"uid {os.geteuid()} may not write to {self._cache.root}"
            else:
                why = f"not everybody who reads {self._cache.root} may read it"
            log.warning(
                "what this process fetches is kept in %s, the cache of its user, as %s; "
                "CRAFTCACHE_CACHE_DIR names another",
                fetched.kept_in,
                why,
            )

    def _warn(self, away: DaemonUnavailable) -> None:
        """Log why the daemon is not used, the first time only."""
        if self._may_warn:
            self._may_warn = False
            places = " and ".join(map(str, self.resolver.places))
            log.warning("loading without the daemon, from %s: %s", places, away)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids huggingface_hub, and so this process, to fetch."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def no_daemon(away: DaemonUnavailable, source: RemoteSource | None = None) -> Unavailable:
    """The error of a request that only the daemon could have answered."""
    return Unavailable(
        str(away),
        source=source.shown if source else None,
        hint="Start craftcached, or set CRAFTCACHE_SOCKET_DIR to its socket directory",
    )


def _checked(call: Call) -> Callable[[Progress], None]:
    """The call's report, which raises Cancelled once the call was cancelled."""

    def checked(progress: Progress) -> None:
        call.cancellation.check()
        call.report(progress)

    return checked
