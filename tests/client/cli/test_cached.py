"""What is cached, what would be loaded, how the daemon is."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
import torch

from tests.support.command import SIZE, Node, run
from tests.support.daemons import EXPORT_FILES

if TYPE_CHECKING:
    from pathlib import Path


def test_ls_and_show(node: Node, commit: str) -> None:
    header, *lines = node.run("ls").out.splitlines()
    assert header.split() == ["SOURCE", "REVISION", "FILES", "SIZE", "RESIDENT", "USED", "PINNED"]
    [row] = [line.split() for line in lines if line.startswith("org/model ")]
    assert row[:5] == ["org/model", commit[:12], "2", "2.2", "MB"]
    assert row[-1] == "no"
    listed = node.run("ls", "--json").json["models"]
    [model] = [model for model in listed if model["source"] == "org/model"]
    assert (model["revision"], model["size"]) == (commit, SIZE)
    shown = node.run("show", "org/model")
    assert f"revision: {commit}" in shown.out
    assert all(file["sha256"] in shown.out for file in model["files"])
    assert node.run("show", "--json", "org/model").json == model


def test_show_of_what_is_not_cached(node: Node) -> None:
    ran = node.run("show", "org/never")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "craftcache: org/never: not in the cache\ncraftcache warm org/never\n"


def test_explain(node: Node, commit: str) -> None:
    cached = node.run("explain", "--json", "org/model").json
    assert (cached["kind"], cached["served_by"], cached["revision"]) == ("hub", "daemon", commit)
    ran = node.run("explain", "org/never")
    assert ran.code == 0
    assert ran.out.startswith("1. ")
    assert "revision:  not known yet" in ran.out
    assert node.hub.count(None, "/org/never/*") == 0


def test_rm_frees_what_no_other_model_needs(node: Node) -> None:
    own = io.BytesIO()
    torch.save({"best_state": {"weight": torch.arange(1000)}}, own)
    node.hub.repo("org/gone").commit({**EXPORT_FILES, "state_dict.bin": own.getvalue()})
    assert node.run("warm", "org/gone").code == 0
    removed = node.run("rm", "--json", "org/gone")
    assert removed.code == 0, removed.err
    freed = len(own.getvalue())
    assert removed.json == {"source": "org/gone", "freed_bytes": freed, "was_cached": True}
    listed = node.run("rm", "org/gone")
    assert listed.out == "org/gone: was not cached, and is listed as not warm no more\n"
    again = node.run("rm", "org/gone")
    assert again.code == 1
    assert again.err.startswith("craftcache: org/gone: not in the cache\n")
    assert node.run("warm", "--check", "org/model").code == 0


@pytest.mark.parametrize(
    "command",
    [("status",), ("ps",), ("top",), ("events",), ("rm", "org/model"), ("warm", "--detach", "a/b")],
)
def test_without_a_daemon_what_needs_one_exits_with_75(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    ran = run("--socket-dir", str(tmp_path), command[0], "--json", *command[1:])
    assert ran.code == 75
    assert ran.problem["code"] == "Unavailable"
    assert "craftcached" in ran.problem["hint"]
