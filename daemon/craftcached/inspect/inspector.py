"""The daemon's side of inspection: hands files to the warm parent, and survives its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any, Final, Self

from craftcache.checkpoint.index import MAX_BYTES, parse
from craftcache.errors import CraftcacheError, NotACheckpoint, Unavailable, from_problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Inspector", "REFUSED"]

REFUSED: Final = 3
"""Exit status of a child that wrote a problem document instead of an index."""

_START_SECONDS: Final = 120.0
"""For the parent to import torch, from a cold disk or a slow network file system."""

_GRACE_SECONDS: Final = 10.0
"""Beyond a job's deadline, after which the parent itself counts as hung."""

_ATTEMPTS: Final = 2
"""With a file, before the death of the parent counts as an outage."""

_MESSAGE_BYTES: Final = 4096

_HINT: Final = "Ask its publisher for a whole file that torch.save wrote"
"""For the many ways in which a file can be damaged, which all leave the same to do."""

_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""What the parent may see of the daemon's environment; tokens are not among it."""


class Inspector:
    """Says whether a checkpoint is safe to load, and what it holds.

    Each file is looked at by a confined process of its own, a fork of one warm parent that has
    imported torch. The parent starts with the first file, and anew when it has died. Leaving the
    context ends it and all of its children.

    Args:
        cpu_seconds: Of computing that one file may take; one that takes more is no checkpoint.
        deadline: Seconds after which an inspection is given up, and tried again when the file is
            asked for again: it was the machine or its storage that was slow.
        concurrency: Files looked at at once.
    """

    def __init__(
        self, *, cpu_seconds: int = 60, deadline: float = 600.0, concurrency: int = 2
    ) -> None:
        self._cpu_seconds = cpu_seconds
        self._deadline = deadline
        self._slots = asyncio.Semaphore(concurrency)
        self._parent: asyncio.Task[_Parent] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        if self._parent is None:
            return
        self._parent.cancel()
        await asyncio.wait([self._parent])
        if not self._parent.cancelled() and self._parent.exception() is None:
            await self._parent.result().close()

    def prepare(self) -> None:
        """Start the warm parent, so that a file that comes soon need not wait for it."""
        if not self._closed:
            self._begin_parent()

    async def inspect(self, path: Path, *, source: str) -> bytes:
        """The index of the checkpoint at ``path``, as ``checkpoint.index.parse`` reads it.

        Args:
            path: A regular file, or a link to one.
            source: Named in errors.

        Raises:
            UnsafeCheckpoint: Loading it would call something; the message names it.
            NotACheckpoint: It is damaged, absurd, or no checkpoint.
            Unavailable: Inspection itself failed, through no fault of the file.
        """
        with _opened(path, source) as file:
            return await self._run(file)

    async def _run(self, file: int) -> bytes:
        """Try once more where the parent died: it may have been for another reason."""
        async with self._slots:
            for _ in range(_ATTEMPTS):
                parent = await self._warm_parent()
                with contextlib.suppress(_ParentDied):
                    return await parent.run(file, self._cpu_seconds, self._deadline)
        raise Unavailable("the process that inspects checkpoints dies")

    async def _warm_parent(self) -> _Parent:
        if self._closed:
            raise Unavailable("inspection has been shut down")
        return await asyncio.shield(self._begin_parent())

    def _begin_parent(self) -> asyncio.Task[_Parent]:
        """The parent that is there or on its way, started if there is none."""
        if self._parent is not None and self._parent.done():
            failed = self._parent.cancelled() or self._parent.exception() is not None
            if failed or not self._parent.result().alive:
                self._parent = None
        if self._parent is None:
            self._parent = asyncio.create_task(_Parent.start(), name="inspection parent")
        return self._parent


