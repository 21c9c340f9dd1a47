"""One verified, hot copy of every AudioCraft checkpoint per GPU node.

``import craftcache`` is cheap: torch, huggingface_hub and the rest are imported by the call that
needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    AccessDenied,
    CraftcacheError,
    IntegrityError,
    InvalidSource,
    NotACheckpoint,
    NotFound,
    NotMounted,
    Offline,
    PolicyDenied,
    ProtocolMismatch,
    ResourceLimit,
    StorageFull,
    Unavailable,
    UnknownAudioCraft,
    UnknownDevice,
    UnsafeCheckpoint,
)
from .version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .cache.opened import FileInfo
    from .client import Client
    from .default import (
        explain,
        follow,
        load,
        load_into,
        load_state_dict,
        models,
        resolve,
        status,
        warm,
    )
    from .loading.export import Export
    from .wire import Generation, Progress

__all__ = [
    "AsyncClient",
    "Client",
    "Export",
    "FileInfo",
    "Generation",
    "Progress",
    "explain",
    "follow",
    "load",
    "load_into",
    "load_state_dict",
    "models",
    "resolve",
    "status",
    "warm",
    "CraftcacheError",
    "InvalidSource",
    "NotFound",
    "AccessDenied",
    "PolicyDenied",
    "IntegrityError",
    "UnsafeCheckpoint",
    "NotACheckpoint",
    "UnknownDevice",
    "UnknownAudioCraft",
    "NotMounted",
    "ResourceLimit",
    "StorageFull",
    "Offline",
    "Unavailable",
    "ProtocolMismatch",
    "__version__",
]

_HOMES = {
    "AsyncClient": "aio",
    "Client": "client",
    "Export": "export",
    "FileInfo": "opened",
    "Generation": "wire",
    "Progress": "wire",
} | dict.fromkeys(
    (
        *("explain", "follow", "load", "load_into", "load_state_dict", "models", "resolve"),
        *("status", "warm"),
    ),
    "default",
)


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
