"""Other hands in staging while a worker fetches for itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.cache.foreign_writes import ForeignWrites
from craftcache.errors import IntegrityError
from craftcache.sources import FILENAMES
from tests.client.cache.outcomes import export_bytes
from tests.support.hub import Data

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache import Client
    from craftcache.wire import Progress
    from tests.support.hub import TestHub

LM = FILENAMES["lm"]


def overwrite(path: Path) -> None:
    """Change bytes in place and put the times back, once the kernel's clock has moved on."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(10_000)
        file.write(b"\x11" * 4096)
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        os.utime(path, ns=(0, 0))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Editor:
    """Overwrites what is being fetched, so many times."""

    def __init__(self, client: Client, times: int) -> None:
        self._staging = CacheDir(client.cache_dir).staging
        self.times = times

    def __call__(self, progress: Progress) -> None:
        if progress.state == "fetching" and 0 < progress.done < (progress.total or 0):
            for path in self._staging.glob("*.tmp") if self.times else ():
                overwrite(path)
                self.times -= 1


@pytest.fixture(params=["a promised digest", "none"])
def source(alone: Client, threaded_hub: TestHub, request: pytest.FixtureRequest) -> str:
    content = export_bytes(1.0, numel=300_000)[LM]
    threaded_hub.repo("org/big").commit({LM: content})
    threaded_hub.files[f"/big/{LM}"] = Data(content)
    return "org/big" if request.param == "a promised digest" else threaded_hub.cdn_url("/big/")


def test_a_write_of_others_while_it_comes_is_fetched_over(alone: Client, source: str) -> None:
    editor = Editor(alone, 1)
    for _ in range(2):
        loaded = alone.load(source, parts=("lm",), on_progress=editor).lm["best_state"]
        assert editor.times == 0
        assert bool((loaded["w"] == 1.0).all())
        assert bool((loaded["v"] == 1.5).all())
    assert not os.listdir(CacheDir(alone.cache_dir).staging)


def test_writes_of_others_that_do_not_end_are_an_error(alone: Client, source: str) -> None:
    with pytest.raises(IntegrityError, match="other hands have written"):
        alone.load(source, parts=("lm",), on_progress=Editor(alone, 1000))
    assert not os.listdir(CacheDir(alone.cache_dir).staging)


def test_only_writes_of_others_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w+b", buffering=0) as file:
        foreign = ForeignWrites(file.fileno())
        for _ in range(3):
            with foreign.writing():
                file.write(bytes(20_000))
        os.fsync(file.fileno())
        assert not foreign.were_seen()
        overwrite(path)
        with foreign.writing():  # which moves the time on once more
            file.write(b"more")
        assert foreign.were_seen()
