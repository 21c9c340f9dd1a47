"""Networks for nodes: each in a namespace of its own, joined by a bridge, apart from the host."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ADDRESS", "Networks", "inside"]

ADDRESS = "10.77.0.1"
"""Of what serves all nodes."""

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(pid: int) -> Iterator[None]:
    """The network of a process for this thread, and for all threads that it starts meanwhile."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set_network(theirs)
        yield
    finally:
        _set_network(own)
        os.close(own)
        os.close(theirs)


class Networks:
    """A network for what serves all nodes, at ADDRESS, and any number for nodes.

    A context manager, which enters that of the servers.

    Raises:
        OSError: There can be none here; it says why.
    """

    def __init__(self) -> None:
        self._life = contextlib.ExitStack()
        self._numbers = itertools.count(2)
        self._site = 0

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise PermissionError("a network namespace needs root")
        for tool in ("unshare", "nsenter", "ip"):
            if shutil.which(tool) is None:
                raise FileNotFoundError(f"{tool} is not installed")
        with self._life:
            self._site = self._namespace()
            # Of its own; else it would be that of some node's link, and another with each new node.
            own = ("address", "02:00:00:00:00:01")
            _ip(self._site, "link", "add", "name", "site", *own, "type", "bridge")
            _ip(self._site, "address", "add", f"{ADDRESS}/24", "dev", "site")
            _ip(self._site, "link", "set", "site", "up")
            self._life.enter_context(inside(self._site))
            self._life = self._life.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._life.close()

    def node(self) -> tuple[str, ...]:
        """A command that runs another, which is appended to it, in a network of its own."""
        number = next(self._numbers)
        name, pid = f"node{number}", self._namespace()
        peer = ("peer", "name", "eth0", "netns", str(pid))
        _ip(self._site, "link", "add", "name", name, "type", "veth", *peer)
        _ip(self._site, "link", "set", name, "master", "site", "up")
        _ip(pid, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
        _ip(pid, "link", "set", "eth0", "up")
        return ("nsenter", f"--net=/proc/{pid}/ns/net", "--")

    def _namespace(self) -> int:
        """A new one; returns the process that holds it."""
        holder = self._life.enter_context(
            subprocess.Popen(
                ["unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        self._life.callback(holder.kill)
        assert holder.stdout is not None
        if holder.stdout.readline() != b"made\n":
            raise PermissionError("no network namespace can be made here")
        _ip(holder.pid, "link", "set", "lo", "up")
        return holder.pid


def _ip(pid: int, *arguments: str) -> None:
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _set_network(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
