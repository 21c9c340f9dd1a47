"""``craftcache load``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.command import Node, run
from tests.support.daemons import EXPORT, EXPORT_FILES
from tests.support.hub import OnDisk

if TYPE_CHECKING:
    from pathlib import Path


def test_load_prints_what_was_loaded_and_from_where(node: Node, commit: str) -> None:
    ran = node.run("load", "org/model")
    assert ran.code == 0, ran.err
    first, header, lm, compression = ran.out.splitlines()
    assert first.startswith(f"org/model at {commit[:12]}: loaded onto cpu, served by daemon, ")
    assert header.split() == ["PART", "TENSORS", "PARAMETERS", "BYTES", "DTYPE", "SHA256"]
    assert lm.split()[:6] == ["lm", "37", "659,648", "1.3", "MB", "float16"]
    assert compression.split()[:6] == ["compression", "116", "197,596", "790.4", "kB", "float32"]


def test_load_of_one_part_in_json(node: Node, commit: str) -> None:
    loaded = node.run("load", "--json", "--part", "lm", "--device", "meta", "org/model").json
    assert (loaded["served_by"], loaded["revision"], loaded["device"]) == ("daemon", commit, "meta")
    assert list(loaded["parts"]) == ["lm"]
    file, contents = loaded["parts"]["lm"]["file"], loaded["parts"]["lm"]["contents"]
    assert file["filename"] == "state_dict.bin"
    assert file["size"] == EXPORT_FILES["state_dict.bin"].stat().st_size
    assert (contents["tensors"], contents["dtypes"]) == (37, ["float16"])
    assert loaded["seconds"]["total"] >= loaded["seconds"]["resolve"] > 0


def test_load_of_a_local_directory() -> None:
    ran = run("load", str(EXPORT))
    assert ran.code == 0
    assert "served by local" in ran.out


def test_an_unknown_device_is_refused_before_any_byte(node: Node) -> None:
    node.hub.repo("org/cold").commit(EXPORT_FILES)
    ran = node.run("load", "--json", "--device", "abacus", "org/cold")
    assert ran.code == 1
    assert ran.problem["code"] == "UnknownDevice"
    assert node.hub.count(None, "/org/cold/*") == 0


def test_load_without_the_daemon_says_why(node: Node, tmp_path: Path) -> None:
    ran = run(
        *("--socket-dir", str(tmp_path), "--cache-dir", str(node.daemon.cache_dir)),
        *("load", "org/model"),
    )
    assert ran.code == 0
    assert "served by cache" in ran.out
    assert "not by the daemon: " in ran.out


@pytest.mark.parametrize("command", [("warm",), ("load", "--part", "lm")])
@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_a_signed_url_keeps_its_secret(
    node: Node, command: tuple[str, ...], json_option: tuple[str, ...]
) -> None:
    node.hub.files["/signed.bin"] = OnDisk(EXPORT_FILES["state_dict.bin"])
    url = node.hub.cdn_url("/signed.bin")
    ran = node.run(*command, *json_option, f"{url}?sig=s3cret")
    assert ran.code == 0, ran.err
    assert f"{url}?..." in ran.out
    assert "s3cret" not in ran.out + ran.err
