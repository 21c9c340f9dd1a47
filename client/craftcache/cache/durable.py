"""Writes that survive power loss and are never seen half done."""

from __future__ import annotations

import errno
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "write_file",
    "link_file",
    "sync_directory",
    "make_directory",
    "staging_name",
    "beside",
    "file_mode",
]

DIRECTORY_MODE = 0o755


def write_file(
    path: Path, data: bytes, *, staging: Path, mode: int = 0o644, durable: bool = True
) -> None:
    """Put ``data`` at ``path`` in one step: written in ``staging``, fsynced, renamed.

    Args:
        path: The final name; its directory must exist.
        data: The content.
        staging: A directory, on the same file system if no directory was linked to another one;
            then it is written beside ``path``.
        mode: Permission bits of the file.
        durable: Whether it must survive power loss.

    Raises:
        OSError: Nothing has changed at ``path``.
    """
    try:
        _write_by(make_directory(staging) / staging_name(), path, data, mode, durable=durable)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _write_by(beside(path), path, data, mode, durable=durable)
    if durable:
        sync_directory(path.parent)


def _write_by(staged: Path, path: Path, data: bytes, mode: int, *, durable: bool) -> None:
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(descriptor)
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def link_file(path: Path, name: Path) -> None:
    """Give the file at ``path``, links followed, another name.

    Raises:
        FileExistsError: Something has that name.
        OSError: It cannot be had.
    """
    os.link(os.path.realpath(path), name)  # link(2) would give a second name to a link itself


def sync_directory(path: Path) -> None:
    """Make the names in ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> Path:
    """Make ``path`` and its parents where they are missing, durably; returns ``path``."""
    for directory in reversed(list(_missing(path))):
        directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        sync_directory(directory.parent)
    return path


def staging_name() -> str:
    """A name that no other writer in the same staging directory has."""
    return f"{os.getpid()}-{secrets.token_hex(8)}.tmp"


def beside(path: Path) -> Path:
    """A name in the directory of ``path`` that no other writer has, and that no reader looks for.

    For what must stand on the file system of ``path``, wherever links lead.
    """
    return path.parent / f".craftcache-{staging_name()}"


def file_mode() -> int:
    """The mode that this process's umask gives a new file, but never for others to write to.

    Read without changing the umask, which is the whole process's.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = dict(line.split(":", 1) for line in status)
        return 0o644 & ~int(lines["Umask"], 8)
    except (OSError, KeyError):
        return 0o644


def _missing(path: Path) -> Iterator[Path]:
    while not path.is_dir():
        yield path
        path = path.parent
