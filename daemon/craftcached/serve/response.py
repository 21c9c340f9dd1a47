"""An answer as it goes out: the packet and the open files that go with it."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError, Unavailable
from craftcache.wire import Loaded, Problem, encode

if TYPE_CHECKING:
    from craftcache.wire import Answer, WarmedBatch

__all__ = ["Response"]

log = logging.getLogger("craftcached")

_EXHAUSTION = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""What the system says when the daemon asks too much of it just now."""


@dataclass(frozen=True, slots=True)
class Response:
    """A packet, and the answer whose open files go with it; it owns them until it is closed."""

    packet: bytes
    loaded: Loaded | None = None

    @classmethod
    def of(cls, answer: Answer | WarmedBatch) -> Response:
        """An answer as it goes out.

        Raises:
            WireError: It does not fit into a message.
        """
        loaded = answer if isinstance(answer, Loaded) else None
        try:
            return cls(encode(answer), loaded)
        except BaseException:
            if loaded is not None:
                loaded.close()  # the error's traceback would keep it open
            raise

    @classmethod
    def problem(cls, error: Exception) -> Response:
        """The answer to a request that failed with ``error``; what is no user's fault is logged."""
        if isinstance(error, CraftcacheError):
            return cls(encode(Problem.of(error)))
        if isinstance(error, OSError) and error.errno in _EXHAUSTION:
            return cls.busy(f"{error.strerror}")
        log.error("a request of a worker failed", exc_info=error)
        fault = CraftcacheError("the daemon failed", hint="Its log says why")
        return cls(encode(Problem(fault, own_fault=True)))

    @classmethod
    def busy(cls, why: str) -> Response:
        """The answer to a request that may be granted a little later."""
        error = Unavailable(f"the daemon is overloaded: {why}", hint="Try again", retry_after=1.0)
        return cls(encode(Problem(error, own_fault=True)))

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that go with the packet."""
        return [] if self.loaded is None else self.loaded.descriptors

    def close(self) -> None:
        """Close the files on this side; what was sent stays open where it arrived."""
        if self.loaded is not None:
            self.loaded.close()
