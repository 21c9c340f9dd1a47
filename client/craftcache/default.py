"""The default client, made at its first use from the environment as it is then."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .client import Client
from .sources import PARTS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import torch

    from .daemon.client import CachedModel, WarmedModel
    from .loading.explanation import Explanation
    from .loading.export import Export
    from .sources import Part
    from .wire import Generation, Progress

__all__ = [
    "load",
    "load_state_dict",
    "load_into",
    "resolve",
    "warm",
    "follow",
    "status",
    "models",
    "explain",
]


@lru_cache(maxsize=1)
def _client() -> Client:
    return Client()


def load(
    source: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    parts: Sequence[Part] = PARTS,
) -> Export:
    """See Client.load."""
    return _client().load(source, device, parts)


def load_state_dict(
    file_or_url_or_id: str | os.PathLike[str],
    filename: str | None = None,
    device: str | int | torch.device = "cpu",
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:  # noqa: ANN401  # whatever the checkpoint holds
    """See Client.load_state_dict."""
    return _client().load_state_dict(file_or_url_or_id, filename, device, cache_dir)


def load_into(
    module: torch.nn.Module,
    source: str | os.PathLike[str],
    part: Part = "lm",
    key: str | None = "best_state",
) -> None:
    """See Client.load_into."""
    _client().load_into(module, source, part, key)


def resolve(source: str | os.PathLike[str], filename: str) -> Path:
    """See Client.resolve."""
    return _client().resolve(source, filename)


def warm(
    sources: str | Iterable[str],
    *,
    filenames: Sequence[str] = (),
    resident: bool = False,
    pair_only: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[WarmedModel]:
    """See Client.warm."""
    return _client().warm(
        sources,
        filenames=filenames,
        resident=resident,
        pair_only=pair_only,
        on_progress=on_progress,
    )


def follow(name: str, *, after: int | None = None) -> Iterator[Generation]:
    """See Client.follow."""
    return _client().follow(name, after=after)


def status() -> dict[str, Any]:
    """See Client.status."""
    return _client().status()


def models() -> list[CachedModel]:
    """See Client.models."""
    return _client().models()


def explain(source: str | os.PathLike[str]) -> Explanation:
    """See Client.explain."""
    return _client().explain(source)
