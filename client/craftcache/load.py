"""From a source's name to open, verified files: the resolution order and its fallbacks.

1. an existing local file, 2. an existing local directory: read in this process;
3. a URL, 4. a Hub id, and watches: asked of the daemon, and had without it where it is absent,
refuses, goes silent, speaks another protocol or fails by its own fault.

What is the user's to mend (no such repository, a wrong hash, an unsafe checkpoint, a full disk) is
raised and not tried another way, with one exception: what the daemon may not read, a process with
a token of its own may fetch for itself. The token never crosses the socket.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, get_args

from .cache import CacheDir
from .config import choose_cache_dir, choose_socket_dir
from .errors import (
    AccessDenied,
    CraftcacheError,
    NotFound,
    NotMounted,
    Offline,
    ProtocolMismatch,
    Unavailable,
)
from .opened import FileInfo, OpenFile, OpenFiles
from .resolve import Resolver
from .sources import HubSource, LocalDirectory, LocalFile, UrlSource, wanted_files
from .transport import DaemonFailure, WorkerSocket
from .wire import Load, Models, Resolve, Status, Warm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .sources import RemoteSource, Source
    from .transport import Reply, Withdrawal
    from .wire import Model, Progress, Request, ServedFile

__all__ = ["Fallback", "Loader", "WarmedModel", "CachedModel"]

log = logging.getLogger("craftcache")

AnswerT = TypeVar("AnswerT")

Fallback: TypeAlias = Literal["origin", "cache", "none"]

COLD_SECONDS = 15.0
"""How long a silent daemon is waited for where only the origin is left."""

WARM_SECONDS = 1.0
"""How long it is waited for where a verified copy is in a cache."""


@dataclass(frozen=True, slots=True)
class WarmedModel:
    """A source that was brought up to date.

    Attributes:
        source: As shown.
        revision: That is served from now on.
        bytes_fetched: That came over the network.
        bytes_reused: That were in the cache before.
        served_by: ``daemon``, or ``origin`` where this process did it by itself.
    """

    source: str
    revision: str
    bytes_fetched: int
    bytes_reused: int
    served_by: Literal["daemon", "origin"]


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model that a load would find without asking its origin.

    Attributes:
        source: As shown.
        revision: That would be served.
        files: Its files, by name.
    """

    source: str
    revision: str
    files: tuple[FileInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


class Loader:
    """Opens what a source names; thread-safe, fork-safe.

    Args:
        socket_dir: Of the daemon; None chooses as the contract says.
        cache_dir: The shared cache as this process sees it; None chooses likewise.
        fallback: What to do without the daemon: fetch from the ``origin`` what no ``cache`` has,
            use only what a cache has, or ``none``: raise.
    """

    def __init__(
        self,
        *,
        socket_dir: str | os.PathLike[str] | None,
        cache_dir: str | os.PathLike[str] | None,
        fallback: Fallback,
    ) -> None:
        if fallback not in get_args(Fallback):
            raise ValueError(f"fallback is {fallback!r}, not one of {get_args(Fallback)}")
        self.socket_dir = choose_socket_dir(socket_dir)
        self.cache_dir = choose_cache_dir(cache_dir)
        self.fallback = fallback
        self._cache = CacheDir(self.cache_dir)
        self._resolver = Resolver(self._cache)
        self._socket = (
            WorkerSocket(self.socket_dir / "worker" / "handles.sock") if self.socket_dir else None
        )
        self._has_warned = False

    def close(self) -> None:
        """Close idle connections; the loader stays usable."""
        if self._socket is not None:
            self._socket.close()

    def open(
        self,
        source: Source,
        names: Sequence[str],
        *,
        withdrawal: Withdrawal,
        report: Callable[[Progress], None],
    ) -> OpenFiles:
        """Open ``names`` of ``source``, bringing them first where they are missing.

        Raises:
            CraftcacheError: Any of the tree but UnknownDevice.
        """
        match source:
            case LocalFile(path):
                return _open_local(dict.fromkeys(names, path))
            case LocalDirectory(path):
                return _open_local({name: path / name for name in names})
            case _:
                return self._open_remote(source, names, withdrawal, report)

    def resolve(
        self,
        source: Source,
        filename: str,
        *,
        withdrawal: Withdrawal,
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
                if not (path / filename).is_file():
                    raise _missing_local(path / filename)
                return path / filename
        (name,) = wanted_files(source, (filename,))
        try:
            request = Resolve(str(source), name)
            with self._ask(request, source, (name,), withdrawal, report) as reply:
                resolved = reply.answer
        except _DaemonAway as away:
            self._open_alone(source, (name,), away, withdrawal, report).close()
            if own := self._resolver.path(source, name):
                return own
            raise Unavailable(
                "it was fetched, but another process holds the cache's lock",
                source=source.shown,
                hint="Try again",
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
        withdrawal: Withdrawal,
        report: Callable[[Progress], None],
    ) -> WarmedModel:
        """Bring one source to its newest revision."""
        names = wanted_files(source, filenames)
        try:
            return self._warm_at_daemon(source, filenames, withdrawal, report)
        except _DaemonAway as away:
            self._permit_origin(source, away)
            self._warn(away)
            fetched = self._resolver.fetch(
                source, names, token=_own_token(), report=_checked(report, withdrawal)
            )
            with fetched.files as files:
                return WarmedModel(
                    source.shown,
                    files.revision,
                    fetched.bytes_fetched,
                    fetched.bytes_reused,
                    "origin",
                )

    def status(self, *, withdrawal: Withdrawal) -> dict[str, Any]:
        """What the daemon says of itself.

        Raises:
            Unavailable: There is no daemon.
        """
        try:
            with self._ask(Status(), None, (), withdrawal, _ignore) as reply:
                return reply.answer.report
        except _DaemonAway as away:
            raise _no_daemon(away) from away

    def models(self, *, withdrawal: Withdrawal) -> list[CachedModel]:
        """What is cached: by the daemon's account, or as the cache directory shows without it."""
        try:
            return self._models_of_daemon(withdrawal)
        except _DaemonAway:
            manifests = sorted(self._cache.manifests(), key=lambda manifest: manifest.source)
            return [
                CachedModel(m.source, m.revision, tuple(map(FileInfo.recorded, m.files)))
                for m in manifests
            ]

    def _models_of_daemon(self, withdrawal: Withdrawal) -> list[CachedModel]:
        models: list[CachedModel] = []
        after = ""
        while True:
            with self._ask(Models(after), None, (), withdrawal, _ignore) as reply:
                page = reply.answer
            models += map(_cached_model, page.models)
            after = page.next
            if not after:
                return models

    def _warm_at_daemon(
        self,
        source: RemoteSource,
        filenames: Sequence[str],
        withdrawal: Withdrawal,
        report: Callable[[Progress], None],
    ) -> WarmedModel:
        request = Warm((str(source),), tuple(filenames))
        with self._ask(request, source, (), withdrawal, report) as reply:
            (result,) = reply.answer.results
        if result.error is not None:
            if isinstance(result.error, AccessDenied | NotFound):
                _raise_unless_readable(result.error, source)
                raise _DaemonAway(f"the daemon may not read it: {result.error}")
            raise result.error
        return WarmedModel(
            source.shown,
            result.revision or "",
            result.bytes_fetched,
            result.bytes_reused,
            "daemon",
        )

    def _open_remote(
        self,
        source: RemoteSource,
        names: Sequence[str],
        withdrawal: Withdrawal,
        report: Callable[[Progress], None],
    ) -> OpenFiles:
        try:
            return self._open_at_daemon(source, names, withdrawal, report)
        except _DaemonAway as away:
            return self._open_alone(source, names, away, withdrawal, report)

    def _open_at_daemon(
        self,
        source: RemoteSource,
        names: Sequence[str],
        withdrawal: Withdrawal,
        report: Callable[[Progress], None],
    ) -> OpenFiles:
        is_single = isinstance(source, UrlSource) and not source.is_export
        request = Load(str(source), () if is_single else tuple(names))
        with self._ask(request, source, names, withdrawal, report) as reply:
            loaded = reply.answer
            descriptors = iter(reply.take())
            files: dict[str, OpenFile] = {}
            for name, served in zip(names, loaded.files, strict=True):
                blob = next(descriptors)
                index = _read_and_close(next(descriptors)) if served.has_index else None
                files[name] = OpenFile(_file_info(served), blob, index)
            return OpenFiles(loaded.revision, "daemon", files)

    def _open_alone(
        self,
        source: RemoteSource,
        names: Sequence[str],
        away: _DaemonAway,
        withdrawal: Withdrawal,
        report: Callable[[Progress], None],
    ) -> OpenFiles:
        if self.fallback == "none":
            raise _no_daemon(away, source) from away
        self._warn(away)
        files = self._resolver.cached(source, names)
        if files is None:
            try:
                self._permit_origin(source, away)
                files = self._resolver.fetch(
                    source, names, token=_own_token(), report=_checked(report, withdrawal)
                ).files
            except (Offline, Unavailable):
                files = self._resolver.unverified(source, names)
                if files is None:
                    raise
        files.fallback_reason = str(away)
        return files

    def _permit_origin(self, source: RemoteSource, away: _DaemonAway) -> None:
        if self.fallback == "none":
            raise _no_daemon(away, source) from away
        if self.fallback == "cache":
            raise Offline(
                f"it is in no cache, this client may not fetch, and {away}",
                source=source.shown,
                hint="Start craftcached and warm the model, or allow fallback='origin'",
            ) from away

    def _ask(
        self,
        request: Request[AnswerT],
        source: RemoteSource | None,
        names: Sequence[str],
        withdrawal: Withdrawal,
        report: Callable[[Progress], None],
    ) -> Reply[AnswerT]:
        """The daemon's answer.

        Raises:
            _DaemonAway: There is none that is of use.
            CraftcacheError: The daemon's own, where the user must mend something.
        """
        if self._socket is None:
            raise _DaemonAway("there is no daemon on this machine")

        def patience() -> float:
            is_cached = source is not None and self._resolver.has_cached(source, names)
            return WARM_SECONDS if is_cached else COLD_SECONDS

        try:
            return self._socket.ask(
                request, patience=patience, on_progress=report, withdrawal=withdrawal
            )
        except DaemonFailure as failure:
            raise _DaemonAway(f"the daemon at {self._socket.path} failed: {failure}") from failure
        except ProtocolMismatch as mismatch:
            raise _DaemonAway(str(mismatch)) from mismatch
        except (AccessDenied, NotFound) as error:
            _raise_unless_readable(error, source)
            raise _DaemonAway(f"the daemon may not read it: {error}") from error

    def _warn(self, away: _DaemonAway) -> None:
        """Say once why the daemon is not used; say nothing where there never was one."""
        if self._has_warned or self.socket_dir is None:
            return
        self._has_warned = True
        log.warning("loading without the daemon: %s", away)


class _DaemonAway(Exception):  # a state of affairs, never seen outside this module
    """The daemon cannot serve this request, for a reason that is not the user's to mend."""


def _raise_unless_readable(error: CraftcacheError, source: RemoteSource | None) -> None:
    """What the daemon may not read, a process with a token of its own may."""
    if not isinstance(source, HubSource) or _own_token() is None:
        raise error


def _own_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _checked(
    report: Callable[[Progress], None], withdrawal: Withdrawal
) -> Callable[[Progress], None]:
    def checked(progress: Progress) -> None:
        withdrawal.check()
        report(progress)

    return checked


def _open_local(paths: dict[str, Path]) -> OpenFiles:
    files: dict[str, OpenFile] = {}
    opened = OpenFiles("", "local", files)
    try:
        for name, path in paths.items():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            info = FileInfo(path.name, os.fstat(descriptor).st_size, str(path))
            # Its owner may overwrite it in place, under which a map would die.
            files[name] = OpenFile(info, descriptor, mapped=False)
    except FileNotFoundError as error:
        opened.close()
        raise _missing_local(Path(error.filename)) from error
    except PermissionError as error:
        opened.close()
        raise AccessDenied(
            "this process may not read the file",
            source=error.filename,
            hint="Change the file's permissions",
        ) from error
    return opened


def _missing_local(path: Path) -> NotFound:
    return NotFound(
        "no such file",
        source=str(path),
        hint="An export directory holds state_dict.bin and compression_state_dict.bin",
    )


def _no_daemon(away: _DaemonAway, source: RemoteSource | None = None) -> Unavailable:
    return Unavailable(
        str(away),
        source=source.shown if source else None,
        hint="Start craftcached, or set CRAFTCACHE_SOCKET_DIR to its socket directory",
    )


def _read_and_close(descriptor: int) -> bytes:
    with open(descriptor, "rb", buffering=0) as file:
        return os.pread(descriptor, os.fstat(file.fileno()).st_size, 0)


def _file_info(served: ServedFile) -> FileInfo:
    return FileInfo(
        served.filename,
        served.size,
        served.origin,
        served.sha256,
        datetime.fromtimestamp(served.verified_at, UTC),
    )


def _cached_model(model: Model) -> CachedModel:
    return CachedModel(model.source, model.revision, tuple(map(_file_info, model.files)))


def _ignore(_progress: Progress) -> None:
    """Nobody watches."""
