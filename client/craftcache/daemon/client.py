"""The node's daemon as a loader sees it: open files and typed answers, or the reason why not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, TypeVar

from craftcache.cache.opened import FileInfo, OpenFile, OpenFiles
from craftcache.errors import AccessDenied, CraftcacheError, NotFound, ProtocolMismatch
from craftcache.sources import HubSource, UrlSource, WatchSource
from craftcache.wire import Follow, Identify, Load, Models, Resolve, Status, Warm

from .transport import DaemonFailure, WorkerSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

    from craftcache.dependencies import DependencyState, UnmetDependency
    from craftcache.sources import RemoteSource
    from craftcache.wire import Generation, Loaded, Model, Progress, Request, Resolved, ServedFile

    from .transport import Cancellation, Reply

__all__ = ["DaemonClient", "DaemonUnavailable", "WarmedModel", "CachedModel", "own_token"]

AnswerT = TypeVar("AnswerT")


class DaemonUnavailable(Exception):  # a state of affairs, never seen by users
    """The daemon cannot serve this request, for a reason that is not the user's to mend.

    Attributes:
        refusal: What the daemon said where it may not read what this process perhaps may.
    """

    def __init__(self, reason: str, refusal: CraftcacheError | None = None) -> None:
        super().__init__(reason)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class WarmedModel:
    """A source that was brought up to date.

    Attributes:
        source: As shown.
        revision: That is served from now on.
        bytes_fetched: Of its own files, that came over the network.
        bytes_reused: Of its own files, that were in the cache before.
        served_by: ``daemon``, or ``origin`` where this process did it by itself.
        resident_bytes: Of its files, that are in memory; None where that was not asked for, or
            is not known.
    """

    source: str
    revision: str
    bytes_fetched: int
    bytes_reused: int
    served_by: Literal["daemon", "origin"]
    resident_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model that a load would find without asking its origin.

    Attributes:
        source: As shown.
        revision: That would be served.
        files: Those of its files that are in place and untouched since they were verified, by name.
        resident_bytes: That are in memory; None where that is not known.
        is_pinned: Whether it stays until it is unpinned.
        is_locked: Whether its pages are to stay in memory too.
        needs: Other sources that it is of no use without, and whether they are cached.
        unmet: What it needs as well, and no cache can hold.
        is_needed_only: Whether it is cached for the sake of others alone.
    """

    source: str
    revision: str
    files: tuple[FileInfo, ...]
    resident_bytes: int | None = None
    is_pinned: bool = False
    is_locked: bool = False
    needs: tuple[DependencyState, ...] = ()
    unmet: tuple[UnmetDependency, ...] = ()
    is_needed_only: bool = False

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


