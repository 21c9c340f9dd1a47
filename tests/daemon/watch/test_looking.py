"""What is in a directory: by names and stamps, following no link."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from craftcached.watch.mounts import file_system_type, is_network
from craftcached.watch.snapshot import Target, expand, look, matching
from craftcached.watch.state import WatchState
from tests.support.watching import rule, write, write_pair

if TYPE_CHECKING:
    from pathlib import Path


def test_a_pair_is_seen_with_the_directorys_identity(tmp_path: Path) -> None:
    write_pair(tmp_path / "e", 1)
    seen = look(Target.of(str(tmp_path / "e")))
    status = (tmp_path / "e").stat()
    assert seen.directory == (status.st_dev, status.st_ino)
    assert [name for name, _ in seen.pair] == ["state_dict.bin", "compression_state_dict.bin"]
    assert seen.is_complete


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert look(Target.of(str(tmp_path / "e"))).directory is None
    write(tmp_path / "e", "lm", b"x")
    assert look(Target.of(str(tmp_path / "e"))).missing == ("compression_state_dict.bin",)


def test_any_write_changes_the_stamp_even_where_size_and_mtime_are_put_back(
    tmp_path: Path,
) -> None:
    write_pair(tmp_path, 1)
    path = tmp_path / "state_dict.bin"
    before, status = look(Target.of(str(tmp_path))), path.stat()
    path.write_bytes(b"y" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = look(Target.of(str(tmp_path)))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert after != before


@pytest.mark.parametrize("hidden", [".~tmp~", ".rsync-partial"])
def test_a_file_on_its_way_in_a_directory_of_rsync_s_is_seen_to_grow(
    tmp_path: Path, hidden: str
) -> None:
    write_pair(tmp_path, 1)
    target = Target.of(str(tmp_path))
    (tmp_path / hidden).mkdir()
    before = look(target)
    looks = [before]
    for content in ("a", "ab"):
        (tmp_path / hidden / "state_dict.bin").write_text(content)
        looks.append(look(target))
    assert len({each.beside for each in looks}) == 3
    assert [each.awaits_more for each in looks] == [False, True, True]
    assert {each.without_bystanders for each in looks} == {before.without_bystanders}


@pytest.mark.parametrize(
    ("name", "awaits_more"),
    [
        *((".state_dict.bin.Xa81fp", True), (".compression_state_dict.bin.0a", True)),  # rsync
        *(("state_dict.bin.1f2e3d4c.partial", True), ("state_dict.bin_.gstmp", True)),  # rclone, gs
        *(("state_dict.bin.6eF5b5dA", True), ("state_dict.bin.filepart", True)),  # s3, WinSCP
        *(("tmp8a7f2", False), ("download.part", False), ("export.tmp", False)),
    ],
)
def test_a_file_on_its_way_is_seen_to_grow(tmp_path: Path, name: str, awaits_more: bool) -> None:
    write_pair(tmp_path, 1)
    before = look(Target.of(str(tmp_path)))
    (tmp_path / name).write_bytes(b"x")
    begun = look(Target.of(str(tmp_path)))
    (tmp_path / name).write_bytes(b"xx")
    grown = look(Target.of(str(tmp_path)))
    assert len({before, begun, grown}) == 3
    assert len({before.beside, begun.beside, grown.beside}) == 3
    assert (before.others, before.without_bystanders) == (grown.others, grown.without_bystanders)
    assert [each.awaits_more for each in (before, grown)] == [False, awaits_more]


@pytest.mark.parametrize("name", ["train.log", "events.out.tfevents.1", "solver", "history.json"])
def test_what_is_no_file_on_its_way_is_told_apart(tmp_path: Path, name: str) -> None:
    write_pair(tmp_path, 1)
    before = look(Target.of(str(tmp_path)))
    (tmp_path / name).write_bytes(b"x")
    after = look(Target.of(str(tmp_path)))
    assert (before.beside, before.without_bystanders) == (after.beside, after.without_bystanders)
    assert before.others != after.others


def test_rsync_s_order_and_times_are_no_quiet_pair(tmp_path: Path) -> None:
    """The marker comes first, all have the times of long ago, and one of the pair is on its way."""
    target, situation = Target.of(str(tmp_path)), WatchState(10.0)

    def arrives(name: str, data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, (1e9, 1e9))

    def looks(now: float) -> WatchState:
        return situation.saw(look(target, "DONE"), now)

    for name in ("DONE", "compression_state_dict.bin", "state_dict.bin"):
        arrives(name, b"first")
    situation = looks(0.0).took().published()
    assert looks(1.0).state == "ready"
    arrives("DONE", b"second")
    arrives("compression_state_dict.bin", b"second")
    for second in range(100, 200, 4):
        arrives(".state_dict.bin.Xa81fp", b"s" * second)
        situation = looks(float(second))
        assert situation.state == "settling"
        assert (situation.due_at or 0.0) > second + 10.0
    arrives(".state_dict.bin.Xa81fp", b"second")
    (tmp_path / ".state_dict.bin.Xa81fp").rename(tmp_path / "state_dict.bin")
    situation = looks(200.0)
    assert (situation.state, situation.due_at) == ("settling", 210.0)


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_only_regular_files_count(tmp_path: Path, kind: str) -> None:
    write_pair(tmp_path / "e", 1)
    path = tmp_path / "e" / "state_dict.bin"
    path.rename(tmp_path / "elsewhere")
    match kind:
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
    seen = look(Target.of(str(tmp_path / "e")))
    assert seen.fault.startswith("state_dict.bin is ")
    assert not seen.is_complete


def test_a_directory_behind_a_link_is_a_fault_and_one_below_a_linked_parent_is_not(
    tmp_path: Path,
) -> None:
    write_pair(tmp_path / "real" / "e", 1)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "e")
    (tmp_path / "parent").symlink_to(tmp_path / "real")
    assert "is a link" in look(Target.of(str(tmp_path / "link"))).fault
    assert look(Target.of(str(tmp_path / "parent" / "e"))).is_complete


def test_a_marker_is_waited_for_until_it_is_no_older_than_the_pair(tmp_path: Path) -> None:
    target = Target.of(str(tmp_path))
    write_pair(tmp_path, 1)
    assert look(target, "DONE").missing == ("DONE",)
    (tmp_path / "DONE").touch()
    assert look(target, "DONE").is_complete
    newer = (tmp_path / "DONE").stat().st_mtime_ns + 1
    os.utime(tmp_path / "state_dict.bin", ns=(newer, newer))
    assert look(target, "DONE").missing == ("DONE",)


def test_a_pattern_stands_for_the_directories_that_there_are(tmp_path: Path) -> None:
    for name in ("a", "b", ".hidden"):
        (tmp_path / "runs" / name / "export").mkdir(parents=True)
    (tmp_path / "runs" / "c").symlink_to(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "file").touch()
    found, parents = expand(rule(tmp_path / "runs" / "*" / "export"))
    assert [(name, target.path) for name, target in found] == [
        (name, str(tmp_path / "runs" / name / "export")) for name in ("a", "b")
    ]
    assert parents == [str(tmp_path / "runs"), *(str(tmp_path / "runs" / n) for n in "ab")]


def test_a_directory_of_a_pattern_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    write_pair(tmp_path / "runs" / "a" / "export", 1)
    found, _ = expand(rule(tmp_path / "runs" / "*" / "export"))
    (tmp_path / "runs" / "a").rename(tmp_path / "moved")
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "moved")
    assert "is a link" in look(found[0][1]).fault


def test_a_directory_is_matched_step_by_step() -> None:
    pattern = rule("/runs/*/export")
    target = matching(pattern, "/runs/a/export")
    assert target is not None
    assert target.path == "/runs/a/export"
    assert matching(pattern, "/runs/a/b/export") is None
    assert matching(pattern, "/other/a/export") is None


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "lustre", "9p"])
def test_network_file_systems_are_known(kind: str) -> None:
    assert is_network(kind)


def test_the_type_of_a_file_system_is_what_the_kernel_says() -> None:
    assert file_system_type("/proc") == "proc"
    assert not is_network(file_system_type("/proc"))
