"""Writers that are slow, restless, of another order, or killed half way."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from craftcache.sources import FILENAMES, Part
from tests.support.watching import content, rule, watching, write, write_pair

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.support.watching import Rig

PIECE = 64

LOOPING_WRITER = """
import itertools, sys
files = [(sys.argv[1] + "/state_dict.bin", sys.argv[2:4]),
         (sys.argv[1] + "/compression_state_dict.bin", sys.argv[4:6])]
contents = [(path, [open(name, "rb").read() for name in names]) for path, names in files]
for turn in itertools.count():
    for path, both in contents:
        with open(path, "wb", buffering=0) as file:
            for start in range(0, len(both[0]), 64):
                file.write(both[turn % 2][start:start + 64])
                if not turn and not start:
                    print("writing", flush=True)
"""
"""Overwrites both files in place for ever, in small pieces, with one pair and another. It has
written something when it says so."""


async def trickle(directory: Path, part: Part, data: bytes, pause: float) -> None:
    """Write one file as a slow writer does; each piece is a change of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / FILENAMES[part]).open("wb", buffering=0) as file:
        pieces = range(0, len(data), len(data) // 8)
        for start in pieces:
            file.write(data[start : start + len(data) // 8])
            await asyncio.sleep(pause)  # what makes it slow


def served_contents(rig: Rig, base: Path) -> set[bytes]:
    """The bytes of all generations that there are."""
    numbers = rig.watches.report("run").numbers
    manifests = [rig.store.cache.manifest_at(key) for key in _keys(numbers)]
    return {
        (base / "cache" / record.path).read_bytes()
        for manifest in manifests
        if manifest is not None
        for record in manifest.files
    }


def _keys(numbers: Iterable[int]) -> list[str]:
    from craftcache.cache.manifest import manifest_key
    from craftcache.sources import WatchSource

    return [manifest_key(WatchSource("run", number)) for number in numbers]


@pytest.mark.parametrize("order", [("lm", "compression"), ("compression", "lm")])
async def test_a_slow_writer_is_waited_for_whatever_its_order(
    base: Path, order: tuple[Part, Part]
) -> None:
    export = base / "export"
    write_pair(export, 1)
    async with watching(base, rule(export, keep=100, settle=0.4)) as rig:
        await rig.until_served("run", 1)
        for part in order:
            await trickle(export, part, content(part, 2), pause=0.05)
        await rig.until_served("run", 2)
        whole = {content(part, value) for part in order for value in (1, 2)}
        assert served_contents(rig, base) == whole


async def test_a_writer_that_pauses_in_the_middle_of_a_file_yields_nothing(base: Path) -> None:
    """Longer than the settle time: what stands there is looked at, and is no checkpoint."""
    export = base / "export"
    write_pair(export, 1)
    async with watching(base, rule(export)) as rig:
        await rig.until_served("run", 1)
        data = content("lm", 2)
        with (export / "state_dict.bin").open("wb", buffering=0) as file:
            file.write(data[:1000])
            await rig.until_state("run", "invalid")
            assert rig.number("run") == 1
            file.write(data[1000:])
        await rig.until_served("run", 2)


async def test_a_writer_that_is_never_quiet_changes_nothing_until_it_is(base: Path) -> None:
    export = base / "export"
    write_pair(export, 1)
    async with watching(base, rule(export, settle=0.5)) as rig:
        await rig.until_served("run", 1)
        for value in range(2, 12):
            write(export, "lm", content("lm", value))
            await asyncio.sleep(0.1)  # less than the settle time
        assert "verifying" not in rig.states()[rig.states().index("ready") :]
        assert rig.number("run") == 1
        manifest = await rig.until_served("run", 2)
    assert (base / "cache" / manifest.files[1].path).read_bytes() == content("lm", 11)


def settled_since(rig: Rig, before: int) -> bool:
    """Whether the watch has begun to settle since so many states, and is at rest."""
    is_at_rest = rig.watches.report("run").state in ("ready", "invalid")
    return is_at_rest and "settling" in rig.states()[before:]


@pytest.mark.timeout(120)
async def test_a_writer_killed_at_any_moment_never_makes_half_a_file_a_generation(
    base: Path,
) -> None:
    """What it leaves is the one content or the other, whole, or it is invalid."""
    export = base / "export"
    names = []
    for part in ("lm", "compression"):
        for value in (1, 2):
            path = base / f"{part}-{value}"
            path.write_bytes(content(part, value))
            names.append(str(path))
    write_pair(export, 1)
    moments = random.Random(7)
    async with watching(base, rule(export, keep=100)) as rig:
        await rig.until_served("run", 1)
        for _ in range(15):
            before = len(rig.states())
            writer = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-c", LOOPING_WRITER, str(export), *names),
                stdout=subprocess.PIPE,
            )
            assert writer.stdout is not None
            await writer.stdout.readline()
            await asyncio.sleep(moments.uniform(0, 0.05))  # the random moment
            writer.kill()
            await writer.wait()
            # It may have settled already, on a busy machine.
            await rig.until(partial(settled_since, rig, before))
        before = len(rig.states())
        write_pair(export, 3)
        await rig.until(partial(settled_since, rig, before))
        await rig.until_state("run", "ready")
        parts: tuple[Part, ...] = ("lm", "compression")
        whole = {content(part, value) for part in parts for value in (1, 2, 3)}
        assert served_contents(rig, base) <= whole
        assert "invalid" in rig.states()
