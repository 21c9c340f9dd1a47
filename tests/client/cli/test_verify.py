"""``craftcache verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.checkpoints import saved
from tests.support.command import run

if TYPE_CHECKING:
    from tests.support.command import Node


def test_what_is_right_and_what_is_not(node: Node) -> None:
    node.hub.repo("org/spoilt").commit({"state_dict.bin": saved({"best_state": {}})})
    assert node.run("warm", "--file", "state_dict.bin", "org/spoilt").code == 0
    ran = node.run("verify", "org/model", "org/spoilt")
    assert (ran.code, ran.err) == (0, "")
    header, *lines = ran.out.splitlines()
    assert header.split() == ["SOURCE", "FILE", "OUTCOME"]
    assert [line.split() for line in lines] == [
        ["org/model", "compression_state_dict.bin", "right"],
        ["org/model", "state_dict.bin", "right"],
        ["org/spoilt", "state_dict.bin", "right"],
    ]
    with node.daemon.client() as client:
        blob = client.resolve("org/spoilt", "state_dict.bin").resolve()
    blob.chmod(0o644)
    blob.write_bytes(saved({"other_state": {}}))
    ran = node.run("verify", "org/spoilt")
    assert ran.code == 1
    assert ran.out.splitlines()[1].split() == ["org/spoilt", "state_dict.bin", "wrong"]
    assert ran.err.startswith("org/spoilt: state_dict.bin is .craftcache/quarantine/")
    check = ("warm", "--check", "--file", "state_dict.bin", "org/spoilt")
    alone = ("--socket-dir", "/nowhere", "--cache-dir", str(node.daemon.cache_dir))
    for ran in (node.run(*check), run(*alone, *check)):
        assert (ran.code, ran.out) == (1, "org/spoilt: not warm, lacks state_dict.bin\n")
    again = node.run("verify", "--json", "org/spoilt")
    [result] = again.json["results"]
    assert (again.code, result["outcome"], result["quarantined"]) == (1, "missing", None)
    assert node.run("verify", "org/none").code == 1
