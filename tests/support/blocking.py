"""Calls that block a running event loop: which count, where they are allowed, who makes them.

Accepted by design are calls on names (stat, unlink, rename and the like): on a local disk they
take a few microseconds, less than a hop to a thread. What reads, writes, syncs or hashes the
content of files, waits for a lock or for a network, is not.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from blockbuster import BlockBuster, BlockingError

import craftcache
import craftcached
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ON_NAMES", "SMALL", "blocking_calls"]

ON_NAMES = (
    *("os.access", "os.link", "os.listdir", "os.mkdir", "os.readlink", "os.remove", "os.rename"),
    *("os.replace", "os.rmdir", "os.scandir", "os.stat", "os.symlink", "os.unlink"),
    *("os.path.abspath", "os.path.islink", "os.path.ismount", "os.path.samestat"),
    *("os.path.sameopenfile", "os.getcwd"),
)
"""Calls on names rather than on content, which are allowed on the event loop."""

SMALL = (
    # At the very end: one byte into a pipe, at which the thread that reads inotify ends.
    ("os.write", "craftcached/watch/inotify.py", "__exit__"),
    ("threading.Lock.acquire", "craftcached/watch/inotify.py", "__exit__"),
    # What pytest keeps of the log. The daemon's own has a thread that writes it.
    ("io.TextIOWrapper.write", "logging/__init__.py", "emit"),
    ("io.BufferedWriter.write", "logging/__init__.py", "emit"),
)
"""Calls on content that take no longer than those on names: what, in which file and function."""

_TESTS = f"{ROOT / 'tests'}{os.sep}"
_PRODUCT = tuple(f"{package.__path__[0]}{os.sep}" for package in (craftcache, craftcached))
_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@contextmanager
def blocking_calls() -> Iterator[list[str]]:
    """While this is open, a call of ours that blocks a running loop raises BlockingError.

    Yields a list that grows by our part of the stack of each such call, because code that catches
    Exception, or answers it with an HTTP status, would hide the error.
    """
    calls: list[str] = []

    class Noted(BlockingError):
        def __init__(self, function: str) -> None:
            super().__init__(function)
            ours = [
                frame
                for frame in traceback.extract_stack()
                if frame.filename != __file__ and frame.filename.startswith((*_PRODUCT, _TESTS))
            ]
            calls.append(f"{self}\n{''.join(traceback.format_list(ours))}")

    buster = BlockBuster((craftcache, craftcached))
    for name in ON_NAMES:
        del buster.functions[name]
    for name, file, function in SMALL:
        buster.functions[name].can_block_in(file, function)
    for wrapped in buster.functions.values():
        wrapped.can_block_predicate = _or_made_by_a_test(wrapped.can_block_predicate)
    with patch("blockbuster.blockbuster.BlockingError", Noted):
        buster.activate()
        try:
            yield calls
        finally:
            buster.deactivate()


def _or_made_by_a_test(harmless: Callable[..., bool]) -> Callable[..., bool]:
    return lambda *args, **kwargs: harmless(*args, **kwargs) or _is_made_by_a_test()


def _is_made_by_a_test() -> bool:
    """Whether a test made the current call, or its coroutine called a blocking function of ours.

    Tests may block their own loops. What counts is what the product's coroutines and callbacks do.
    """
    frame: Any = sys._getframe(1)
    innermost = True
    while frame is not None:
        file, is_coroutine = frame.f_code.co_filename, frame.f_code.co_flags & _COROUTINE
        if file != __file__ and file.startswith(_TESTS):
            if innermost or is_coroutine:
                return True
            innermost = False
        elif file.startswith(_PRODUCT):
            if is_coroutine:
                return False
            innermost = False
        frame = frame.f_back
    return False
