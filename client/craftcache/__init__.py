"""One verified, hot copy of every AudioCraft checkpoint per GPU node.

``import craftcache`` is cheap: torch, huggingface_hub and the rest are imported by the call that
needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    AccessDenied,
    BudgetExceeded,
    CraftcacheError,
    DeviceLost,
    DeviceMemoryFull,
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
    from .client import Client, default_client
    from .daemon.events import DaemonEvent
    from .device.staging import set_staging_limit
    from .loading.export import Export
    from .wire import Generation, Progress

    explain = default_client.explain
    follow = default_client.follow
    load = default_client.load
    load_into = default_client.load_into
    load_state_dict = default_client.load_state_dict
    models = default_client.models
    resolve = default_client.resolve
    status = default_client.status
    warm = default_client.warm

__all__ = [
    "AsyncClient",
    "Client",
    "DaemonEvent",
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
    "set_staging_limit",
    "status",
    "warm",
    "CraftcacheError",
    "InvalidSource",
    "NotFound",
    "AccessDenied",
    "PolicyDenied",
    "BudgetExceeded",
    "IntegrityError",
    "UnsafeCheckpoint",
    "NotACheckpoint",
    "UnknownDevice",
    "DeviceMemoryFull",
    "DeviceLost",
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
    "DaemonEvent": "daemon.events",
    "Export": "loading.export",
    "FileInfo": "cache.opened",
    "Generation": "wire",
    "Progress": "wire",
    "set_staging_limit": "device.staging",
}

_OF_THE_DEFAULT_CLIENT = frozenset(
    {
        *("explain", "follow", "load", "load_into", "load_state_dict", "models", "resolve"),
        *("status", "warm"),
    }
)


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    from importlib import import_module

    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    elif name in _OF_THE_DEFAULT_CLIENT:
        value = getattr(import_module(".client", __name__).default_client, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
