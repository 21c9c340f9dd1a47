"""fs-verity, on a file system that has it, where the kernel does; and where nothing has it.

The disk is an image of ext4 with that feature, mounted for the test, which takes root, mkfs.ext4
and a kernel that was built with CONFIG_FS_VERITY.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.publish import Verified
from craftcache.cache.stamps import FileStamp
from craftcache.digests import hash_stamped
from craftcache.sources import UrlSource
from craftcached.store.verity import Verity
from tests.support.scrubbing import bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHA256 = "a" * 64
CONTENT = b"content that is found in the image " * 1000


class VerityDisk:
    """An ext4 file system in a file.

    Attributes:
        directory: Where it is mounted.
    """

    def __init__(self, base: Path) -> None:
        self.directory = base / "disk"
        self._image = base / "image"
        with self._image.open("wb") as file:
            file.truncate(64 * 1024 * 1024)
        self.directory.mkdir()

    def make(self) -> None:
        _run("mkfs.ext4", "-q", "-O", "verity", "-b", "4096", str(self._image))

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.directory))

    def unmount(self) -> None:
        _run("umount", str(self.directory))

    def rot(self, content: bytes) -> None:
        """Change a byte of a file's content where it lies on the disk."""
        at = self._image.read_bytes().index(content)
        with self._image.open("r+b") as file:
            file.seek(at + len(content) // 2)
            file.write(b"?")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")


@pytest.fixture
def verity_disk(tmp_path: Path) -> Iterator[VerityDisk]:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a disk with fs-verity takes root and mkfs.ext4")
    disk = VerityDisk(tmp_path)
    disk.make()
    disk.mount()
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk.directory)], capture_output=True, check=False)


async def supported(cache: CacheDir) -> Verity:
    verity = Verity(cache)
    await verity.open()
    if not verity.is_supported:
        verity.close()
        pytest.skip("the kernel was built without CONFIG_FS_VERITY: it answers EOPNOTSUPP")
    return verity


async def test_a_protected_file_is_read_and_not_written(verity_disk: VerityDisk) -> None:
    cache = CacheDir(verity_disk.directory / "cache")
    cache.create()
    verity = await supported(cache)
    blob = cache.url_blobs.path(SHA256)
    blob.write_bytes(b"content")
    cache.stamps.record(SHA256, FileStamp.of(blob.stat()))
    mtime_ns = blob.stat().st_mtime_ns
    await verity.protect(blob, SHA256)
    await verity.protect(blob, SHA256)
    assert blob.read_bytes() == b"content"
    assert blob.stat().st_mtime_ns == mtime_ns  # as its manifest has it
    assert cache.stamps.has(SHA256, blob.stat())
    with pytest.raises(PermissionError):
        blob.open("r+b")
    blob.rename(blob.with_name("moved"))  # it can be removed and put aside as ever
    verity.close()


async def test_rot_in_a_protected_file_is_an_error_when_it_is_read(
    verity_disk: VerityDisk,
) -> None:
    base = verity_disk.directory
    cache = CacheDir(base / "cache")
    cache.create()
    (await supported(cache)).close()
    async with bench(base) as parts:
        came = parts.store.cache.staging / "came"
        came.write_bytes(CONTENT)
        source = UrlSource("https://host/one.json")
        verified = Verified(hash_stamped(came), None, 0, 0)
        manifest = await parts.store.publisher.publish_url(
            source, {"one.json": (verified, source.url)}
        )
        (record,) = manifest.files
        parts.now = record.verified_at.timestamp()
        await parts.scrub().step()  # its survey protects what is published
        path = parts.store.cache.path(record)
        with pytest.raises(PermissionError):
            path.open("r+b")
    verity_disk.unmount()
    verity_disk.rot(CONTENT)
    verity_disk.mount()
    async with bench(base) as parts:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            path.read_bytes()
        verdicts = await parts.verify(await parts.store.published())
        assert [(each.outcome, each.part) for each in verdicts] == [("wrong", "file")]
        assert not path.exists()
        assert len(await parts.quarantine.files()) == 1


async def test_nothing_depends_on_it(tmp_path: Path) -> None:
    cache = CacheDir(tmp_path)
    cache.create()
    verity = Verity(cache)
    await verity.open()
    assert os.listdir(cache.staging) == []
    blob = cache.url_blobs.path(SHA256)
    blob.write_bytes(b"content")
    cache.stamps.record(SHA256, FileStamp.of(blob.stat()))
    await verity.protect(blob, SHA256)
    assert blob.read_bytes() == b"content"
    assert cache.stamps.has(SHA256, blob.stat())
    verity.close()
