"""The synchronous client: what an inference worker imports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .daemon.transport import Cancellation
from .loading.operations import Operations
from .sources import PARTS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import torch
    from typing_extensions import Self

    from .daemon.client import CachedModel, WarmedModel
    from .loading.explanation import Explanation
    from .loading.export import Export
    from .loading.loader import Fallback
    from .sources import Part
    from .wire import Generation, Progress

__all__ = ["Client"]


class Client:
    """Loads AudioCraft checkpoints through the node's daemon, or without it where it is away.

    Thread-safe; fork-safe (a child opens its own connections); picklable (the copy likewise).
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
    ) -> Export:
        """Load an export: the pair of a language model and its codec.

        Args:
            source: A local file or directory, an ``https://`` URL, a Hub id
                ``org/name[@revision]`` or ``watch:NAME[@generation]``, tried in that order.
            device: Of all tensors; whatever torch.device takes.
            parts: Which of the pair to load.

        Raises:
            CraftcacheError: Any of the tree; see craftcache.errors.
        """
        return self._do.load(source, device, parts, cancellation=Cancellation())

    def load_state_dict(
        self,
        file_or_url_or_id: str | os.PathLike[str],
        filename: str | None = None,
        device: str | int | torch.device = "cpu",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the checkpoint holds
        """Load one checkpoint; a drop-in for AudioCraft's ``loaders._get_state_dict``.

        Args:
            file_or_url_or_id: As ``source`` of :meth:`load`.
            filename: The file inside a directory, a repository or a URL that ends in ``/``.
            device: Of all tensors.
            cache_dir: Used for this call instead of the client's own, where the daemon is away.

        Raises:
            CraftcacheError: Any of the tree.
        """
        return self._do.load_state_dict(
            file_or_url_or_id, filename, device, cache_dir, cancellation=Cancellation()
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
            module: Takes the values, cast to its parameters' dtypes, on their devices.
            source: As in :meth:`load`.
            part: Which of the pair.
            key: Where the checkpoint has the state dict; None where it is one.

        Raises:
            InvalidSource: There is no state dict under ``key``.
            RuntimeError: Keys or shapes differ, as torch's own load_state_dict says it.
            CraftcacheError: Any of the tree.
        """
        self._do.load_into(module, source, part, key, cancellation=Cancellation())

    def resolve(self, source: str | os.PathLike[str], filename: str) -> Path:
        """Where a file stands under this process's cache directory, as hf_hub_download says it.

        Raises:
            NotMounted: The daemon has it, and this process cannot see it there.
            CraftcacheError: Any of the tree.
        """
        return self._do.resolve(source, filename, cancellation=Cancellation())

    def warm(
        self,
        sources: str | Iterable[str],
        *,
        filenames: Sequence[str] = (),
        resident: bool = False,
        pair_only: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[WarmedModel]:
        """Bring sources to their newest revision, and what they need; every one is tried.

        What a model needs (a text encoder, a codec that it only names ...) is cached where
        AudioCraft looks for it. What of it no cache can hold, :meth:`models` names.

        Args:
            sources: URLs and Hub ids.
            filenames: Of each; none means an export's pair.
            resident: Whether the daemon brings them into memory too, as far as there is room.
            pair_only: Whether to leave out what they need.
            on_progress: Called with each step, in this thread.

        Raises:
            CraftcacheError: The first failure, with the others as its notes. What was brought
                stays brought: a further warm of it finds it there.
        """
        return self._do.warm(
            sources,
            filenames=filenames,
            resident=resident,
            pair_only=pair_only,
            on_progress=on_progress,
            cancellation=Cancellation(),
        )

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself.

        Raises:
            Unavailable: There is no daemon.
        """
        return self._do.status(cancellation=Cancellation())

    def models(self) -> list[CachedModel]:
        """What a load would find without asking its origin."""
        return self._do.models(cancellation=Cancellation())

    def follow(self, name: str, *, after: int | None = None) -> Iterator[Generation]:
        """Yield the generations of a watched export directory, each as soon as it is served.

        The one that is served now comes first. None is missed but those that another has replaced
        before this process came to ask; a rollback yields the earlier one again. The wait costs
        nothing, and goes on after a restart of the daemon, however long that takes.

        Args:
            name: Of the watch.
            after: The number of a generation that is known already and is not to come first.

        Raises:
            NotFound: There is no such watch, or no more.
            Unavailable: There is no daemon.
        """
        has_daemon = False
        while True:
            generation = self._do.next_generation(
                name, after, has_daemon=has_daemon, cancellation=Cancellation()
            )
            has_daemon, after = True, generation.number
            yield generation

    def explain(self, source: str | os.PathLike[str]) -> Explanation:
        """What a load of ``source`` would do here, and why; changes nothing, fetches nothing."""
        return self._do.explain(source, cancellation=Cancellation())

    def close(self) -> None:
        """Close idle connections; the client stays usable."""
        self._do.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
