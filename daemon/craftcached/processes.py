"""Which processes were handed which models, for as long as they run.

A process is known by a pidfd, which the kernel makes readable when it ends: no other process of the
same number is taken for it, and nothing has to be looked at in between. What a process does with a
model is its own affair: it may have mapped it, copied it to a device, or dropped it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from craftcache.daemon.processes import ModelProcess, ModelUse, command_line

from .in_use import is_in_use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["Processes"]

MAX_PROCESSES: Final = 4096
"""Processes that are known; of more than that the first is forgotten."""

MAX_MODELS: Final = 256
"""Models of one process that are known, likewise."""


@dataclass(slots=True)
class _Process:
    uid: int
    pidfd: int
    models: dict[str, ModelUse] = field(default_factory=dict)
    waits_for: Counter[str] = field(default_factory=Counter)


class Processes:
    """The processes that were handed models; a context manager that closes their descriptors.

    Its state changes on the event loop, in steps without an await, so there is no lock.
    """

    def __init__(self) -> None:
        self._by_pid: dict[int, _Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in tuple(self._by_pid):
            self._forget(pid)

    def __len__(self) -> int:
        return len(self._by_pid)

    def note(self, pid: int, uid: int, source: str, revision: str) -> None:
        """Note that a process was handed a model now."""
        process = self._process(pid, uid)
        if process is None:
            return
        known = process.models.pop(source, None)
        loads = 1 if known is None else known.loads + 1
        process.models[source] = ModelUse(source, revision, loads, time.time())
        if len(process.models) > MAX_MODELS:
            del process.models[next(iter(process.models))]

    @contextlib.contextmanager
    def waiting(self, pid: int, uid: int, source: str) -> Iterator[None]:
        """A context in which the process waits for a source."""
        process = self._process(pid, uid)
        if process is None:
            yield
            return
        process.waits_for[source] += 1
        try:
            yield
        finally:
            process.waits_for[source] -= 1
            if not process.waits_for[source]:
                del process.waits_for[source]

    async def all(self, files: Callable[[str], Iterable[Path]]) -> list[ModelProcess]:
        """All that run, by number, with what can be read of them now.

        Args:
            files: Returns the paths of the files of a model that is published under that name. It
                is called in a thread, once for each model, and may block.
        """
        found = [
            ModelProcess(
                pid, process.uid, "", "", tuple(process.models.values()), tuple(process.waits_for)
            )
            for pid, process in sorted(self._by_pid.items())
        ]
        return await asyncio.to_thread(_described, found, files)

    def _process(self, pid: int, uid: int) -> _Process | None:
        """The process of that number; None where it has ended or cannot be known."""
        process = self._by_pid.get(pid)
        if process is not None and process.uid == uid:
            return process
        if process is not None:  # it has another user now, or another process has its number
            self._forget(pid)
        try:
            pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError):  # of another PID namespace, or ended
            return None
        process = self._by_pid[pid] = _Process(uid, pidfd)
        asyncio.get_running_loop().add_reader(pidfd, self._forget, pid)
        if len(self._by_pid) > MAX_PROCESSES:
            self._forget(next(iter(self._by_pid)))
        return process

    def _forget(self, pid: int) -> None:
        process = self._by_pid.pop(pid, None)
        if process is not None:
            asyncio.get_running_loop().remove_reader(process.pidfd)
            os.close(process.pidfd)


def _described(
    found: list[ModelProcess], files: Callable[[str], Iterable[Path]]
) -> list[ModelProcess]:
    sources = {use.source for each in found for use in each.models}
    is_open = {source: _is_open(files(source)) for source in sources}
    return [
        replace(
            each,
            user=_user(each.uid),
            command=command_line(each.pid),
            models=tuple(replace(use, is_open=is_open[use.source]) for use in each.models),
        )
        for each in found
    ]


def _is_open(paths: Iterable[Path]) -> bool | None:
    """Whether anybody has one of these files open; None where the kernel does not say."""
    answers: set[bool | None] = set()
    for path in paths:
        with contextlib.suppress(OSError):  # removed meanwhile
            answers.add(is_in_use(path))
    if True in answers:
        return True
    return None if None in answers or not answers else False


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
