"""Calls that cannot be interrupted, in threads of their own, which a cancelled caller abandons.

Looking up a name, connecting, a TLS handshake and the wait for the head of an answer are calls
that end on their own time limits only. They write nothing to the disk, so a cancelled caller can
leave such a call to end by itself.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import TYPE_CHECKING, TypeVar

from craftcache.daemon.transport import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.daemon.transport import Cancellation

__all__ = ["call_apart"]

T = TypeVar("T")


def call_apart(
    call: Callable[[], T],
    *,
    cancellation: Cancellation,
    discard: Callable[[T], object] | None = None,
) -> T:
    """Run ``call`` in a thread of its own, and wait for its result or for a cancellation.

    Args:
        call: The call; it runs in a daemon thread, which does not keep the process alive.
        cancellation: Ends the wait at once.
        discard: Called in that thread with the result of an abandoned call, to release it; None
            for results that hold nothing.

    Raises:
        Cancelled: ``cancellation`` was used.
        Exception: Whatever ``call`` raised.
    """
    outcome: Future[T] = Future()
    with cancellation.ending(outcome.cancel):
        arguments = (call, outcome, discard)
        threading.Thread(
            target=_conclude, args=arguments, name="craftcache-origin", daemon=True
        ).start()
        try:
            return outcome.result()
        except CancelledError as error:
            raise Cancelled from error
        finally:
            outcome.cancel()  # if a signal handler's exception ended the wait
            del outcome, arguments  # an error that it holds must not hold it in turn


def _conclude(
    call: Callable[[], T], outcome: Future[T], discard: Callable[[T], object] | None
) -> None:
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001  # raised where it is waited for
        with contextlib.suppress(InvalidStateError):
            outcome.set_exception(error)
        del outcome  # as above
        return
    try:
        outcome.set_result(result)
    except InvalidStateError:
        if discard is not None:
            discard(result)
