"""Other hands in the daemon's staging while a download stalls: no wrong tensor comes of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from craftcache.cache.directory import CacheDir
from craftcache.digests import HashedFile, Hasher
from craftcache.errors import IntegrityError
from craftcache.sources import FILENAMES
from craftcached.fetch.partial_file import Names, PartialFile
from tests.client.cache.outcomes import export_bytes, outcome
from tests.client.fallback.test_staging_edits import overwrite
from tests.support.api import Api
from tests.support.appearing import appeared
from tests.support.daemons import DaemonProcess
from tests.support.hub import Data, Gate, Stall

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import Request, TestHub

LM, COMPRESSION = FILENAMES["lm"], FILENAMES["compression"]
CONTENT = b"as it came" * 2000


def has_come(path: Path) -> bool:
    """Whether at least a part of it is there."""
    return path.stat().st_blocks > 0


def is_later_range(request: Request) -> bool:
    return request.range is not None and not request.range.startswith("bytes=0-")


@pytest.mark.parametrize("what", ["a part", "a part without a digest", "a whole file of a pair"])
def test_what_others_write_meanwhile_is_never_served(
    base: Path, threaded_hub: TestHub, what: str
) -> None:
    files = export_bytes(1.0, numel=300_000)
    threaded_hub.repo("org/model").commit(files)
    threaded_hub.files |= {f"/m/{name}": Data(content) for name, content in files.items()}
    gate = Gate()
    if what == "a whole file of a pair":
        threaded_hub.inject(Stall(gate), path=f"*{COMPRESSION}", when=is_later_range, times=None)
    else:
        threaded_hub.inject(Stall(gate), path=f"*{LM}", when=is_later_range, times=None)
    source = threaded_hub.cdn_url("/m/") if "without" in what else "org/model"
    with DaemonProcess(
        base, HF_ENDPOINT=threaded_hub.endpoint, CRAFTCACHE_SCRUB_DAYS="0"
    ) as daemon:
        with Api(daemon.socket_dir) as api:
            assert api.warm(source, wait=False).is_success
        staging = daemon.cache_dir / ".craftcache" / "staging" / "fetch"
        if what == "a whole file of a pair":
            whole = appeared(staging, "*.whole", is_meant=has_come)
            index = CacheDir(daemon.cache_dir).index_path(whole.name.partition("-")[0])
            appeared(index.parent, index.name)  # inspected: nothing is left but to publish it
            overwrite(whole)
        else:
            begun = appeared(staging, "*.part", is_meant=has_come)
            appeared(staging, begun.stem + ".journal", is_meant=lambda at: "w 0 " in at.read_text())
            overwrite(begun)
        gate.open()
        with daemon.client() as client:
            # Whoever shares the file that was changed gets the error; who asks then has it fetched.
            outcomes = [outcome(client, source, 1.0) for _ in range(4)]
        assert not any(each.is_wrong for each in outcomes)
        assert {each.served_by for each in outcomes} <= {"daemon", "IntegrityError"}
        assert outcomes[-1].served_by == "daemon"
        with Api(daemon.socket_dir) as api:
            assert api.request("POST", "/verify").json()["found"] == {"right": 2}
        if what != "a whole file of a pair":
            assert "other hands have written" in daemon.log


@pytest.mark.parametrize("when", ["before it is sealed", "after it is sealed", "once it is named"])
def test_a_write_of_others_is_seen_whenever_it_comes(tmp_path: Path, when: str) -> None:
    part = PartialFile(Names.of(tmp_path, "key"), None, "boot")
    part.open()
    part.write(0, [CONTENT])
    hasher = Hasher()
    hasher.update(CONTENT)
    digests = hasher.digests()
    if when == "before it is sealed":
        overwrite(part.path)
    file = HashedFile(part.path, digests, part.seal())
    if when == "after it is sealed":
        overwrite(part.path)
    if when == "once it is named":
        assert part.holds(digests)
        file = file.named(tmp_path / "named", os.rename)
        file.check_untouched()
        overwrite(file.path)
        with pytest.raises(IntegrityError):
            file.named(tmp_path / "again", os.rename).check_untouched()
    else:
        assert not part.holds(digests)
    part.close()
