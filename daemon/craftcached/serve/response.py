"""An answer as it goes out: the packet and the open files that go with it."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError, Unavailable
from craftcache.limits import limit_reached
from craftcache.wire import Loaded, Problem, encode

if TYPE_CHECKING:
    from craftcache.wire import Answer, WarmedBatch

__all__ = ["Response", "overloaded"]

log = logging.getLogger("craftcached")

_EXHAUSTION = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Error numbers by which the system says that the daemon has used up a resource for now."""


@dataclass(frozen=True, slots=True)
class Response:
    """A packet, and the answer whose open files are sent with it; owns them until closed."""

    packet: bytes
    loaded: Loaded | None = None

    @classmethod
    def of(cls, answer: Answer | WarmedBatch) -> Response:
        """The response that carries an answer; it takes over the answer's open files.

        Raises:
            WireError: The answer does not fit into a message.
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
        """The response to a request that failed with ``error``; the daemon's own bugs are logged.

        An error of the tree goes out as it is. A bare CraftcacheError among them, of no subclass,
        is the daemon's own fault, which lets a worker go on without the daemon; see Problem.of.
        """
        if isinstance(error, CraftcacheError):
            return cls(encode(Problem.of(error)))
        # Not a bug: the daemon has too much to do at this moment, so asking again helps.
        if isinstance(error, OSError) and error.errno in _EXHAUSTION:
            return cls.busy(f"{error.strerror}")
        if (reached := limit_reached(error)) is not None:
            log.error("a request of a worker failed: %s", reached)
            return cls(encode(Problem.of(reached)))
        log.error("a request of a worker failed", exc_info=error)
        fault = CraftcacheError("the daemon failed", hint="Its log says why")
        return cls(encode(Problem(fault, own_fault=True)))

    @classmethod
    def busy(cls, why: str) -> Response:
        """The response to a request that may succeed if the worker asks again, in a second."""
        return cls.overload(overloaded(why))

    @classmethod
    def overload(cls, error: Unavailable) -> Response:
        """Likewise, for an error of ``overloaded``."""
        return cls(encode(Problem(error, own_fault=True)))

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that are sent with the packet."""
        return [] if self.loaded is None else self.loaded.descriptors

    def close(self) -> None:
        """Close the files in this process; the worker's copies of the descriptors stay open."""
        if self.loaded is not None:
            self.loaded.close()


def overloaded(why: str) -> Unavailable:
    """The error of a request that the daemon does not take at this moment."""
    return Unavailable(f"the daemon is overloaded: {why}", hint="Try again", retry_after=1.0)
