"""torch's weights-only loader as torch shipped it, whatever the process has put in its place.

User interfaces replace ``torch.load``, some ``torch.serialization.load`` too, by a function that
forces ``weights_only=False`` on every caller, and a checkpoint would then run code in a worker
that asked for none. So the loader that is used here is torch's own code executed once more, in
two modules that nobody else has: what is assigned to attributes of torch's modules, before or
after, does not reach it. torch's modules themselves are left as they are.
"""

from __future__ import annotations

import copyreg
import functools
import importlib.util
import os
import threading
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import torch
import torch._weights_only_unpickler  # by name: older releases import it late
import torch.serialization

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

__all__ = ["load_weights_only"]

_SHARED: Final = ("_package_registry", "_serialization_tls")
"""State of torch.serialization that extensions and other modules of torch look at: devices of
other makers, and where the tensors of the load under way are to go."""

_allowed = threading.local()
"""Globals that this thread's running load may use beyond torch's own list."""

_lock = threading.Lock()
"""Guards the making of the modules, which happens once. No other lock is taken inside."""


def _renew_lock() -> None:
    global _lock  # a forked child must not inherit another thread's hold
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def load_weights_only(
    file: BinaryIO,
    *,
    map_location: torch.device | str,
    allowed: Mapping[str, Callable[..., Any]] | None = None,
) -> object:
    """``torch.load(file, map_location, weights_only=True, mmap=False)``, by torch's own code.

    Args:
        file: Seekable, at its start.
        map_location: Device of all tensors.
        allowed: Globals that the file may use, by name, beyond those that torch and, with
            ``torch.serialization.add_safe_globals``, the process allow. No other load allows it.

    Raises:
        Exception: As torch.load does, which is nearly anything where the file is damaged.
    """
    serialization = _own_serialization()
    _allowed.globals = allowed or {}
    try:
        return serialization.load(file, map_location=map_location, weights_only=True, mmap=False)
    finally:
        _allowed.globals = {}


def _own_serialization() -> Any:  # noqa: ANN401  # a module, whose functions mypy cannot know
    with _lock:
        return _copied()


@functools.lru_cache(maxsize=1)
def _copied() -> ModuleType:
    unpickler: Any = _executed_anew(torch._weights_only_unpickler)  # noqa: SLF001  # see above
    # The one is what the process allows, which torch 2.4 and newer ask for; the other, torch's own.
    for name in ("_get_user_allowed_globals", "_get_allowed_globals"):
        if allows := getattr(torch._weights_only_unpickler, name, None):  # noqa: SLF001
            setattr(unpickler, name, _with_allowed(allows))
            break
    layouts = copyreg.dispatch_table.get(torch.layout)
    serialization: Any = _executed_anew(torch.serialization)
    if layouts is not None:  # it has just been registered anew, from the copy
        copyreg.dispatch_table[torch.layout] = layouts
    for name in _SHARED:
        if hasattr(torch.serialization, name):
            setattr(serialization, name, getattr(torch.serialization, name))
    serialization._weights_only_unpickler = unpickler  # noqa: SLF001
    copied: ModuleType = serialization
    return copied


def _with_allowed(
    allows: Callable[[], Mapping[str, Callable[..., Any]]],
) -> Callable[[], Mapping[str, Callable[..., Any]]]:
    def allow_more() -> Mapping[str, Callable[..., Any]]:
        return {**allows(), **_allowed.globals}

    return allow_more


def _executed_anew(module: ModuleType) -> ModuleType:
    """A module of the same code, which no other code imports."""
    spec = module.__spec__
    if spec is None or spec.loader is None:
        raise ImportError(f"{module.__name__} does not say where its code is", name=module.__name__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy
