"""The worker's end of the worker socket: requests out, answers and descriptors in.

What goes wrong is told apart by what the caller can do about it. A :class:`DaemonUnavailable` is
about the daemon and not about the request, so that the same files may be had in another way; it is
no part of the public tree. An error of :mod:`craftcache.errors` is the daemon's answer, or, as
``ProtocolMismatch``, the lack of a common language.
"""

from .failures import Cancelled, DaemonUnavailable
from .waiting import Call, Cancellation, Deadlines, shut, time_limit
from .worker_socket import WorkerSocket

__all__ = [
    "DaemonUnavailable",
    "Cancelled",
    "Cancellation",
    "Call",
    "shut",
    "time_limit",
    "Deadlines",
    "WorkerSocket",
]
