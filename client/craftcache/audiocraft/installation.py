"""The changes to AudioCraft's modules, and how they are undone."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from craftcache.client import default_client
from craftcache.errors import UnknownAudioCraft

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from types import ModuleType

    import torch

    from craftcache.client import Client

__all__ = ["install", "is_installed", "uninstall"]

KNOWN_VERSIONS: Final = ("1.3.0",)
"""The versions of AudioCraft whose loaders and builders were read and are tested."""


def install(client: Client | None = None) -> None:
    """Let AudioCraft's loaders go through craftcache in this process.

    They take what craftcache takes (``watch:my-run`` as well) and raise its errors. The state of
    torch's random generators after a model is loaded differs from upstream's, since fewer numbers
    were drawn: seed before ``generate``, and its output is upstream's.

    A further call changes nothing but the client.

    Args:
        client: Loads the checkpoints. Default: the one that ``craftcache.load`` uses.

    Raises:
        ModuleNotFoundError: AudioCraft is not installed.
        UnknownAudioCraft: It is of a version that is not known; nothing was changed.
    """
    with _lock:
        changes = [] if _installed else _changes()
        _source.load = (client or default_client).load_state_dict
        for change in changes:
            _installed.append(change)
            setattr(change.module, change.name, change.replacement)


def uninstall() -> None:
    """Put everything back; models that are loaded already stay as they are."""
    with _lock:
        while _installed:
            change = _installed.pop()
            setattr(change.module, change.name, change.original)


def is_installed() -> bool:
    """Whether AudioCraft's loaders go through craftcache."""
    return bool(_installed)


@dataclass(frozen=True, slots=True)
class _Change:
    """One name in a module of AudioCraft."""

    module: ModuleType
    name: str
    original: object
    replacement: object

    @classmethod
    def of(cls, module: ModuleType, name: str, wrap: Callable[[Any], object]) -> _Change:
        original = getattr(module, name)
        return cls(module, name, original, wrap(original))


@dataclass(slots=True)
class _Source:
    """The function that loads checkpoints while craftcache is installed."""

    load: Callable[..., Any]


# Guards _installed and _source, and the attributes of AudioCraft's modules that they describe.
# install imports AudioCraft while it holds the lock; no other lock of ours is taken inside.
_lock = threading.Lock()
_installed: list[_Change] = []
_source = _Source(default_client.load_state_dict)


def _changes() -> list[_Change]:
    """All of it; building says what each is for.

    Raises:
        UnknownAudioCraft: These names may mean something else there.
    """
    import audiocraft

    if audiocraft.__version__ not in KNOWN_VERSIONS:
        raise UnknownAudioCraft(
            f"AudioCraft {audiocraft.__version__} is not known, only {', '.join(KNOWN_VERSIONS)}",
            hint="Use it unpatched, under `craftcache env`",
        )
    from audiocraft.models import builders, lm, loaders

    from . import building

    return [
        *_changes_everywhere(loaders, "_get_state_dict", lambda _: _get_state_dict),
        *_changes_everywhere(loaders, "load_lm_model", building.loading),
        *_changes_everywhere(loaders, "load_lm_model_magnet", building.loading),
        *_changes_everywhere(loaders, "load_compression_model", building.loading),
        *_changes_everywhere(loaders, "load_diffusion_models", building.loading),
        _Change.of(loaders, "builders", building.Builders),
        _Change.of(builders, "get_conditioner_provider", building.build_suspended),
        _Change.of(lm, "get_init_fn", building.make_deferrable),
    ]


def _changes_everywhere(
    home: ModuleType, name: str, wrap: Callable[[Any], object]
) -> Iterator[_Change]:
    """Changes of a function in the module that defines it and in those that imported its name."""
    original = getattr(home, name)
    replacement = wrap(original)
    for module_name, module in sorted(sys.modules.items()):
        if module_name.startswith("audiocraft.") and vars(module).get(name) is original:
            yield _Change(module, name, original, replacement)


def _get_state_dict(
    file_or_url_or_id: str | os.PathLike[str],
    filename: str | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | None = None,
) -> Any:  # noqa: ANN401  # whatever the checkpoint holds
    """AudioCraft's function of that name and signature, by craftcache."""
    return _source.load(file_or_url_or_id, filename, device, cache_dir)
