"""The operations of both clients, blocking; each call can be cancelled from another thread."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from craftcache.checkpoint.filenames import check_checkpoint
from craftcache.config import choose_cache_dir
from craftcache.daemon.transport import time_limit
from craftcache.device.sharing import NotShared, find_shared_device
from craftcache.device.staging import process_ring
from craftcache.errors import CraftcacheError, InvalidSource
from craftcache.sources import (
    FILENAMES,
    LocalDirectory,
    LocalFile,
    UrlSource,
    check_filename,
    check_watch_name,
    locate,
    parse,
)
from craftcache.wire import Follow, Status, Warm, WarmOptions

from .explanation import explain
from .export import copy_into, export_of, files_by_part, parse_device, to_export, to_object
from .loader import Loader
from .sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import torch

    from craftcache.daemon.admin import AdminClient
    from craftcache.daemon.transport import Call
    from craftcache.device.sharing import SharedDevice
    from craftcache.plan import Fallback
    from craftcache.sources import Part, Source
    from craftcache.wire import CachedModel, DaemonStatus, Generation, WarmedModel

    from .explanation import Explanation
    from .export import Export

__all__ = ["Operations", "PathLike", "Device"]

PathLike = str | os.PathLike[str]
Device = "str | int | torch.device"

T = TypeVar("T")


class Operations:
    """The clients' methods; see craftcache.client.Client for what each promises.

    Thread-safe and fork-safe as its Loader is, and picklable by its arguments. It has no lock: the
    loaders of other cache directories are added by a dict's setdefault, which is atomic.

    Attributes:
        loader: Opens files, and gets requests answered.
        find_shared_device: Finds the memory of a device that processes can share; see there.
    """

    find_shared_device: Callable[[torch.device], SharedDevice | None]

    def __init__(
        self,
        *,
        socket_dir: PathLike | None,
        cache_dir: PathLike | None,
        fallback: Fallback | bool,
    ) -> None:
        if isinstance(fallback, bool):
            fallback = "origin" if fallback else "none"
        self.arguments: dict[str, Any] = {
            "socket_dir": socket_dir,
            "cache_dir": cache_dir,
            "fallback": fallback,
        }
        self.loader = Loader(**self.arguments)
        self.find_shared_device = find_shared_device
        self._others: dict[Path, Loader] = {}

    @property
    def admin(self) -> AdminClient:
        """The client of the daemon's HTTP interface."""
        from craftcache.daemon.admin import AdminClient

        return AdminClient(self.loader.socket_dir)

    def close(self) -> None:
        """Close idle connections and free page-locked memory; the next call makes new ones."""
        for loader in (self.loader, *self._others.values()):
            loader.close()
        process_ring.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]  # a copy opens its own connections

    def load(
        self,
        source: PathLike,
        device: str | int | torch.device,
        parts: Sequence[Part],
        timeout: float | None = None,
        *,
        share: bool = False,
        call: Call,
    ) -> Export:
        """See Client.load."""
        started = time.perf_counter()
        placed = parse_device(device)
        located = export_of(locate(os.fspath(source)), parts)
        names = files_by_part(located, parts)

        def load(sharing: Sharing | None) -> Export:
            device = None if sharing is None else sharing.device
            with self.loader.open(located, tuple(names.values()), call, share=device) as loaded:
                return to_export(
                    located.shown,
                    loaded,
                    tuple(names),
                    placed,
                    started=started,
                    check=call.cancellation.check,
                    sharing=sharing,
                )

        with time_limit(call.cancellation, timeout, source=located.shown):
            return self._shared(load, located, placed) if share else load(None)

    def load_state_dict(
        self,
        file_or_url_or_id: PathLike,
        filename: str | None,
        device: str | int | torch.device,
        cache_dir: PathLike | None,
        *,
        share: bool = False,
        call: Call,
    ) -> Any:  # noqa: ANN401  # whatever the checkpoint holds
        """See Client.load_state_dict."""
        placed = parse_device(device)
        source = locate(os.fspath(file_or_url_or_id))
        name = _one_file(source, filename)
        if not isinstance(source, LocalFile | LocalDirectory):  # one's own files may have any name
            check_checkpoint(name, source=source.shown)
        loader = self._loader_of(cache_dir)

        def load(sharing: Sharing | None) -> object:
            device = None if sharing is None else sharing.device
            with loader.open(source, (name,), call, share=device) as loaded:
                [file] = loaded.files
                check = call.cancellation.check
                shown = source.shown
                return to_object(file, placed, source=shown, check=check, sharing=sharing)

        return self._shared(load, source, placed) if share else load(None)

    def load_into(
        self,
        module: torch.nn.Module,
        source: PathLike,
        part: Part,
        key: str | None,
        *,
        call: Call,
    ) -> None:
        """See Client.load_into."""
        located = export_of(locate(os.fspath(source)), (part,))
        name = files_by_part(located, (part,))[part]
        with self.loader.open(located, (name,), call) as loaded:
            [file] = loaded.files
            check = call.cancellation.check
            copy_into(file, module, key, source=located.shown, check=check)

    def resolve(self, source: PathLike, filename: str, *, call: Call) -> Path:
        """See Client.resolve."""
        located = locate(os.fspath(source))
        return self.loader.resolve(located, _one_file(located, filename), call)

    def warm(
        self, sources: str | Iterable[str], options: WarmOptions, *, call: Call
    ) -> list[WarmedModel]:
        """See Client.warm."""
        warmed: list[WarmedModel] = []
        failures: list[CraftcacheError] = []
        for text in [sources] if isinstance(sources, str) else sources:
            try:
                request = Warm(parse(text), options)
                answer = self.loader.handle(request, call)
            except CraftcacheError as error:
                failures.append(error)
            else:
                warmed.append(replace(answer, source=request.source.shown))
        if failures:
            for other in failures[1:]:
                failures[0].add_note(f"{other.code}: {other}")
            raise failures[0]
        return warmed

    def status(self, *, call: Call) -> DaemonStatus:
        """See Client.status."""
        return self.loader.handle(Status(), call)

    def models(self, *, call: Call) -> list[CachedModel]:
        """See Client.models."""
        return self.loader.models(call)

    def next_generation(
        self, name: str, after: int | None, *, has_daemon: bool, call: Call
    ) -> Generation:
        """See Loader.next_generation."""
        request = Follow(check_watch_name(name.removeprefix("watch:")), after)
        return self.loader.next_generation(request, call, has_daemon=has_daemon)

    def explain(self, source: PathLike, *, call: Call) -> Explanation:
        """See Client.explain."""
        return explain(self.loader, os.fspath(source), call)

    def _shared(
        self, load: Callable[[Sharing | None], T], source: Source, device: torch.device
    ) -> T:
        """What ``load`` returns, which shares memory where that can be, and else copies."""

        def refuse(why: NotShared) -> None:
            self.loader.refuse_sharing(why, source.shown)

        try:
            found = self.find_shared_device(device)
            return load(None if found is None else Sharing(found, refuse))
        except NotShared as why:
            refuse(why)
        return load(None)

    def _loader_of(self, cache_dir: PathLike | None) -> Loader:
        """The loader for a call's cache directory; one is made, and kept, for each directory."""
        if cache_dir is None:
            return self.loader
        path = choose_cache_dir(cache_dir)
        if path == self.loader.cache_dir:
            return self.loader
        if path not in self._others:
            other = Loader(**self.arguments | {"cache_dir": path})
            self._others.setdefault(path, other)  # atomic: another thread may add it too
        return self._others[path]


def _one_file(source: Source, filename: str | None) -> str:
    """The name of the checkpoint: the one of the source, or ``filename``.

    Raises:
        InvalidSource: The source holds several files, and none was named.
    """
    match source:
        case LocalFile(path):
            return path.name
        case UrlSource(is_export=False):
            return source.basename
        case UrlSource(filename=str(named)):
            return named
    if filename is None:
        raise InvalidSource(
            "which file of it is not said",
            source=source.shown,
            hint=f"Name one, such as filename={FILENAMES['lm']!r}",
        )
    return check_filename(filename, source=source.shown)
