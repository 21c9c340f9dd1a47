"""Every error that craftcache raises, on either side of the socket.

One tree, so that one ``except`` catches all of it and the class says whose it is to mend, which is
its ``blame``. ``wire.answers.Problem.of`` reads it where the daemon answers with an error, and the
worker's ``daemon.client.DaemonClient`` raises it, or lets it go on alone::

    error                  what is wrong                            blame           then the worker
    CraftcacheError        any fault of the daemon's own            daemon          goes on alone
    ├── InvalidSource      the name itself                          caller          raises it
    ├── NotFound           no such repository, revision, file       caller          raises it (*)
    ├── AccessDenied       gated or private, token missing          caller          raises it (*)
    ├── PolicyDenied       this node does not allow it              administrator   raises it
    ├── BudgetExceeded     the user had its share, a retry may help administrator   raises it
    ├── IntegrityError     the bytes are not what was promised      origin          raises it
    ├── UnsafeCheckpoint   loading it would run code                publisher       raises it
    ├── NotACheckpoint     the file is no torch checkpoint          publisher       raises it
    ├── UnknownDevice      torch has no such device                 caller          raises it
    ├── DeviceMemoryFull   the device has no room for it            caller          raises it
    ├── DeviceLost         the device or its driver failed          administrator   raises it
    ├── UnknownAudioCraft  install() does not know its version      caller          raises it
    ├── NotMounted         the file is not under this cache         caller          raises it
    ├── ResourceLimit      memory, open files, threads: too few     process         goes on alone
    ├── StorageFull        the disk lacks ``missing_bytes``         administrator   raises it
    ├── Offline            a fetch is needed and forbidden          caller          raises it (‡)
    ├── Unavailable        the origin is away, a retry may help     origin          raises it (‡)
    └── ProtocolMismatch   the two sides share no version           administrator   goes on alone †

(*) but for a Hub id, where this process has a token of its own: it may read what the daemon may
not.
† decided by ``daemon.client.DaemonClient.handle``, whatever its blame.
(‡) if the daemon answers with it. Where a load that goes on alone meets it,
``fallback.handler.FallbackHandler`` tries the copy in huggingface_hub's cache before raising it.
To *go on alone* is to use what stands verified in a cache or what this process hashes itself, and
then to fetch, as far as ``fallback`` allows. A ``ResourceLimit`` is raised where it is met: the
daemon's does not bind the worker, and the worker's own is no reason to try again in another way.
A daemon that is overloaded is waited for.

The class name is the error's ``code`` on the wire, in HTTP problem documents and in
``--json`` output, so it is the same from Python, HTTP and the command line.
"""

from __future__ import annotations

import copy
import sys
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = [
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
]


Blame: TypeAlias = Literal["caller", "administrator", "origin", "publisher", "process", "daemon"]
"""Party that can mend an error; ``process`` is the process that raised it."""


class CraftcacheError(Exception):
    """Base of all errors of craftcache.

    Attributes:
        message: What happened, to what.
        source: The source as the user named it, where there is one; never carries a secret.
        hint: What to do next.
        retryable: Whether the same call may succeed later with nothing changed by the user.
        retry_after: Seconds after which a retry makes sense, where the origin said so.
        blame: Party that can mend it; the same for all errors of a class.
    """

    blame: ClassVar[Blame] = "daemon"
    http_status: ClassVar[int] = 500
    retryable_by_default: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        source: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.source = source
        self.hint = hint
        self.retryable = self.retryable_by_default if retryable is None else retryable
        self.retry_after = retry_after

    @property
    def code(self) -> str:
        """The name of the error's class, stable across releases."""
        return type(self).__name__

    def __str__(self) -> str:
        text = f"{self.source}: {self.message}" if self.source else self.message
        return f"{text}. {self.hint}" if self.hint else text

    if sys.version_info < (3, 11):

        def add_note(self, note: str, /) -> None:
            """Keep a note beside the error, as Python itself does from 3.11 on."""
            self.__notes__ = [*getattr(self, "__notes__", ()), note]

    def about(self, source: str) -> Self:
        """The same error, for a request that named its source so."""
        error = copy.copy(self)
        error.source = source
        return error

    def in_file(self, filename: str) -> Self:
        """The same error, of one file of a source that may have several."""
        error = copy.copy(self)
        if filename not in (self.source or "") and not self.message.startswith(filename):
            error.message = f"{filename}: {self.message}"
        return error

    def to_problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem document (also its form on the worker socket)."""
        problem: dict[str, Any] = {
            "type": "about:blank",
            "title": self.code,
            "status": self.http_status,
            "detail": self.message,
            "code": self.code,
            "retryable": self.retryable,
        }
        if self.source is not None:
            problem["source"] = self.source
        if self.hint is not None:
            problem["hint"] = self.hint
        if self.retry_after is not None:
            problem["retry_after"] = self.retry_after
        return problem


class InvalidSource(CraftcacheError, ValueError):
    """The source or filename is malformed or of a kind that craftcache does not know."""

    blame = "caller"
    http_status = 400


class NotFound(CraftcacheError, LookupError):
    """The repository, revision, file or model does not exist."""

    blame = "caller"
    http_status = 404


class AccessDenied(CraftcacheError):
    """The origin refuses to serve it to this token (gated, private, or no token at all)."""

    blame = "caller"
    http_status = 403


class PolicyDenied(CraftcacheError):
    """The settings of this node, or the caller's rights on it, do not allow it."""

    blame = "administrator"
    http_status = 403


