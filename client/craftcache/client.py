"""The synchronous client: what an inference worker imports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .daemon.transport import Call
from .loading.operations import Operations
from .sources import PARTS
from .wire import WarmOptions

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import torch
    from typing_extensions import Self, Unpack

    from .daemon.events import DaemonEvent
    from .loading.explanation import Explanation
    from .loading.export import Export
    from .plan import Fallback
    from .sources import Part
    from .wire import (
        CachedModel,
        DaemonStatus,
        Generation,
        Progress,
        WarmedModel,
        WarmKeywords,
    )

__all__ = ["Client"]


class Client:
    """Loads AudioCraft checkpoints through the node's daemon, or without it where it is away.

    Thread-safe; fork-safe and picklable (a child or a copy opens its own connections).
    Connections are made when first needed. Use it as a context manager to close them, or leave
    that to the end of the process.

    Args:
        socket_dir: The daemon's socket directory. Default: ``CRAFTCACHE_SOCKET_DIR``, then
            ``/run/craftcache``, then ``$XDG_RUNTIME_DIR/craftcache``, whichever exists.
        cache_dir: The shared cache as this process sees it; used without the daemon and by
            ``resolve``. Default: ``CRAFTCACHE_CACHE_DIR``, ``AUDIOCRAFT_CACHE_DIR``, and on.
        fallback: What to do without the daemon: ``origin`` uses the cache and fetches what is not
            in it, ``cache`` only uses the cache, ``none`` raises. True and False mean the first
            and the last.
    """

    def __init__(
        self,
        *,
        socket_dir: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        fallback: Fallback | bool = "origin",
    ) -> None:
        self._do = Operations(socket_dir=socket_dir, cache_dir=cache_dir, fallback=fallback)

    @property
    def cache_dir(self) -> Path:
        """The cache directory as this process sees it."""
        return self._do.loader.cache_dir

    @property
    def socket_dir(self) -> Path | None:
        """The daemon's socket directory; None on a machine that has none."""
        return self._do.loader.socket_dir

    def load(
        self,
        source: str | os.PathLike[str],
        device: str | int | torch.device = "cpu",
        parts: Sequence[Part] = PARTS,
        *,
        share: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float | None = None,
    ) -> Export:
        """Load an export: the pair of a language model and its codec.

        Args:
            source: A local file or directory, an ``https://`` URL, a Hub id
                ``org/name[@revision]`` or ``watch:NAME[@generation]``, tried in that order.
            device: Device of all tensors; whatever torch.device takes.
            parts: Parts of the pair to load.
            share: Whether a CUDA device's tensors lie in memory that all of its workers share, for
                reading alone: whatever writes to them loses the process's CUDA context. Where that
                cannot be, a private copy is made, and a warning says why.
            on_progress: Called with each step while files are brought, in this thread.
            timeout: Seconds after which to give up, whatever it is at; None for as long as it
                takes.

        Raises:
            Unavailable: It was not loaded in time, among others; a retry may help, and goes on
                where this one was.
            CraftcacheError: Any of the tree; see craftcache.errors.
        """
        call = Call(on_progress) if on_progress is not None else Call()
        return self._do.load(source, device, parts, timeout, share=share, call=call)

    def load_state_dict(
        self,
        file_or_url_or_id: str | os.PathLike[str],
        filename: str | None = None,
        device: str | int | torch.device = "cpu",
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        share: bool = False,
    ) -> Any:  # noqa: ANN401  # whatever the checkpoint holds
        """Load one checkpoint; a drop-in for AudioCraft's ``loaders._get_state_dict``.

        Args:
            file_or_url_or_id: As ``source`` of :meth:`load`.
            filename: Name of the file in a directory, a repository or a URL that ends in ``/``.
            device: Device of all tensors.
            cache_dir: Cache directory for this call in place of the client's, without the daemon.
            share: See :meth:`load`.

        Raises:
            CraftcacheError: Any of the tree.
        """
        return self._do.load_state_dict(
            file_or_url_or_id, filename, device, cache_dir, share=share, call=Call()
        )

    def load_into(
        self,
        module: torch.nn.Module,
        source: str | os.PathLike[str],
        part: Part = "lm",
        key: str | None = "best_state",
    ) -> None:
        """Copy one part's state dict straight into a module's own parameters.

        Args:
            module: Module that takes the values, cast to its parameters' dtypes, on their devices.
            source: As in :meth:`load`.
            part: Part of the pair.
            key: Key under which the checkpoint has the state dict; None if it is one itself.

        Raises:
            InvalidSource: There is no state dict under ``key``.
            RuntimeError: Keys or shapes differ, as torch's own load_state_dict says it.
            CraftcacheError: Any of the tree.
        """
        self._do.load_into(module, source, part, key, call=Call())

    def resolve(self, source: str | os.PathLike[str], filename: str) -> Path:
        """The path of a file under this process's cache directory, as hf_hub_download returns it.

        Raises:
            NotMounted: The daemon has it, and this process cannot see it there.
            CraftcacheError: Any of the tree.
        """
        return self._do.resolve(source, filename, call=Call())

    def warm(
        self,
        sources: str | Iterable[str],
        *,
        on_progress: Callable[[Progress], None] | None = None,
        **options: Unpack[WarmKeywords],
    ) -> list[WarmedModel]:
        """Warm sources at their newest revision, with their dependencies; every one is tried.

        A model's dependencies (a text encoder, a codec that it only names ...) are cached where
        AudioCraft looks for them. :meth:`models` names those that no cache can hold.

        Args:
            sources: URLs and Hub ids.
            on_progress: Called with each step, in this thread.
            options: Attributes of WarmOptions: ``filenames`` to fetch, or ``include`` and
                ``exclude``, patterns of a Hub repository's files; ``resident`` to read them into
                memory, ``pair_only`` to leave out dependencies, ``refresh=False`` to take the
                revision that was warmed last.

        Raises:
            CraftcacheError: The first failure, with the others as its notes. Sources that were
                warmed stay cached.
        """
        call = Call(on_progress) if on_progress is not None else Call()
        return self._do.warm(sources, WarmOptions.of(options), call=call)

    def status(self) -> DaemonStatus:
        """The daemon's state at this moment; see DaemonStatus for fields and units.

        Raises:
            Unavailable: There is no daemon.
        """
        return self._do.status(call=Call())

    def models(self) -> list[CachedModel]:
        """All cached models: those that a load finds without asking their origin."""
        return self._do.models(call=Call())

    def follow(self, name: str, *, after: int | None = None) -> Iterator[Generation]:
        """Yield the generations of a watched export directory, each as soon as it is served.

        The one that is served now comes first. A generation is missed only if another replaces it
        before this process asks for the next; a rollback yields the earlier one again. The wait
        costs nothing, and goes on after a restart of the daemon, however long that takes.

        Args:
            name: Name of the watch.
            after: Number of a generation that is known already and is not to come first.

        Raises:
            NotFound: There is no such watch, or it was removed.
            Unavailable: There is no daemon.
        """
        has_daemon = False
        while True:
            generation = self._do.next_generation(name, after, has_daemon=has_daemon, call=Call())
            has_daemon, after = True, generation.number
            yield generation

    def events(self, since: int | None = None) -> Iterator[DaemonEvent]:
        """Yield what happens in the daemon: warms, evictions, pins, watches ...

        It needs ``craftcache.sock``, which people and tools may use. It goes on after a restart of
        the daemon; where events are lost, an event ``gap`` says so.

        Args:
            since: ``seq`` of an event, after which to begin; 0 begins with the oldest that the
                daemon has kept, None with what happens from now on.

        Raises:
            PolicyDenied: This user may not connect there.
            Unavailable: There is no daemon.
        """
        return self._do.admin.events(since)

    def explain(self, source: str | os.PathLike[str]) -> Explanation:
        """Explain what a load of ``source`` would do here; changes nothing, fetches nothing."""
        return self._do.explain(source, call=Call())

    def close(self) -> None:
        """Close idle connections; the client stays usable.

        The page-locked memory through which this process copies to devices is freed; the next
        load makes it anew. See set_staging_limit.
        """
        self._do.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _ClientOfFirstUse(Client):
    """A client that is made at its first use, from the environment as it is then."""

    def __init__(self) -> None:
        """Make nothing yet: __getattr__ makes Client's attribute when it is first used."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever Client makes
        if name != "_do":
            raise AttributeError(name)
        super().__init__()
        return self._do


default_client: Final = _ClientOfFirstUse()
"""The client whose methods are the package's own functions, ``craftcache.load`` and the others."""
