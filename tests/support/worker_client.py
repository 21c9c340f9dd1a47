"""How the tests ask a daemon, and how long they wait for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.daemon.transport import Call, Cancellation, Deadlines, WorkerSocket
from craftcache.wire import Progress
from tests.support.sockets.serving import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SHORT", "ENDLESS", "QUEUED", "never", "ask", "NoticingWithdrawal"]

SHORT = Deadlines(unasked=0.01, silence=0.05, restart=0.05, pause=0.001)
"""Deadlines that a test can wait for."""

ENDLESS = Deadlines(unasked=SECONDS, silence=SECONDS, restart=SECONDS, pause=0.001)
"""Deadlines that no test reaches."""

QUEUED = Progress("org/name", None, 0, None, "queued")


def never() -> float:
    pytest.fail("the caller was asked for its patience")


def ignore(_progress: Progress) -> None:
    """Nobody watches."""


def ask(
    worker: WorkerSocket,
    request: Any,
    *,
    patience: Callable[[], float] = never,
    on_progress: Callable[[Progress], None] = ignore,
    cancellation: Cancellation | None = None,
) -> Any:
    call = Call(on_progress, cancellation or Cancellation())
    return worker.ask(request, call, patience=patience)


class NoticingWithdrawal(Cancellation):
    """Tells the test when a request pauses before another attempt."""

    __slots__ = ("paused",)

    def __init__(self) -> None:
        super().__init__()
        self.paused = threading.Event()

    def pause(self, seconds: float) -> None:
        self.paused.set()
        super().pause(seconds)
