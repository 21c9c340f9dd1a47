"""The warm parent: a process that has imported torch and forks one child for each file.

``python -m craftcached.inspect.forkserver FD`` serves on the SOCK_SEQPACKET socket FD. One message
asks for one inspection: ``{"job": n, "cpu_seconds": c, "seconds": s}`` with two descriptors, the
file and an empty memory file for the result. ``{"job": n, "cancel": true}`` withdraws a job. The
parent says ``{"ready": true}`` once, and for each job that ended ``{"job": n, "status": w, "late":
b}`` with the child's wait status. Status 0 means that the result is an index, REFUSED that it is an
error's problem document; SIGXCPU ends what computes too long, any other signal is a crash, any
other status a bug of ours.

It ends, and all children with it, when the other end of the socket closes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from typing import Final, NoReturn

import torch

from craftcache.checkpoint.index import MAX_BYTES
from craftcache.errors import CraftcacheError

from .confine import confine, die_with_parent
from .examine import allow_globals, examine
from .inspector import REFUSED

__all__ = ["main"]

_MESSAGE_BYTES: Final = 4096


@dataclass(slots=True)
class _Job:
    """A child at work; ``late`` is set when it is killed for its deadline."""

    number: int
    pid: int
    deadline: float
    late: bool = False


@dataclass(frozen=True, slots=True)
class _Task:
    """What a child does, by the descriptors that it is given.

    Attributes:
        file: The checkpoint.
        result: Takes its index, or an error's problem document.
    """

    file: int
    result: int


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._jobs: dict[int, _Job] = {}
        """By the pidfd of the child."""

    def serve(self) -> None:
        """Until the other end closes."""
        self._send({"ready": True})
        while True:
            for fd, _ in self._poll.poll(self._patience()):
                if fd in self._jobs:
                    self._finish(fd)
                elif not self._receive():
                    return
            self._kill_late()

    def close(self) -> None:
        """Kill and reap what is still at work."""
        for pidfd, job in list(self._jobs.items()):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(job.pid, 0)

    def _patience(self) -> float | None:
        """Milliseconds until the next deadline."""
        deadlines = [job.deadline for job in self._jobs.values() if not job.late]
        return max(0.0, min(deadlines) - time.monotonic()) * 1000 + 1 if deadlines else None

    def _kill_late(self) -> None:
        now = time.monotonic()
        for pidfd, job in self._jobs.items():
            if job.deadline <= now and not job.late:
                job.late = True
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _receive(self) -> bool:
        """Act on one message; whether there was one."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 2)
        except ConnectionError:
            return False
        if not data:
            return False
        try:
            message = json.loads(data)
            if "cancel" in message:
                self._cancel(message["job"])
            else:
                task = _Task(*fds)
                self._start(message["job"], message["cpu_seconds"], message["seconds"], task)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _start(self, number: int, cpu_seconds: int, seconds: float, task: _Task) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_child(parent, task, cpu_seconds)
        pidfd = os.pidfd_open(pid)
        self._jobs[pidfd] = _Job(number, pid, time.monotonic() + seconds)
        self._poll.register(pidfd, select.POLLIN)

    def _cancel(self, number: int) -> None:
        for pidfd, job in self._jobs.items():
            if job.number == number:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _finish(self, pidfd: int) -> None:
        job = self._jobs.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(job.pid, 0)
        self._send({"job": job.number, "status": status, "late": job.late})

    def _send(self, message: dict[str, object]) -> None:
        with contextlib.suppress(ConnectionError):  # the next receive sees the end
            self._control.send(json.dumps(message).encode())


def _run_child(parent: int, task: _Task, cpu_seconds: int) -> NoReturn:
    """Do one task and exit, whatever happens."""
    status = 1
    try:
        die_with_parent(parent)
        _close_all_but(task.file, task.result)
        confine(cpu_seconds=cpu_seconds, file_bytes=MAX_BYTES)
        status = _do(task)
    except BaseException:  # noqa: BLE001  reported; nothing may outlive this call
        traceback.print_exc()
    finally:
        os._exit(status)


def _close_all_but(*kept: int) -> None:
    """Close what is inherited: the socket and the files of other jobs."""
    first = sys.stderr.fileno() + 1
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _do(task: _Task) -> int:
    try:
        found, status = examine(task.file), 0
    except CraftcacheError as error:
        found, status = json.dumps(error.to_problem()).encode(), REFUSED
    with open(task.result, "wb") as output:
        output.write(found)
    return status


def main() -> None:
    """Serve on the descriptor that the command line names."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch warns of what files hold; refusals say it better
    gc.disable()
    allow_globals()
    server = _Server(socket.socket(fileno=int(sys.argv[1])))
    try:
        server.serve()
    finally:
        server.close()


if __name__ == "__main__":
    main()
