"""``craftcache warm``."""

from __future__ import annotations

import os
import pty
import subprocess

from tests.support.command import CRAFTCACHE, SIZE, Node
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Gate, RateLimited, Stall


def test_warm_says_what_came_and_prints_plain_lines(node: Node) -> None:
    commit = node.hub.repo("org/plain").commit(EXPORT_FILES)
    ran = node.run("warm", "org/plain")
    assert ran.code == 0
    assert ran.out.startswith(f"org/plain: warm at {commit[:12]}, ")
    assert ran.out.endswith(" by daemon\n")
    lines = ran.err.splitlines()
    assert "org/plain: done" in lines
    assert all(line.startswith("org/plain") for line in lines)
    assert "\x1b" not in ran.err


def test_warm_shows_bars_on_a_terminal(node: Node) -> None:
    node.hub.repo("org/bars").commit({"state_dict.bin": EXPORT_FILES["state_dict.bin"]})
    shown = run_on_terminal(node, "warm", "--file", "state_dict.bin", "org/bars")
    assert "org/bars state_dict.bin" in shown
    assert "MB" in shown
    assert "\x1b[" in shown


def test_warm_again_fetches_nothing(node: Node) -> None:
    ran = node.run("warm", "org/model", "--json")
    assert ran.code == 0
    assert ran.err == ""
    [result] = ran.json["results"]
    assert result["source"] == "org/model"
    assert (result["bytes_fetched"], result["bytes_reused"]) == (0, SIZE)
    assert result["served_by"] == "daemon"


def test_warm_without_a_refresh_is_content_with_what_was_warmed_last(node: Node) -> None:
    repo = node.hub.repo("org/moving")
    first = repo.commit(EXPORT_FILES)
    assert node.run("warm", "org/moving").code == 0
    second = repo.commit({**EXPORT_FILES, "config.json": b"{}"})
    asked = node.hub.count(None, "/org/moving/*")
    kept = node.run("warm", "--no-refresh", "--json", "org/moving").json["results"]
    assert [result["revision"] for result in kept] == [first]
    assert node.hub.count(None, "/org/moving/*") == asked
    missing = node.run("warm", "--no-refresh", "--file", "config.json", "org/moving")
    assert missing.code == 1  # the revision that was warmed has none, and no other is asked for
    moved = node.run("warm", "--refresh", "--json", "org/moving").json["results"]
    assert [result["revision"] for result in moved] == [second]


def test_warm_tries_every_source_and_lists_failures_last(node: Node) -> None:
    ran = node.run("warm", "org/absent", "org/model", "no such id")
    assert ran.code == 1
    assert ran.out.startswith("org/model: warm at ")
    assert ran.err.splitlines()[-4::2] == [
        "craftcache: org/absent: no such repository, or a private one that needs a token",
        "craftcache: no such id: malformed Hub id",
    ]


def test_warm_in_json_gives_results_and_problems(node: Node) -> None:
    ran = node.run("warm", "--json", "org/model", "org/absent")
    assert ran.code == 1
    assert [result["source"] for result in ran.json["results"]] == ["org/model"]
    assert (ran.problem["code"], ran.problem["source"]) == ("NotFound", "org/absent")


def test_warm_of_named_files_fetches_no_others(node: Node) -> None:
    node.hub.repo("org/one").commit({**EXPORT_FILES, "config.json": b"{}"})
    ran = node.run("warm", "--json", "--file", "compression_state_dict.bin", "org/one")
    assert ran.code == 0
    listed = node.run("show", "org/one", "--json").json
    assert [file["filename"] for file in listed["files"]] == ["compression_state_dict.bin"]
    assert node.hub.count("GET", "/org/one/*/state_dict.bin") == 0


def test_warm_gives_up_after_its_timeout_with_75(node: Node) -> None:
    gate = Gate()
    node.hub.repo("org/slow").commit(EXPORT_FILES)
    node.hub.inject(Stall(gate), path="/org/slow/*", method="HEAD", times=None)
    ran = node.run("warm", "--timeout", "0.2", "org/slow")
    gate.open()
    assert ran.code == 75
    assert ran.err.splitlines()[-2:] == [
        "craftcache: org/slow: not warm after 0.2 s",
        "Try again, or leave it to the daemon with --detach",
    ]


def test_what_a_retry_may_mend_exits_with_75(node: Node) -> None:
    node.hub.repo("org/busy").commit(EXPORT_FILES)
    rule = node.hub.inject(RateLimited(), path="/org/busy/*", method="HEAD", times=None)
    ran = node.run("warm", "--json", "org/busy")
    rule.cancel()
    assert ran.problem["retryable"]
    assert ran.code == 75
    mixed = node.run("warm", "org/absent", "org/model")
    assert mixed.code == 1


def test_warm_detached_is_done_by_the_daemon(node: Node) -> None:
    gate = Gate()
    node.hub.repo("org/later").commit(EXPORT_FILES)
    node.hub.inject(Stall(gate), path="/org/later/*", method="HEAD", times=None)
    ran = node.run("warm", "--detach", "org/later")
    assert (ran.code, ran.out, ran.err) == (0, "org/later: queued\n", "")
    gate.reached.wait_blocking()  # by the daemon alone: the command has ended
    gate.open()
    with node.daemon.client() as client:
        assert client.load("org/later").served_by == "daemon"
    assert node.hub.count("GET", "/lfs/org/later/*/state_dict.bin") == 0  # org/model has the bytes


def test_a_detached_warm_of_a_malformed_source_queues_nothing(node: Node) -> None:
    ran = node.run("warm", "--detach", "--json", "org/model2", "no such id")
    assert ran.code == 1
    assert ran.problem["code"] == "InvalidSource"
    assert "org/model2" not in node.run("queue", "ls").out
    assert node.hub.count(None, "/org/model2/*") == 0


def test_check_answers_by_the_exit_code(node: Node) -> None:
    before = node.hub.count(None, "/org/never/*")
    assert node.run("warm", "org/model").code == 0  # other tests may have removed it
    warm = node.run("warm", "--check", "org/model")
    assert (warm.code, warm.out) == (0, "org/model: warm\n")
    mixed = node.run("warm", "--check", "--json", "org/model", "org/never")
    assert mixed.code == 1
    assert mixed.json["results"] == [
        {"source": "org/model", "warm": True, "missing": []},
        {"source": "org/never", "warm": False, "missing": list(EXPORT_FILES)},
    ]
    assert node.run("warm", "--check", "--file", "config.json", "org/model").code == 1
    assert node.hub.count(None, "/org/never/*") == before


def run_on_terminal(node: Node, *arguments: str) -> str:
    """Run the command on a terminal of its own; returns all that it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [CRAFTCACHE, "--socket-dir", node.daemon.socket_dir, *arguments],
        env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: nobody has its other side open any more
        return b""
