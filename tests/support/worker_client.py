"""How the tests ask a daemon, and how long they wait for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.daemon.transport import Cancellation, Deadlines, WorkerSocket
from craftcache.wire import Progress
from tests.support.sockets.serving import SECONDS

if TYPE_CHECKING:
    from craftcache.daemon.transport import Reply

__all__ = ["SHORT", "ENDLESS", "QUEUED", "never", "ask", "NoticingWithdrawal"]

SHORT = Deadlines(unasked=0.01, silence=0.05, restart=0.05, pause=0.001)
"""Deadlines that a test can wait for."""

ENDLESS = Deadlines(unasked=SECONDS, silence=SECONDS, restart=SECONDS, pause=0.001)
"""Deadlines that no test reaches."""

QUEUED = Progress("org/name", None, 0, None, "queued")


def never() -> float:
    pytest.fail("the caller was asked for its patience")


def ask(worker: WorkerSocket, request: Any, **options: Any) -> Reply[Any]:
    return worker.ask(request, **{"patience": never} | options)


class NoticingWithdrawal(Cancellation):
    """Tells the test when a request pauses before another attempt."""

    __slots__ = ("paused",)

    def __init__(self) -> None:
        super().__init__()
        self.paused = threading.Event()

    def pause(self, seconds: float) -> None:
        self.paused.set()
        super().pause(seconds)
