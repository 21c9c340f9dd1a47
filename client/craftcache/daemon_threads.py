"""Threads that keep no process alive: what the asynchronous client's calls run in.

The standard library's pools join their threads when the interpreter ends, so that one call that
waits (for a slow origin, for the next generation of a watch) would keep a program from ending.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DaemonThreads"]

T = TypeVar("T")

_Submitted: TypeAlias = "tuple[Future[Any], Callable[[], Any]]"

IDLE_SECONDS = 10.0
"""Time that a thread waits for the next call before it ends."""


class DaemonThreads:
    """Runs calls in daemon threads, which are kept for the next call for a while.

    Args:
        most: Threads at once; further calls wait for one.
        name: Prefix of the threads' names.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._calls: queue.SimpleQueue[_Submitted | None] = queue.SimpleQueue()
        """Calls to make; None ends the thread that takes it."""
        # Guards what follows. Nothing blocks and no other lock is taken while it is held.
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._free = 0
        """Threads that wait for a call, less the calls that wait for a thread."""

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Run ``call`` as soon as a thread is free.

        Raises:
            RuntimeError: The system has no thread left.
        """
        future: Future[T] = Future()
        with self._lock:
            self._free -= 1
            thread = None
            if self._free < 0 and len(self._threads) < self._most:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._threads.add(thread)
                self._free += 1
        self._calls.put((future, call))
        if thread is not None:
            try:
                thread.start()
            except BaseException:
                with self._lock:
                    self._threads.discard(thread)
                    self._free -= 1
                if future.cancel():
                    raise
        return future

    def close(self) -> None:
        """End the threads as soon as their calls have ended, and wait for them."""
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._calls.put(None)
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        while True:
            try:
                submitted = self._calls.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._free > 0:  # no call is on its way to this thread
                        self._leave()
                        return
                continue
            if submitted is None:
                with self._lock:
                    self._leave()
                return
            future, call = submitted
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:  # noqa: BLE001  # whoever waits for it gets it
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del submitted, future, call  # an idle thread keeps nothing alive
            with self._lock:
                self._free += 1

    def _leave(self) -> None:
        self._free -= 1
        self._threads.discard(threading.current_thread())
