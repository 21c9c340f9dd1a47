"""Watched directories: what becomes a generation, what does not, what is served."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import InvalidSource, NotFound, PolicyDenied, Unavailable
from craftcache.sources import FILENAMES, WatchSource
from tests.support.checkpoints import saved
from tests.support.pickles import Op, archive
from tests.support.watching import SETTLE, content, rule, watching, write, write_pair

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_pair_becomes_a_generation_once_both_files_are_there(base: Path) -> None:
    export = base / "export"
    async with watching(base, rule(export)) as rig:
        await rig.until_state("run", "absent")
        write(export, "compression", content("compression", 1))
        await rig.until_state("run", "partial", "waits for state_dict.bin")
        assert rig.watches.report("run").served is None
        write(export, "lm", content("lm", 1))
        manifest = await rig.until_served("run", 1)
    assert manifest.source == "watch:run"
    assert [r.filename for r in manifest.files] == ["compression_state_dict.bin", "state_dict.bin"]
    for record in manifest.files:
        blob = base / "cache" / record.path
        assert blob.read_bytes() == (export / record.filename).read_bytes()
        assert blob.stat().st_ino != (export / record.filename).stat().st_ino
        assert stat.S_IMODE(blob.stat().st_mode) == 0o444


async def test_a_directory_is_known_while_it_is_the_one_that_is_watched(base: Path) -> None:
    export = base / "export"
    write_pair(export, 1)
    async with watching(base, rule(export, poll=True, settle=SETTLE)) as rig:
        await rig.until_served("run", 1)
        status = export.stat()
        assert await rig.watches.find(status.st_dev, status.st_ino) == "run"
        assert await rig.watches.find(status.st_dev, status.st_ino + 1) is None
        export.rename(base / "elsewhere")
        assert await rig.watches.find(status.st_dev, status.st_ino) is None


async def test_a_directory_that_got_the_number_of_a_watched_one_is_another(base: Path) -> None:
    export = base / "export"
    write_pair(export, 1)
    async with watching(base, rule(export, poll=True, settle=10.0)) as rig:
        await rig.until_state("run", "settling")
        known = export.stat()
        shutil.rmtree(export)
        for number in range(1000):  # until one gets the number
            other = base / f"other-{number}"
            other.mkdir()
            if other.stat().st_ino == known.st_ino:
                break
        else:
            pytest.skip("this file system does not use its numbers again")
        assert await rig.watches.find(known.st_dev, known.st_ino) is None


async def test_what_was_never_served_is_not_called_lost(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(base / "export", "lm", content("lm", 1))
    async with watching(base, rule(base / "export")) as rig:
        await rig.until_state("run", "partial")
        rig.watches.take_again(WatchSource("run"))
        assert "is lost" not in caplog.text
        write(base / "export", "compression", content("compression", 1))
        await rig.until_served("run", 1)
        rig.watches.take_again(WatchSource("run"))
        assert "watch run: what was served is lost, and is taken again" in caplog.text


async def test_a_generation_that_was_lost_is_made_again(base: Path) -> None:
    write_pair(base / "export", 1)
    async with watching(base, rule(base / "export")) as rig:
        first = await rig.until_served("run", 1)
        for record in first.files:
            (base / "cache" / record.path).unlink()
        assert await rig.store.recheck(WatchSource("run"), FILENAMES.values()) is None
        rig.watches.take_again(WatchSource("run"))
        second = await rig.until_served("run", 2)
        assert await rig.store.recheck(WatchSource("run"), FILENAMES.values()) == second


async def test_an_overwrite_in_place_changes_no_byte_of_what_was_published(base: Path) -> None:
    write_pair(base / "export", 1)
    async with watching(base, rule(base / "export")) as rig:
        first = await rig.until_served("run", 1)
        write_pair(base / "export", 2)
        second = await rig.until_served("run", 2)
    for manifest, value in ((first, 1), (second, 2)):
        for part, record in zip(("compression", "lm"), manifest.files, strict=True):
            assert (base / "cache" / record.path).read_bytes() == content(part, value)


async def test_equal_files_are_one_blob_and_no_new_generation(base: Path) -> None:
    write_pair(base / "export", 1)
    async with watching(base, rule(base / "export")) as rig:
        first = await rig.until_served("run", 1)
        write_pair(base / "export", 1)
        await rig.until_state("run", "settling")
        await rig.until_state("run", "ready")
        assert rig.number("run") == 1
        write(base / "export", "lm", content("lm", 2))
        second = await rig.until_served("run", 2)
    assert first.files[0].path == second.files[0].path
    assert first.files[1].path != second.files[1].path


async def test_a_pair_of_which_one_file_was_updated_is_the_pair_as_it_stands(base: Path) -> None:
    write_pair(base / "export", 1)
    async with watching(base, rule(base / "export")) as rig:
        await rig.until_served("run", 1)
        write(base / "export", "compression", content("compression", 2))
        manifest = await rig.until_served("run", 2)
    contents = [(base / "cache" / record.path).read_bytes() for record in manifest.files]
    assert contents == [content("compression", 2), content("lm", 1)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (content("lm", 2)[:-300], "a truncated zip archive"),
        (b"", ""),
        (archive(Op.whole(Op.call("os.system", Op.value("true")))), "loading it would call"),
    ],
    ids=["truncated", "empty", "unsafe"],
)
async def test_what_cannot_be_loaded_safely_is_invalid_and_the_last_pair_is_served(
    base: Path, data: bytes, reason: str
) -> None:
    write_pair(base / "export", 1)
    async with watching(base, rule(base / "export")) as rig:
        await rig.until_served("run", 1)
        write(base / "export", "lm", data)
        report = await rig.until_state("run", "invalid", reason)
        assert report.detail
        assert rig.number("run") == 1
        write(base / "export", "lm", content("lm", 3))
        await rig.until_served("run", 2)


async def test_files_replaced_by_rename_are_followed(base: Path) -> None:
    export = base / "export"
    write_pair(export, 1)
    async with watching(base, rule(export)) as rig:
        await rig.until_served("run", 1)
        for part, name in (("lm", "state_dict.bin"), ("compression", "compression_state_dict.bin")):
            (export / "new").write_bytes(content(part, 2))
            os.replace(export / "new", export / name)
        await rig.until_served("run", 2)


async def test_a_directory_may_go_come_back_and_be_moved(base: Path) -> None:
    export = base / "runs" / "export"
    write_pair(export, 1)
    async with watching(base, rule(export)) as rig:
        await rig.until_served("run", 1)
        shutil.rmtree(base / "runs")
        await rig.until_state("run", "gone")
        assert rig.number("run") == 1
        write_pair(export, 2)
        await rig.until_served("run", 2)
        export.rename(base / "moved")
        await rig.until_state("run", "gone")
        write_pair(base / "moved", 3)  # nobody watches it there
        write_pair(export, 4)
        manifest = await rig.until_served("run", 3)
    assert (base / "cache" / manifest.files[1].path).read_bytes() == content("lm", 4)


async def test_a_link_instead_of_the_directory_or_a_file_is_invalid(base: Path) -> None:
    export, outside = base / "export", base / "outside"
    write_pair(export, 1)
    write_pair(outside, 2)
    async with watching(base, rule(export)) as rig:
        await rig.until_served("run", 1)
        shutil.rmtree(export)
        export.symlink_to(outside)
        await rig.until_state("run", "invalid", "is a link")
        export.unlink()
        write_pair(export, 3)
        await rig.until_served("run", 2)
        (export / "state_dict.bin").unlink()
        (export / "state_dict.bin").symlink_to(outside / "state_dict.bin")
        await rig.until_state("run", "invalid", "state_dict.bin is a link")
        assert rig.number("run") == 2


async def test_a_marker_is_waited_for_each_time(base: Path) -> None:
    export = base / "export"
    write_pair(export, 1)
    async with watching(base, rule(export, marker="DONE")) as rig:
        await rig.until_state("run", "partial", "waits for DONE")
        (export / "DONE").touch()
        await rig.until_served("run", 1)
        write_pair(export, 2)
        await rig.until_state("run", "partial", "waits for DONE")
        assert rig.number("run") == 1
        (export / "DONE").touch()
        await rig.until_served("run", 2)


async def test_a_gate_lets_pass_or_refuses_and_is_heard(base: Path) -> None:
    export = base / "export"
    gate = base / "gate"
    gate.write_text(
        "#!/bin/sh\n"
        'test -f "$1/state_dict.bin" -a -f "$1/compression_state_dict.bin" || exit 9\n'
        f'test -e {base}/open && exit 0\necho "loss of $CRAFTCACHE_WATCH is too high"; exit 3\n'
    )
    gate.chmod(0o755)
    write_pair(export, 1)
    async with watching(base, rule(export, gate=str(gate))) as rig:
        report = await rig.until_state("run", "invalid", "exit status 3")
        assert "loss of run is too high" in report.detail
        assert report.numbers == ()
        (base / "open").touch()
        write_pair(export, 2)
        await rig.until_served("run", 1)


async def test_a_gate_that_cannot_be_run_or_changes_the_candidate_refuses(base: Path) -> None:
    write_pair(base / "export", 1)
    async with watching(
        base,
        rule(base / "export", "missing", gate="/nonexistent/gate"),
        rule(base / "export", "changes", gate="sh -c 'echo x >> \"$0/state_dict.bin\"'"),
    ) as rig:
        await rig.until_state("missing", "invalid", "the gate cannot be run")
        await rig.until_state("changes", "invalid", "the gate changed the candidate")


async def test_generations_beyond_those_to_keep_go_unless_they_are_in_use(base: Path) -> None:
    export = base / "export"
    async with watching(base, rule(export, keep=1)) as rig:
        write_pair(export, 1)
        first = await rig.until_served("run", 1)
        with (base / "cache" / first.files[1].path).open("rb"):
            for value in (2, 3, 4):
                write_pair(export, value)
                await rig.until_served("run", value)
            assert rig.watches.report("run").numbers == (1, 3, 4)
        write_pair(export, 5)
        await rig.until_served("run", 5)
        assert rig.watches.report("run").numbers == (4, 5)
    blobs = set(os.listdir(base / "cache" / ".craftcache" / "blobs" / "sha256"))
    assert len(blobs) == 4
    assert first.files[1].sha256 not in blobs


async def test_a_watch_of_the_settings_is_changed_there_alone(base: Path) -> None:
    async with watching(base, rule(base / "export")) as rig:
        with pytest.raises(PolicyDenied, match="configuration file"):
            await rig.watches.put(rule(base / "other"))
        with pytest.raises(PolicyDenied):
            await rig.watches.remove("run")
        write_pair(base / "other", 1)
        rig.watches.configure([rule(base / "other", "new")])
        await rig.until_served("new", 1)
        assert [report.rule.name for report in rig.watches.reports()] == ["new"]


async def test_every_directory_of_a_pattern_is_watched_whenever_it_appears(base: Path) -> None:
    runs = base / "runs"
    write_pair(runs / "a" / "export", 1)
    pattern = rule(runs / "*" / "export", "all")
    async with watching(base) as rig:
        await rig.watches.put(pattern)
        await rig.until_served("all-a", 1)
        write_pair(runs / "b" / "export", 2)
        await rig.until_state("all-b", "ready")
        shutil.rmtree(runs / "a")
        await rig.until_state("all-a", "gone")
        with pytest.raises(PolicyDenied, match="pattern all"):
            await rig.watches.remove("all-b")
    async with watching(base) as rig:
        assert {report.rule.name for report in rig.watches.reports()} == {"all-a", "all-b"}
        await rig.until_state("all-a", "gone")
        assert rig.number("all-a") == 1
        await rig.watches.remove("all")
        assert await rig.store.manifests() == []
        assert rig.watches.reports() == []


async def test_who_follows_a_directory_of_a_pattern_survives_a_change_of_the_pattern(
    base: Path,
) -> None:
    runs = base / "runs"
    write_pair(runs / "a" / "export", 1)
    async with watching(base) as rig:
        await rig.watches.put(rule(runs / "*" / "export", "all"))
        await rig.until_served("all-a", 1)
        following = asyncio.create_task(rig.watches.wait_other("all-a", 1))
        await rig.watches.put(rule(runs / "*" / "export", "all", keep=7))
        write_pair(runs / "a" / "export", 2)
        manifest = await following
        assert manifest.watched is not None
        assert manifest.watched.generation == 2
        assert rig.watches.report("all-a").rule.keep == 7


async def test_what_a_generation_needs_is_known_and_brought_as_well(base: Path) -> None:
    export = base / "export"
    reference = {"pretrained": "facebook/encodec_32khz", "exported": True, "version": "1.3.0"}
    write(export, "lm", content("lm", 1))
    write(export, "compression", saved(reference))
    async with watching(base, rule(export)) as rig:
        await rig.until_served("run", 1)
        write(export, "compression", saved(reference | {"pretrained": "dac_44khz"}))
        await rig.until_served("run", 2)
        first, second = rig.generations
        assert [need.source for need in first.needs] == ["facebook/encodec_32khz"]
        assert (second.needs, len(second.unmet)) == ((), 1)


async def test_why_there_is_nothing_to_serve_is_said(base: Path) -> None:
    write(base / "export", "lm", content("lm", 1))
    async with watching(base, rule(base / "export")) as rig:
        await rig.until_state("run", "partial")
        absence = rig.watches.absence(WatchSource("run"))
        assert isinstance(absence, Unavailable)
        assert "partial: waits for compression_state_dict.bin" in absence.message
        assert absence.retry_after == SETTLE
        assert isinstance(rig.watches.absence(WatchSource("other")), NotFound)
        assert isinstance(rig.watches.absence(WatchSource("run", 7)), NotFound)


async def test_a_directory_is_known_by_device_and_inode_while_it_is_there(base: Path) -> None:
    export = base / "export"
    write_pair(export, 1)
    async with watching(base, rule(export)) as rig:
        await rig.until_served("run", 1)
        status = export.stat()
        assert await rig.watches.find(status.st_dev, status.st_ino) == "run"
        assert await rig.watches.find(status.st_dev, (base / "cache").stat().st_ino) is None


async def test_a_polled_directory_needs_no_hints(base: Path) -> None:
    export = base / "export"
    async with watching(base, rule(export, poll=True)) as rig:
        write_pair(export, 1)
        await rig.until_served("run", 1)
        assert rig.watches.report("run").polled == "as was asked for"


@pytest.mark.parametrize(
    "options",
    [
        {"directory": "relative/export"},
        {"settle": 0.0},
        {"settle": float("inf")},
        {"keep": -1},
        {"marker": "../DONE"},
        {"name": "a b"},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidSource):
        rule(**({"directory": "/runs/a"} | options))  # type: ignore[arg-type]  # that is the point
