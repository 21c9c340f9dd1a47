"""What the engine makes of bytes that an earlier run left, and what it leaves to the next."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.support.fetching import MIB, QUICK, cdn_file, remote, rig_at, sha256_of
from tests.support.hub import Data, Gate, Generated, Hosted, Stall

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcached.fetch import RemoteFile
    from tests.support.hub import Request, TestHub

SEVERAL_PIECES = Generated(3 * MIB + 12345)


async def test_a_cancelled_fetch_goes_on_later(hub: TestHub, tmp_path: Path) -> None:
    gate = Gate()
    file = cdn_file(hub, SEVERAL_PIECES)
    rule = hub.inject(Stall(gate, after=1), when=lambda r: r.range != "bytes=0-1048575", times=None)
    async with rig_at(tmp_path) as rig:
        fetching = asyncio.create_task(rig.fetch(file))
        await gate.reached.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert rig.left == ["k.journal", "k.part"]
        rule.cancel()
        fetched = await rig.fetch(file)
        assert fetched.bytes_reused == MIB
        assert fetched.digests.sha256 == SEVERAL_PIECES.sha256
        assert rig.left == ["k.whole"]
    gate.open()


async def test_a_cancelled_stream_leaves_nothing(hub: TestHub, tmp_path: Path) -> None:
    gate = Gate()
    hub.files["/w.bin"] = Hosted(SEVERAL_PIECES, ranges=False)
    hub.inject(Stall(gate, after=MIB))
    async with rig_at(tmp_path) as rig:
        fetching = asyncio.create_task(rig.fetch(remote(SEVERAL_PIECES, hub.cdn_url("/w.bin"))))
        await gate.reached.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert rig.left == []
    gate.open()


async def interrupted(hub: TestHub, base: Path, file: RemoteFile, *, boot_id: str) -> None:
    """Leave the first piece of ``file`` in staging."""
    gate = Gate()
    rule = hub.inject(Stall(gate, after=1), when=lambda r: r.range != "bytes=0-1048575", times=None)
    async with rig_at(base, boot_id=boot_id) as rig:
        fetching = asyncio.create_task(rig.fetch(file))
        await gate.reached.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    rule.cancel()
    gate.open()


async def test_after_a_power_loss_only_what_was_synced_is_believed(
    hub: TestHub, tmp_path: Path
) -> None:
    file = cdn_file(hub, SEVERAL_PIECES)
    await interrupted(hub, tmp_path, file, boot_id="before")
    async with rig_at(tmp_path, boot_id="after") as rig:
        fetched = await rig.fetch(file)
    assert fetched.bytes_reused == 0
    assert fetched.digests.sha256 == SEVERAL_PIECES.sha256


async def test_what_was_synced_outlives_a_power_loss(hub: TestHub, tmp_path: Path) -> None:
    content = Generated(80 * MIB)
    file = cdn_file(hub, content)
    gate = Gate()

    def starts_late(request: Request) -> bool:
        return int((request.range or "=0-").partition("=")[2].partition("-")[0]) >= 72 * MIB

    rule = hub.inject(Stall(gate), when=starts_late, times=None)
    settings = replace(QUICK, piece_bytes=4 * MIB, max_connections=1)
    async with rig_at(tmp_path, settings, boot_id="before") as rig:
        fetching = asyncio.create_task(rig.fetch(file))
        await gate.reached.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    rule.cancel()
    gate.open()
    async with rig_at(tmp_path, settings, boot_id="after") as rig:
        fetched = await rig.fetch(file)
    assert fetched.digests.sha256 == content.sha256
    assert 60 * MIB < fetched.bytes_reused < 80 * MIB


async def test_a_new_version_at_the_origin_is_not_mixed_with_kept_bytes(
    hub: TestHub, tmp_path: Path
) -> None:
    old, new = Generated(3 * MIB, seed=1), Generated(3 * MIB, seed=2)
    await interrupted(hub, tmp_path, cdn_file(hub, old, promised=False), boot_id="same")
    async with rig_at(tmp_path, boot_id="same") as rig:
        fetched = await rig.fetch(cdn_file(hub, new, promised=False))
    assert sha256_of(fetched.path) == new.sha256
    assert fetched.bytes_reused == 0


async def test_kept_bytes_that_went_bad_are_fetched_again(hub: TestHub, tmp_path: Path) -> None:
    file = cdn_file(hub, SEVERAL_PIECES)
    await interrupted(hub, tmp_path, file, boot_id="same")
    part = tmp_path / "staging" / "k.part"
    with part.open("r+b") as damaged:
        damaged.write(b"rotten")
    async with rig_at(tmp_path, boot_id="same") as rig:
        fetched = await rig.fetch(file)
    assert sha256_of(fetched.path) == SEVERAL_PIECES.sha256
    assert fetched.bytes_reused == 0


async def test_a_beginning_without_a_digest_is_resumed_as_far_as_it_is_what_was_hashed(
    hub: TestHub, tmp_path: Path
) -> None:
    file = cdn_file(hub, SEVERAL_PIECES, promised=False)
    await interrupted(hub, tmp_path, file, boot_id="before")
    async with rig_at(tmp_path, boot_id="after") as rig:
        fetched = await rig.fetch(file)
    assert fetched.bytes_reused == MIB
    assert sha256_of(fetched.path) == SEVERAL_PIECES.sha256


OTHER = Generated(SEVERAL_PIECES.size, seed=7)
HEADER = ("version", "boot", "key", "size", "etag", "digest")


def edit_header(journal: Path, field: str) -> None:
    header, *lines = journal.read_text().split("\n")
    head = json.loads(header)
    old = head[field]
    head[field] = old + 1 if isinstance(old, int) else None if old else "else"
    journal.write_text("\n".join([json.dumps(head), *lines]))


def claim_more(journal: Path) -> None:
    size = SEVERAL_PIECES.size
    with journal.open("a") as file:
        file.write(f"w 0 {size}\nd 0 {size}\nh {size} {'0' * 64}\n")


def flip_lines(journal: Path) -> None:
    header, *lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([header, *(line.replace(b"1", b"9") for line in lines)]))


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{f"another {field}": partial(edit_header, field=field) for field in HEADER},
    "empty": lambda journal: journal.write_bytes(b""),
    "cut in its header": lambda journal: os.truncate(journal, 20),
    "cut in its last line": lambda journal: os.truncate(journal, journal.stat().st_size - 3),
    "garbage": lambda journal: journal.write_bytes(os.urandom(500)),
    "garbage after it": lambda journal: journal.write_bytes(journal.read_bytes() + b"\xff\0\n"),
    "a directory": lambda journal: (journal.unlink(), journal.mkdir()),
    "claims more": claim_more,
    "other numbers": flip_lines,
    "another's": lambda journal: journal.write_bytes(journal.with_name("o.journal").read_bytes()),
    "another's, with its part": lambda journal: [
        path.write_bytes(path.with_name(f"o{path.suffix}").read_bytes())
        for path in (journal, journal.with_suffix(".part"))
    ],
    "its part rotten": lambda journal: overwrite(journal.with_suffix(".part"), b"rotten"),
    "its part cut": lambda journal: os.truncate(journal.with_suffix(".part"), MIB // 2),
}


def overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
async def test_whatever_becomes_of_a_journal_the_bytes_are_the_right_ones(
    hub: TestHub, tmp_path: Path, damage: str, *, promised: bool
) -> None:
    file = cdn_file(hub, SEVERAL_PIECES, promised=promised)
    other = cdn_file(hub, OTHER, "/o.bin", key="o", promised=promised)
    for each in (file, other):
        await interrupted(hub, tmp_path, each, boot_id="same")
    DAMAGES[damage](tmp_path / "staging" / "k.journal")
    async with rig_at(tmp_path, boot_id="same") as rig:
        fetched = await rig.fetch(file)
        assert sha256_of(fetched.path) == fetched.digests.sha256 == SEVERAL_PIECES.sha256
        assert (await rig.fetch(other)).digests.sha256 == OTHER.sha256


async def test_a_whole_download_under_another_key_is_not_taken_for_its_own(
    hub: TestHub, tmp_path: Path
) -> None:
    """Neither has a digest, and nothing is left to ask the origin for."""
    file = cdn_file(hub, SEVERAL_PIECES, promised=False)
    other = cdn_file(hub, OTHER, "/o.bin", key="o", promised=False)
    await interrupted(hub, tmp_path, other, boot_id="same")
    staging = tmp_path / "staging"
    (staging / "o.part").write_bytes(OTHER.read(0, OTHER.size))
    with (staging / "o.journal").open("a") as journal:
        journal.write(f"h {OTHER.size} {OTHER.sha256}\n")
    for kind in ("part", "journal"):
        (staging / f"o.{kind}").rename(staging / f"k.{kind}")
    async with rig_at(tmp_path, boot_id="same") as rig:
        fetched = await rig.fetch(file)
    assert sha256_of(fetched.path) == SEVERAL_PIECES.sha256


async def test_what_a_crash_left_sealed_is_hashed_and_used(hub: TestHub, tmp_path: Path) -> None:
    file = cdn_file(hub, SEVERAL_PIECES)
    async with rig_at(tmp_path) as rig:
        await rig.fetch(file)
    before = hub.count(None)
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(file)
        assert fetched.bytes_reused == SEVERAL_PIECES.size
        assert hub.count(None) == before
        assert fetched.path.stat().st_mode & 0o777 == 0o444
    fetched.path.chmod(0o644)
    fetched.path.write_bytes(b"x" * SEVERAL_PIECES.size)
    fetched.path.chmod(0o444)
    async with rig_at(tmp_path) as rig:
        again = await rig.fetch(file)
        assert sha256_of(again.path) == SEVERAL_PIECES.sha256


async def test_a_file_that_was_handed_out_is_not_touched_by_the_next_fetch_of_its_key(
    hub: TestHub, tmp_path: Path
) -> None:
    gate = Gate()
    file = cdn_file(hub, SEVERAL_PIECES, promised=False)
    async with rig_at(tmp_path) as rig:
        mine = await rig.fetch(file)
        hub.inject(Stall(gate, after=1), times=None)
        fetching = asyncio.create_task(rig.fetch(file))
        await gate.reached.wait()
        assert sha256_of(mine.path) == SEVERAL_PIECES.sha256
        assert mine.path.stat().st_mode & 0o777 == 0o444
        gate.open()
        theirs = await fetching
        assert theirs.path != mine.path
        assert sha256_of(theirs.path) == sha256_of(mine.path)


async def test_what_a_crash_left_sealed_and_published_is_not_touched(
    hub: TestHub, tmp_path: Path
) -> None:
    file = cdn_file(hub, SEVERAL_PIECES)
    published = tmp_path / "published"
    async with rig_at(tmp_path) as rig:
        published.hardlink_to((await rig.fetch(file)).path)
    before = published.stat()
    async with rig_at(tmp_path) as rig:
        assert (await rig.fetch(file)).bytes_fetched == 0
    after = published.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


async def test_what_nobody_asks_for_again_is_removed(hub: TestHub, tmp_path: Path) -> None:
    await interrupted(hub, tmp_path, cdn_file(hub, SEVERAL_PIECES), boot_id="same")
    staging = tmp_path / "staging"
    (staging / "lonely.journal").write_text("{}")
    (staging / "unsealed.part").write_text("x")
    (staging / "not-ours").write_text("x")

    async with rig_at(tmp_path) as rig:
        await rig.fetch(cdn_file(hub, Data(b"y"), "/y", key="y"))
        assert rig.left == ["k.journal", "k.part", "not-ours", "y.whole"]
    week_ago = time.time() - QUICK.journal_retention_seconds - 60
    for path in staging.iterdir():
        os.utime(path, (week_ago, week_ago))
    async with rig_at(tmp_path) as rig:
        await rig.fetch(cdn_file(hub, Data(b"z"), "/z", key="z"))
        assert rig.left == ["not-ours", "z.whole"]


async def test_what_cannot_be_swept_holds_up_neither_the_start_nor_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    staging = tmp_path / "staging"
    (staging / "d.part" / "left" / "by others").mkdir(parents=True)
    for key in "bf":
        (staging / f"{key}.part").mkdir()
        mount = ["mount", "-t", "tmpfs", "none", str(staging / f"{key}.part")]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("what cannot be removed is a mount here, which needs root")
    for key in "ace":
        (staging / f"{key}.part").symlink_to("nowhere")
        (staging / f"{key}.journal").write_text("{}")
    try:
        async with rig_at(tmp_path) as rig:
            assert rig.left == ["b.part", "f.part"]
    finally:
        for key in "bf":
            subprocess.run(["umount", str(staging / f"{key}.part")], check=True)
    assert caplog.text.count("Device or resource busy") == 2
