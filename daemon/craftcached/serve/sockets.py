"""Makes the daemon's listening Unix sockets where systemd has not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING

from craftcache.daemon.gpu_services import gpu_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Door", "bind_worker_socket", "bind_admin_socket", "bind_gpu_socket", "BACKLOG"]

MAX_PATH_BYTES = 107
"""What the kernel takes for the path of a Unix socket, on both sides."""

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel's own limit (somaxconn) may be lower."""


class Door:
    """A listening socket and the path that leads to it, which others may remove.

    Args:
        listener: The listening socket.
        listen: Makes another listening socket at the same path.
        is_ours: Whether this process makes and removes the path, rather than a service manager.

    Attributes:
        listener: The socket that listens now; ``reopen`` does not close the one before.
        path: Path of the socket in the file system.
    """

    def __init__(
        self, listener: socket.socket, listen: Callable[[], socket.socket], *, is_ours: bool
    ) -> None:
        self.listener = listener
        self.path: str = listener.getsockname()
        self._listen = listen
        self._is_ours = is_ours
        self._inode = self._found()

    def is_gone(self) -> bool:
        """Whether the path was removed or now leads to another socket."""
        return self._found() != self._inode

    def reopen(self) -> None:
        """Listen on a new socket at the path, which does not lead to this one any more.

        Raises:
            OSError: A new socket cannot be made, or something else has the path; clients cannot
                connect.
        """
        if self._found() is not None:
            raise OSError(errno.EEXIST, "something else was put in its place", self.path)
        if not self._is_ours:
            raise OSError(errno.ENOENT, "restart craftcache.socket, which makes it", self.path)
        self.listener = self._listen()
        self._inode = self._found()

    def close(self) -> None:
        """Stop listening, and remove the path if it is ours and still leads to this socket."""
        self.listener.close()
        if self._is_ours and self._found() == self._inode:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)

    def _found(self) -> int | None:
        """Inode number of what is at the path; None if nothing is."""
        try:
            return os.lstat(self.path).st_ino
        except OSError:
            return None


def bind_worker_socket(
    socket_dir: Path, *, mode: int = 0o666, gid: int | None = None
) -> socket.socket:
    """Listen on ``worker/handles.sock`` under ``socket_dir``.

    The directory ``worker``, which containers mount, is made where it is missing and can be
    entered by all: who may connect is decided by the socket's mode and group. A socket on which
    nobody answers any more is replaced.

    Raises:
        OSError: The path is too long, is taken by something else, or another daemon answers.
    """
    return _bind(socket_dir, "worker/handles.sock", socket.SOCK_SEQPACKET, mode, gid)


def bind_admin_socket(
    socket_dir: Path, *, mode: int = 0o660, gid: int | None = None
) -> socket.socket:
    """Listen on ``craftcache.sock`` under ``socket_dir``; otherwise like bind_worker_socket."""
    return _bind(socket_dir, "craftcache.sock", socket.SOCK_STREAM, mode, gid)


def bind_gpu_socket(
    socket_dir: Path, uuid: str, *, mode: int = 0o666, gid: int | None = None
) -> socket.socket:
    """Listen on ``gpu/UUID.sock`` under ``socket_dir``, for the service of that GPU.

    The directory ``gpu`` is its user's own; otherwise like bind_worker_socket.
    """
    path = socket_dir / gpu_socket(uuid)
    return _bind(path.parent, path.name, socket.SOCK_SEQPACKET, mode, gid)


def _bind(
    socket_dir: Path, name: str, kind: socket.SocketKind, mode: int, gid: int | None
) -> socket.socket:
    path = socket_dir / name
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise OSError(
            errno.ENAMETOOLONG,
            f"the path of a socket has at most {MAX_PATH_BYTES} bytes; choose a shorter socket_dir",
            os.fspath(path),
        )
    _make_directory(socket_dir)
    _make_directory(path.parent)
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        with _only_starter(socket_dir):
            _clear(path, kind)
            listener.bind(os.fspath(path))
            # Until listen, nobody can connect, whatever the mode is by then.
            path.chmod(mode)
            if gid is not None:
                os.chown(path, -1, gid)
            listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return
    directory.chmod(0o755)  # whatever the umask


@contextlib.contextmanager
def _only_starter(socket_dir: Path) -> Iterator[None]:
    """Keep two daemons that start at once from replacing each other's sockets."""
    path = socket_dir / ".lock"
    # Private to the daemon's user, so that nobody else can hold it.
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise OSError(
            errno.EADDRINUSE, "another daemon is starting here", os.fspath(path)
        ) from None
    finally:
        os.close(lock)


def _clear(path: Path, kind: socket.SocketKind) -> None:
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise OSError(errno.EEXIST, "this is no socket, and is left alone", os.fspath(path))
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        refusal = probe.connect_ex(os.fspath(path))
    if refusal != errno.ECONNREFUSED:
        raise OSError(errno.EADDRINUSE, "another daemon answers here", os.fspath(path))
    path.unlink()
