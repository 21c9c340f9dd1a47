"""fs-verity, where the file system of the temporary directory has it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.stamps import FileStamp
from craftcached.store.verity import Verity

if TYPE_CHECKING:
    from pathlib import Path

SHA256 = "a" * 64


async def test_a_protected_file_is_read_and_not_written(tmp_path: Path) -> None:
    cache = CacheDir(tmp_path)
    cache.create()
    verity = Verity(cache)
    await verity.open()
    assert os.listdir(cache.staging) == []
    blob = cache.url_blob(SHA256)
    blob.write_bytes(b"content")
    cache.stamps.record(SHA256, FileStamp.of(blob.stat()))
    await verity.protect(blob, SHA256)
    assert blob.read_bytes() == b"content"
    assert cache.stamps.has(SHA256, blob.stat())
    if verity.is_supported:
        with pytest.raises(PermissionError):
            blob.open("r+b")
    else:
        blob.write_bytes(b"nothing hinders it")
    verity.close()
