"""What the client's tests share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.cache.directory import CacheDir
from tests.support.daemons import EXPORT, EXPORT_FILES

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache import Client
    from craftcache.wire import Progress
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

__all__ = [
    "Node",
    "FILENAMES",
    "as_root",
    "expected",
    "tree_of",
    "assert_nothing_published",
    "ignore",
    "lm_blob",
    "flip_byte",
]

FILENAMES = tuple(EXPORT_FILES)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def expected(filename: str) -> Any:
    import torch  # most of the tests that import this module need none

    return torch.load(EXPORT / filename, weights_only=True)


def tree_of(directory: Path) -> dict[str, str]:
    """All names below ``directory`` but ours, with what links lead to and files hold."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes().hex()
        for path in directory.rglob("*")
        if not path.is_dir() and ".craftcache" not in path.parts
    }


def assert_nothing_published(cache_dir: Path) -> None:
    cache = CacheDir(cache_dir)
    assert not list(cache.manifests())
    assert not os.listdir(cache.staging)
    assert not list(cache_dir.glob("models--*/refs/*"))
    assert not list(cache_dir.glob("models--*/blobs/*"))
    assert not list(cache_dir.glob(".craftcache/blobs/sha256/*"))


def ignore(_progress: Progress) -> None:
    """Nobody watches."""


def lm_blob(client: Client) -> Path:
    return client.resolve("org/model", "state_dict.bin").resolve()


def flip_byte(path: Path, *, keep_times: bool = True) -> bytes:
    """Change one byte of the weights in place; returns what the file held."""
    status = path.stat()
    held = path.read_bytes()
    at = len(held) // 2
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([held[at] ^ 1]))
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return held


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon and the hub that it fetches from."""

    hub: TestHub
    daemon: DaemonProcess
