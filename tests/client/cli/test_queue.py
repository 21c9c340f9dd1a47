"""``craftcache queue``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Gate, RateLimited, Stall

if TYPE_CHECKING:
    from tests.support.command import Node


def test_a_queued_warm_is_listed_and_withdrawn_by_its_number(node: Node) -> None:
    gate = Gate()
    node.hub.inject(Stall(gate), path="/org/stalled/*", method="HEAD", times=None)
    [queued] = node.run("warm", "--detach", "--json", "org/stalled").json["jobs"]
    gate.reached.wait_blocking()
    header, line = node.run("queue", "ls").out.splitlines()
    assert header.split() == ["NUMBER", "SOURCE", "FILES", "FAILURES", "WHY"]
    assert line.split() == [str(queued["id"]), "org/stalled", "-", "0", "-"]
    [listed] = node.run("queue", "ls", "--json").json["jobs"]
    assert listed | queued == listed
    ran = node.run("queue", "rm", str(queued["id"]))
    gate.open()
    assert (ran.code, ran.out, ran.err) == (0, "org/stalled: withdrawn\n", "")
    assert node.run("queue", "ls", "--json").json == {"jobs": []}
    again = node.run("queue", "rm", "--json", str(queued["id"]))
    assert (again.code, again.problem["code"]) == (1, "NotFound")


def test_what_failed_and_is_tried_again_is_listed_with_why(node: Node) -> None:
    node.hub.repo("org/limited").commit(EXPORT_FILES)
    rule = node.hub.inject(RateLimited(), path="/org/limited/*", method="HEAD", times=None)
    [queued] = node.run(
        *("warm", "--detach", "--json", "--file", "state_dict.bin", "org/limited")
    ).json["jobs"]
    while "the Hub answers 429" not in (listed := node.run("queue", "ls")).out:
        pass
    rule.cancel()
    assert listed.err == ""
    number, source, files, failures, why = listed.out.splitlines()[-1].split(maxsplit=4)
    assert why == "the Hub answers 429"
    assert (int(number), source, files) == (queued["id"], "org/limited", "state_dict.bin")
    assert int(failures) > 0
    assert node.run("queue", "rm", "--json", number).json == queued