@contextlib.contextmanager
def _opened(path: Path, source: str) -> Iterator[int]:
    """A checkpoint, open for reading; errors that leave this are about it."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise NotACheckpoint("it is no regular file", source=source)
        yield file
    except CraftcacheError as error:
        error.source = source
        if isinstance(error, NotACheckpoint):
            error.hint = error.hint or _HINT
        raise
    finally:
        os.close(file)


class _ParentDied(Exception):
    """The warm parent ended while a job was with it."""


class _Parent:
    """One warm parent and the jobs that are with it."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._jobs: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0
        self.alive = True
        self._loop.add_reader(control, self._receive)

    @classmethod
    async def start(cls) -> _Parent:
        """A parent that has imported torch."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "craftcached.inspect.forkserver"),
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    start_new_session=True,  # an interrupt at the terminal is the daemon's
                )
        except BaseException:
            ours.close()
            raise
        parent = cls(process, ours)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await parent._ready
        except (TimeoutError, _ParentDied) as error:
            await parent.close()
            raise Unavailable("the process that inspects checkpoints does not start") from error
        except BaseException:
            await parent.close()
            raise
        return parent

    async def run(self, file: int, cpu_seconds: int, seconds: float) -> bytes:
        """The index that was asked for.

        Raises:
            _ParentDied: The parent ended or hung before the job did.
            CraftcacheError: As Inspector.inspect.
        """
        self._last += 1
        number = self._last
        ended = self._jobs[number] = self._loop.create_future()
        result = os.memfd_create("index", os.MFD_CLOEXEC)
        try:
            message = {"job": number, "cpu_seconds": cpu_seconds, "seconds": seconds}
            self._send(message, [file, result])
            async with asyncio.timeout(seconds + _GRACE_SECONDS):
                report = await ended
            found = os.pread(result, MAX_BYTES, 0)
        except TimeoutError as error:
            await self.close()
            raise _ParentDied from error
        except asyncio.CancelledError:
            with contextlib.suppress(_ParentDied):
                self._send({"job": number, "cancel": True})
            raise
        finally:
            del self._jobs[number]
            os.close(result)
        if report["late"]:
            raise Unavailable(
                f"its inspection was not done within {seconds:g} s",
                hint="Try again when the machine or the cache's file system is less busy",
            )
        size = os.fstat(file).st_size
        return await asyncio.to_thread(_outcome, report["status"], found, size)

    async def close(self) -> None:
        """End the process and, with it, its children."""
        self._end()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        if not self.alive:
            raise _ParentDied
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], fds or [])
        except OSError as error:
            self._end()
            raise _ParentDied from error

    def _receive(self) -> None:
        """Take the parent's messages; an empty one is its end."""
        while self.alive:
            try:
                data = self._control.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end()
                return
            message = json.loads(data)
            waiting = self._ready if "ready" in message else self._jobs.get(message["job"])
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    def _end(self) -> None:
        """Fail all jobs; afterwards this parent takes no more."""
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._control)
        self._control.close()
        for waiting in (self._ready, *self._jobs.values()):
            if not waiting.done():
                waiting.set_exception(_ParentDied())


def _outcome(status: int, found: bytes, file_size: int) -> bytes:
    """The index that a child wrote, or the error that its end means."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        raise Unavailable(
            "its inspection was killed",
            hint="The kernel does so when memory is short; see its log",
        )
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        raise NotACheckpoint("inspecting it takes more computing than any checkpoint needs")
    if os.WIFSIGNALED(status):
        raise NotACheckpoint(f"it crashes torch ({signal.Signals(os.WTERMSIG(status)).name})")
    match os.WEXITSTATUS(status):
        case 0:
            with _translated():
                parse(found, file_size=file_size)
            return found
        case code if code == REFUSED:
            with _translated():
                problem = json.loads(found)
                if not isinstance(problem, dict):
                    raise TypeError("no problem document")
            raise from_problem(problem)
    raise Unavailable("its inspection failed", hint="The daemon's log says why", retryable=False)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """A child that writes nonsense was subverted, or is broken by its file."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise NotACheckpoint("its inspection gave no result") from error