class DaemonClient:
    """The daemon of this node; thread-safe, fork-safe.

    Every call raises DaemonUnavailable where the daemon is absent, refuses, goes silent, speaks another
    protocol or fails by its own fault, or may not read what this process may; and what else the
    daemon says is wrong as the error that it is.

    Args:
        socket_dir: Where its sockets are; None where this machine has none.
        patience: Asked after a second of silence, with the source and its files: for how many
            seconds in all the first answer is waited for.
    """

    def __init__(
        self,
        socket_dir: Path | None,
        patience: Callable[[RemoteSource | None, Sequence[str]], float],
    ) -> None:
        self._socket = WorkerSocket(socket_dir / "worker" / "handles.sock") if socket_dir else None
        self._patience = patience

    def close(self) -> None:
        """Close idle connections; the next call opens new ones."""
        if self._socket is not None:
            self._socket.close()

    def open(
        self,
        source: RemoteSource,
        names: Sequence[str],
        cancellation: Cancellation,
        report: Callable[[Progress], None],
    ) -> OpenFiles:
        """Open ``names`` of ``source``, fetched first where they are missing."""
        is_single = isinstance(source, UrlSource) and not source.is_export
        request = Load(source.spelled, () if is_single else tuple(names))
        with self._ask(request, source, names, cancellation, report) as reply:
            if len(reply.answer.files) != len(names):
                raise DaemonUnavailable("the daemon answered with other files than were asked for")
            return _opened(reply, names)

    def resolve(
        self,
        source: RemoteSource,
        name: str,
        cancellation: Cancellation,
        report: Callable[[Progress], None],
    ) -> Resolved:
        """Where a file is, fetched first where it is missing."""
        request = Resolve(source.spelled, name)
        with self._ask(request, source, (name,), cancellation, report) as reply:
            return reply.answer

    def warm(
        self,
        source: RemoteSource,
        filenames: Sequence[str],
        cancellation: Cancellation,
        report: Callable[[Progress], None],
        *,
        resident: bool = False,
        pair_only: bool = False,
    ) -> WarmedModel:
        """Bring a source to its newest revision; see Warm for what else is done."""
        request = Warm((source.spelled,), tuple(filenames), resident, pair_only)
        with self._ask(request, source, (), cancellation, report) as reply:
            (result,) = reply.answer.results
        if result.error is not None:
            raise _or_away(result.error, source)
        return WarmedModel(
            source.shown,
            result.revision or "",
            result.bytes_fetched,
            result.bytes_reused,
            "daemon",
            result.resident_bytes,
        )

    def status(self, cancellation: Cancellation) -> dict[str, Any]:
        """What the daemon says of itself."""
        with self._ask(Status(), None, (), cancellation, _ignore) as reply:
            return reply.answer.report

    def models(self, cancellation: Cancellation) -> list[CachedModel]:
        """What it has cached."""
        models: list[CachedModel] = []
        after = ""
        while True:
            with self._ask(Models(after), None, (), cancellation, _ignore) as reply:
                page = reply.answer
            models += map(_cached_model, page.models)
            after = page.next
            if not after:
                return models

    def watch_of(self, device: int, inode: int, cancellation: Cancellation) -> WatchSource | None:
        """The watch of a directory, known by its device and inode; None where it has none."""
        request = Identify(device, inode)
        with self._ask(request, None, (), cancellation, _ignore, patience=lambda: 0.0) as reply:
            return WatchSource(reply.answer.watch) if reply.answer.watch else None

    def follow(
        self,
        name: str,
        after: int | None,
        cancellation: Cancellation,
        report: Callable[[Progress], None],
    ) -> Generation:
        """The generation of a watch that is served, as soon as it is another than ``after``."""
        with self._ask(Follow(name, after), None, (), cancellation, report) as reply:
            return reply.answer

    def _ask(
        self,
        request: Request[AnswerT],
        source: RemoteSource | None,
        names: Sequence[str],
        cancellation: Cancellation,
        report: Callable[[Progress], None],
        *,
        patience: Callable[[], float] | None = None,
    ) -> Reply[AnswerT]:
        if self._socket is None:
            raise DaemonUnavailable("there is no daemon on this machine")
        try:
            return self._socket.ask(
                request,
                patience=patience or (lambda: self._patience(source, names)),
                on_progress=report,
                cancellation=cancellation,
            )
        except DaemonFailure as failure:
            raise DaemonUnavailable(
                f"the daemon at {self._socket.path} failed: {failure}"
            ) from failure
        except ProtocolMismatch as mismatch:
            raise DaemonUnavailable(str(mismatch)) from mismatch
        except (AccessDenied, NotFound) as error:
            raise _or_away(error, source) from error


def own_token() -> str | None:
    """The Hub token of this process's user, as huggingface_hub finds it."""
    from huggingface_hub import get_token

    return get_token()


def _or_away(
    error: CraftcacheError, source: RemoteSource | None
) -> CraftcacheError | DaemonUnavailable:
    """What the daemon may not read, a process with a token of its own may."""
    is_hidden = isinstance(error, AccessDenied | NotFound) and isinstance(source, HubSource)
    if is_hidden and own_token() is not None:
        return DaemonUnavailable(f"the daemon may not read it: {error}", error)
    return error


def _opened(reply: Reply[Loaded], names: Sequence[str]) -> OpenFiles:
    """The files of an answer, which owns their descriptors no longer."""
    loaded = reply.answer
    descriptors = iter(reply.take())
    files: dict[str, OpenFile] = {}
    for name, served in zip(names, loaded.files, strict=True):
        blob = next(descriptors)
        index = _read_and_close(next(descriptors)) if served.has_index else None
        files[name] = OpenFile(_file_info(served), blob, index)
    return OpenFiles(loaded.revision, "daemon", files)


def _read_and_close(descriptor: int) -> bytes:
    with open(descriptor, "rb", buffering=0) as file:
        return os.pread(descriptor, os.fstat(file.fileno()).st_size, 0)


def _file_info(served: ServedFile) -> FileInfo:
    return FileInfo(
        served.filename,
        served.size,
        served.origin,
        served.sha256,
        datetime.fromtimestamp(served.verified_at, timezone.utc),
    )


def _cached_model(model: Model) -> CachedModel:
    return CachedModel(
        model.source,
        model.revision,
        tuple(map(_file_info, model.files)),
        model.resident_bytes,
        model.is_pinned,
        model.is_locked,
        model.needs,
        model.unmet,
        model.is_needed_only,
    )


def _ignore(_progress: Progress) -> None:
    """Nobody watches."""
