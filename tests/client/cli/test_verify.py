"""``craftcache verify`` and ``craftcache quarantine``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.checkpoints import saved
from tests.support.command import run
from tests.support.hub import Status

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.command import Node

LM = "state_dict.bin"


def spoilt(node: Node, repo: str) -> Path:
    """Warm a repository of its own and spoil its file; returns where that is."""
    node.hub.repo(repo).commit({LM: saved({"best_state": {"of": repo}})})
    assert node.run("warm", "--file", LM, repo).code == 0
    with node.daemon.client() as client:
        blob = client.resolve(repo, LM).resolve()
    blob.chmod(0o644)
    blob.write_bytes(saved({"other_state": {}}))
    return blob


def test_what_is_right(node: Node) -> None:
    ran = node.run("verify", "org/model")
    assert ran.code == 0
    header, *lines = ran.out.splitlines()
    assert header.split() == ["SOURCE", "FILE", "PART", "OUTCOME", "WHY"]
    assert [line.split() for line in lines] == [
        ["org/model", "compression_state_dict.bin", "file", "right", "-"],
        ["org/model", "state_dict.bin", "file", "right", "-"],
    ]
    assert ran.err.splitlines()[-1].startswith("org/model state_dict.bin: verifying 1.3 MB of")
    assert node.run("verify", "org/none").code == 1
    assert node.run("verify", "--all", "org/model").code == 2
    assert node.run("verify", "--detach", "--ndjson").code == 2


def test_what_was_wrong_and_is_mended(node: Node) -> None:
    blob = spoilt(node, "org/spoilt")
    ran = node.run("verify", "org/spoilt")
    assert ran.code == 3
    source, name, part, outcome, why = ran.out.splitlines()[1].split(maxsplit=4)
    assert (source, name, part, outcome) == ("org/spoilt", LM, "file", "mended")
    assert why.startswith("was wrong, and is .craftcache/quarantine/")
    assert blob.read_bytes() == saved({"best_state": {"of": "org/spoilt"}})
    assert node.run("verify", "org/spoilt").code == 0


def test_what_is_wrong_and_cannot_be_mended_now(node: Node) -> None:
    spoilt(node, "org/unreachable")
    away = node.hub.inject(Status(503), path="*org/unreachable*", method=None, times=None)
    ran = node.run("verify", "org/unreachable")
    assert (ran.code, ran.out.splitlines()[1].split()[3]) == (75, "wrong")
    assert "; not mended: " in ran.out
    check = ("warm", "--check", "--file", LM, "org/unreachable")
    alone = ("--socket-dir", "/nowhere", "--cache-dir", str(node.daemon.cache_dir))
    for ran in (node.run(*check), run(*alone, *check)):
        assert (ran.code, ran.out) == (1, f"org/unreachable: not warm, lacks {LM}\n")
    again = node.run("verify", "--json", "org/unreachable")
    [result] = again.json["results"]
    assert (again.code, result["outcome"], result["quarantined"]) == (75, "missing", None)
    away.left = 0
    assert node.run("verify", "--json", "org/unreachable").code == 3


def test_what_happens_is_told_line_by_line(node: Node) -> None:
    ran = node.run("verify", "--ndjson", "org/model")
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, ran.err) == (0, "")
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        *("verifying", "result", "result", "done")
    ]
    progress = [event for event in events if event["event"] == "progress"]
    assert {event["file"] for event in progress} == {LM, "compression_state_dict.bin"}
    assert {(event["source"], event["state"]) for event in progress} == {("org/model", "verifying")}
    assert (events[-1]["found"], events[-1]["files_done"]) == ({"right": 2}, 2)


def test_one_that_is_left_to_the_daemon(node: Node) -> None:
    ran = node.run("verify", "--detach", "--json", "org/model")
    assert (ran.code, ran.json["files"], ran.json["sources"]) == (0, 2, ["org/model"])
    assert node.run("verify", "--detach", "org/model").out.endswith(": 2 files\n")


def test_the_quarantine(node: Node) -> None:
    blob = spoilt(node, "org/quarantined")
    assert node.run("verify", "org/quarantined").code == 3
    files = node.run("quarantine", "ls", "--json").json["files"]
    (mine,) = (file for file in files if file["name"].startswith(blob.name))
    assert (mine["sources"], mine["size"]) == (["org/quarantined"], len(saved({"other_state": {}})))
    listed = node.run("quarantine", "ls").out
    assert listed.splitlines()[0].split() == ["NAME", "SIZE", "SINCE", "SOURCES"]
    assert mine["name"] in listed
    assert node.run("status", "--json").json["quarantined"] == len(files)
    assert "turned out wrong, set aside in " in node.run("doctor").out
    ran = node.run("quarantine", "rm", mine["name"])
    assert (ran.code, ran.out) == (0, f"{mine['name']}: removed, 1.3 kB freed\n")
    assert node.run("quarantine", "rm", mine["name"]).code == 1
    assert node.run("quarantine", "rm", "../staging").code == 1
    assert node.run("quarantine", "rm").code == 2
    assert node.run("quarantine", "rm", "--all", "--json").code == 0
    assert node.run("quarantine", "ls", "--json").json["files"] == []