class BudgetExceeded(CraftcacheError):
    """The user has reached a limit that this node's daemon sets for each user.

    ``retry_after`` says when the user is below it again.

    The settings limit requests, bytes fetched on a day, and queued warms.
    """

    blame = "administrator"
    http_status = 429
    retryable_by_default = True


class IntegrityError(CraftcacheError):
    """The bytes are not those that the origin promised; nothing was published."""

    blame = "origin"
    http_status = 502


class UnsafeCheckpoint(CraftcacheError):
    """Loading the file would execute code; the message names the offending global."""

    blame = "publisher"
    http_status = 422


class NotACheckpoint(CraftcacheError):
    """The file is not something that ``torch.load`` could read."""

    blame = "publisher"
    http_status = 422


class UnknownDevice(CraftcacheError, ValueError):
    """``device`` is nothing that this torch can place tensors on."""

    blame = "caller"
    http_status = 400


class DeviceMemoryFull(CraftcacheError):
    """The device has no room for it; what was taken for it was given back.

    Attributes:
        needed_bytes: Size in bytes of what was to be placed there, all of it.
        free_bytes: Free memory of the device afterwards; None where it cannot be told.
    """

    blame = "caller"
    http_status = 507
    retryable_by_default = True

    def __init__(
        self,
        message: str,
        *,
        needed_bytes: int = 0,
        free_bytes: int | None = None,
        source: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(
            message, source=source, hint=hint, retryable=retryable, retry_after=retry_after
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes

    def to_problem(self) -> dict[str, Any]:
        """See CraftcacheError.to_problem; carries the two sizes as well."""
        sizes = {"needed_bytes": self.needed_bytes, "free_bytes": self.free_bytes}
        return super().to_problem() | {
            name: size for name, size in sizes.items() if size is not None
        }


class DeviceLost(CraftcacheError):
    """The device or its driver failed while it was copied to."""

    blame = "administrator"


class UnknownAudioCraft(CraftcacheError):
    """The installed AudioCraft is of a version that cannot be patched; nothing was changed."""

    blame = "caller"


class NotMounted(CraftcacheError):
    """The file exists on the node but not under the cache directory that this process sees."""

    blame = "caller"
    http_status = 409


class ResourceLimit(CraftcacheError):
    """This process may not have the memory, open files or threads needed; names the limit."""

    blame = "process"


class StorageFull(CraftcacheError):
    """The file system of the cache lacks room.

    Attributes:
        missing_bytes: Bytes that must be freed for the request to fit.
    """

    blame = "administrator"
    http_status = 507

    def __init__(
        self,
        message: str,
        *,
        missing_bytes: int = 0,
        source: str | None = None,
        hint: str | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(
            message, source=source, hint=hint, retryable=retryable, retry_after=retry_after
        )
        self.missing_bytes = missing_bytes

    def to_problem(self) -> dict[str, Any]:
        """See CraftcacheError.to_problem; carries ``missing_bytes`` as well."""
        return super().to_problem() | {"missing_bytes": self.missing_bytes}


class Offline(CraftcacheError):
    """A fetch would be needed, and this process was told not to fetch."""

    blame = "caller"
    http_status = 503


class Unavailable(CraftcacheError):
    """The origin or the daemon cannot be reached or does not answer in time."""

    blame = "origin"
    http_status = 503
    retryable_by_default = True


class ProtocolMismatch(CraftcacheError):
    """Client and daemon speak no common protocol version."""

    blame = "administrator"
    http_status = 400


_BY_CODE: dict[str, type[CraftcacheError]] = {
    cls.__name__: cls
    for cls in (
        InvalidSource,
        NotFound,
        AccessDenied,
        PolicyDenied,
        BudgetExceeded,
        IntegrityError,
        UnsafeCheckpoint,
        NotACheckpoint,
        UnknownDevice,
        DeviceMemoryFull,
        DeviceLost,
        UnknownAudioCraft,
        NotMounted,
        ResourceLimit,
        StorageFull,
        Offline,
        Unavailable,
        ProtocolMismatch,
    )
}


def from_problem(problem: Mapping[str, Any]) -> CraftcacheError:
    """The error that a problem document describes.

    A code that this release does not know becomes a plain CraftcacheError, so that an older
    client still shows a newer daemon's words; members of another type than theirs are left out.
    """
    cls = _BY_CODE.get(str(problem.get("code")), CraftcacheError)
    retryable = problem.get("retryable")
    details: dict[str, Any] = {
        "source": _text(problem.get("source")),
        "hint": _text(problem.get("hint")),
        "retryable": retryable if isinstance(retryable, bool) else None,
        "retry_after": _number(problem.get("retry_after")),
    }
    if cls is StorageFull:
        details["missing_bytes"] = int(_number(problem.get("missing_bytes")) or 0)
    elif cls is DeviceMemoryFull:
        details["needed_bytes"] = int(_number(problem.get("needed_bytes")) or 0)
        free = _number(problem.get("free_bytes"))
        details["free_bytes"] = None if free is None else int(free)
    detail = _text(problem.get("detail"))
    return cls("unknown error" if detail is None else detail, **details)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | float | None:
    """``value`` if it is a finite number, and no boolean."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
