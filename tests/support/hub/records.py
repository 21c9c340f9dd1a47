"""What the hub was asked and what it sent: the journal that tests make their assertions on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, TypeAlias

from .gates import PATIENCE_S, Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Origin", "Request", "Predicate", "Journal", "matching"]

Origin: TypeAlias = Literal["hub", "cdn"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request and how far its answer has come; a newer record replaces it in the journal.

    Attributes:
        number: Its place in the journal, by arrival.
        method: ``GET``, ``HEAD``, ``POST``.
        origin: Which of the two servers it came to.
        path: Percent-decoded, without the query.
        query: As parsed; a signature is in here.
        headers: Looked up without regard to case.
        status: Of the answer, or None until its head is sent.
        bytes_sent: Of the answer's body, as far as the hub has written them.
        done: Whether the hub is through with it, however it ended.
    """

    number: int
    method: str
    origin: Origin
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    status: int | None = None
    bytes_sent: int = 0
    done: bool = False

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")

    def __str__(self) -> str:
        state = "done" if self.done else "in flight"
        wanted = f" {self.range}" if self.range else ""
        return (
            f"{self.origin} {self.method} {self.path}{wanted} -> {self.status}, "
            f"{self.bytes_sent} bytes, {state}"
        )


Predicate: TypeAlias = "Callable[[Request], bool]"


def matching(
    path: str = "*", *, method: str | None = None, origin: Origin | None = None
) -> Predicate:
    """A predicate: the path is ``path`` or matches it as a glob (``*`` crosses slashes)."""

    def matches(request: Request) -> bool:
        return (
            fnmatchcase(request.path, path)
            and method in (None, request.method)
            and origin in (None, request.origin)
        )

    return matches


class Journal:
    """The requests in the order of their arrival; written by the hub, read by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._changed = Signal()

    @property
    def requests(self) -> list[Request]:
        """A copy, as of now."""
        with self._lock:
            return list(self._requests)

    def begin(
        self,
        *,
        method: str,
        origin: Origin,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> Request:
        """Record an arrival."""
        with self._lock:
            request = Request(len(self._requests), method, origin, path, query, headers)
            self._requests.append(request)
            self._wake()
        return request

    def sent(self, number: int, status: int, bytes_sent: int) -> None:
        """Record how far the answer to request ``number`` has come."""
        with self._lock:
            current = self._requests[number]
            self._requests[number] = replace(current, status=status, bytes_sent=bytes_sent)
            self._wake()

    def end(self, number: int) -> None:
        """Record that the hub is through with request ``number``."""
        with self._lock:
            self._requests[number] = replace(self._requests[number], done=True)
            self._wake()

    async def wait(
        self, predicate: Predicate, *, count: int = 1, timeout_s: float = PATIENCE_S
    ) -> Request:
        """The ``count``-th request that fulfils ``predicate``, as soon as there is one."""
        deadline = time.monotonic() + timeout_s
        while True:
            found, changed = self._look(predicate, count)
            if found is not None:
                return found
            try:
                await changed.wait(deadline - time.monotonic())
            except TimeoutError:
                raise self._timeout(timeout_s) from None

    def wait_blocking(
        self, predicate: Predicate, *, count: int = 1, timeout_s: float = PATIENCE_S
    ) -> Request:
        """``wait`` for synchronous tests."""
        deadline = time.monotonic() + timeout_s
        while True:
            found, changed = self._look(predicate, count)
            if found is not None:
                return found
            try:
                changed.wait_blocking(deadline - time.monotonic())
            except TimeoutError:
                raise self._timeout(timeout_s) from None

    def _look(self, predicate: Predicate, count: int) -> tuple[Request | None, Signal]:
        with self._lock:
            requests, changed = list(self._requests), self._changed
        found = [request for request in requests if predicate(request)]
        return (found[count - 1] if len(found) >= count else None), changed

    def _timeout(self, timeout_s: float) -> TimeoutError:
        seen = "\n".join(map(str, self.requests)) or "none"
        return TimeoutError(f"no such request within {timeout_s} s; there were:\n{seen}")

    def _wake(self) -> None:
        changed, self._changed = self._changed, Signal()
        changed.set()
