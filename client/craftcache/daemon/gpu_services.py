"""The services of this node's GPUs, which hold models in the GPUs' memory, as loaders see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from craftcache.device.sharing import NotShared

from .client import DaemonClient
from .transport import DaemonUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from craftcache.wire import Load, Loaded, Request

    from .transport import Call

__all__ = ["GPU_DIRECTORY", "GpuServices", "gpu_socket"]

GPU_DIRECTORY = "gpu"
"""Directory of the services' sockets, in the daemon's socket directory."""

START = (
    "Start craftcached-gpu@ for that GPU; in a container mount the socket directory's gpu as well"
)


def gpu_socket(uuid: str) -> str:
    """Path of the socket of a GPU's service in the socket directory."""
    return f"{GPU_DIRECTORY}/{uuid}.sock"


class GpuServices:
    """The services of all GPUs; thread-safe and fork-safe as their clients are.

    It has no lock: clients are added by a dict's setdefault, which is atomic.

    Args:
        socket_dir: The daemon's socket directory; None on a machine without one.
        patience: See DaemonClient.
    """

    def __init__(self, socket_dir: Path | None, patience: Callable[[Request[Any]], float]) -> None:
        self._socket_dir = socket_dir
        self._patience = patience
        self._services: dict[str, DaemonClient] = {}

    def load(self, uuid: str, request: Load, call: Call) -> Loaded:
        """The files of a source: those that can be shared, in the memory of the GPU.

        Raises:
            NotShared: No service of that GPU serves it.
            CraftcacheError: The error that the service, or the daemon behind it, answers with.
        """
        service = self._services.get(uuid)
        if service is None:
            made = DaemonClient(self._socket_dir, self._patience, name=gpu_socket(uuid))
            service = self._services.setdefault(uuid, made)
        try:
            return service.handle(request, call)
        except DaemonUnavailable as away:
            raise NotShared(f"the service of GPU {uuid} does not serve it: {away}", START) from away

    def close(self) -> None:
        """Close idle connections; the next call opens new ones."""
        for service in self._services.values():
            service.close()
