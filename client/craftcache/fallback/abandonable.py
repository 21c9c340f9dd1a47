"""Waits that nothing can interrupt, in threads of their own, so that their callers need not wait.

A name is looked up, a connection made, a TLS handshake done and the head of an answer waited for
inside calls that end when they please, after their own time limits at the latest. None of them
leaves anything behind on the disk, so whoever is called off leaves such a call to itself.
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
    """Run ``call`` in a thread of its own and wait for it, until it is called off.

    Args:
        call: Its thread does not keep the process from ending.
        cancellation: Ends the wait at once.
        discard: Called, in that thread, with a result that nobody waits for any more; None where
            a result holds nothing.

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
            outcome.cancel()  # where a signal ended the wait
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
