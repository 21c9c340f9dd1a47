"""The process that inspecting processes are forked from.

To start a Python and import the reader takes a hundred times as long as to inspect a small file,
so it is done once. This process reads no file and decides nothing: it is given a checkpoint's
descriptor and forks a process that is confined before it reads the first byte, see ``child``, and
that ends with the file. It has left the network itself, for its children to have none.

It talks by one socket of type SOCK_SEQPACKET with the daemon, one JSON object a packet::

    daemon: {"begin": 7, "cpu_seconds": 60}    with the descriptors of checkpoint and result
    daemon: {"kill": 7}                        nothing, if it has ended
    server: {"ended": 7, "status": 0}          of an exit, or a signal's number, negative
    server: {"refused": 7, "errno": 11}        no process could be forked

When the socket is closed it ends, and with it all that it has forked.
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
from typing import Any, NoReturn

from .child import inspect_file
from .confine import die_with_parent, leave_network

__all__ = ["MAX_MESSAGE", "main"]

MAX_MESSAGE = 256
"""Bytes of a packet, in either direction."""


class _ForkServer:
    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self._running: dict[int, int] = {}
        """Numbers of the inspections by process."""
        self._ends, self._wakening = os.pipe()
        for descriptor in (self._ends, self._wakening):
            os.set_blocking(descriptor, False)
        self._poll = select.poll()
        for source in (door.fileno(), self._ends):
            self._poll.register(source, select.POLLIN)

    def serve(self) -> None:
        """Until the daemon has closed its end."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakening, warn_on_full_buffer=False)
        while True:
            ready = {fd for fd, _ in self._poll.poll()}
            if self._ends in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._ends, 4096)
                self._reap()
            if self._door.fileno() in ready and not self._obey():
                return

    def _obey(self) -> bool:
        """Do what the daemon asks for; False once it asks no more."""
        packet, descriptors, _, _ = socket.recv_fds(self._door, MAX_MESSAGE, 2)
        if not packet:
            return False
        message = json.loads(packet)
        if "kill" in message:
            for pid, number in self._running.items():
                if number == message["kill"]:
                    os.kill(pid, signal.SIGKILL)  # not reaped yet, so it is still that one
            return True
        try:
            self._begin(message["begin"], descriptors, message["cpu_seconds"])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _begin(self, number: int, descriptors: list[int], cpu_seconds: int) -> None:
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"refused": number, "errno": error.errno})
            return
        if pid:
            self._running[pid] = number
            return
        try:
            die_with_parent(server)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._door.close()
            os.close(self._ends)
            os.close(self._wakening)
            file, result = descriptors
            inspect_file(file, result, cpu_seconds)
        finally:
            os._exit(1)  # whatever it was, it is nothing to go on from as the server

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number = self._running.pop(pid)
            self._tell({"ended": number, "status": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, Any]) -> None:
        self._door.send(json.dumps(message).encode())


def main() -> NoReturn:
    """Serve on the socket that the command line names: DOOR PARENT."""
    door, parent = map(int, sys.argv[1:])
    leave_network()
    die_with_parent(parent)
    gc.disable()  # it only takes time: neither this process nor a child makes garbage that matters
    gc.freeze()
    with contextlib.suppress(OSError), socket.socket(fileno=door) as own:  # the daemon has ended
        _ForkServer(own).serve()
    os._exit(0)
