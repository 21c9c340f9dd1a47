"""``status``, ``ps``, ``top`` and ``events``: the daemon as people see it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest
import torch

from craftcache.cli.output import span_text
from tests.support.checkpoints import saved
from tests.support.command import CRAFTCACHE, SIZE, Node
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Gate, Stall, Status

if TYPE_CHECKING:
    from collections.abc import Iterator


def command_of(node: Node) -> list[str]:
    """The command, with this node's sockets."""
    return [str(CRAFTCACHE), "--socket-dir", str(node.daemon.socket_dir)]


def stalled(node: Node, repo_id: str) -> Gate:
    """A new model whose language model waits at a gate while it is downloaded."""
    own = saved({"best_state": {"w": torch.rand(1000)}})
    node.hub.repo(repo_id).commit({**EXPORT_FILES, "state_dict.bin": own})
    gate = Gate()
    node.hub.inject(Stall(gate, after=1000), path=f"*/{repo_id}/*", origin="cdn", times=None)
    return gate


def test_status_says_what_is_warm_and_how_the_daemon_is(node: Node, commit: str) -> None:
    shown = node.run("status").out
    first, *lines = shown.splitlines()
    assert re.fullmatch(rf"craftcached \S+, up .*, pid {node.daemon.pid}, on .*", first)
    assert str(node.daemon.cache_dir) in lines[0]
    assert "in memory" in lines[0]
    assert "free; no max_bytes" in lines[1]
    assert re.search(rf"^org/model +{commit[:12]} +2\.2 MB +.* ago$", shown, re.MULTILINE)
    report = node.run("status", "--json").json
    assert report["pid"] == node.daemon.pid
    assert report["cache_dir"] == str(node.daemon.cache_dir)
    [model] = [each for each in report["recent"] if each["source"] == "org/model"]
    assert (model["revision"], model["size"]) == (commit, SIZE)


def test_a_reader_of_status_alone_can_tell_why_a_model_is_not_warm(node: Node) -> None:
    node.hub.repo("org/evicted").commit(EXPORT_FILES)
    node.hub.inject(Status(503), path="*org/away*", origin="hub", method=None, times=None)
    assert node.run("warm", "org/none").code == 1
    assert node.run("warm", "--detach", "org/away").code == 0
    assert node.run("warm", "org/evicted").code == 0
    assert node.run("rm", "org/evicted").code == 0
    shown = node.run("status").out
    while "tried again in" not in shown:
        shown = node.run("status").out
    _, _, missing = shown.partition("NOT WARM")
    missing = missing.partition("WARM (")[0]
    assert re.search(r"org/none +.* ago +NotFound: no such repository", missing)
    assert "HF_TOKEN" in missing
    assert re.search(r"org/away +.*, tried again in .* Unavailable: ", missing)
    assert re.search(r"org/evicted +.* Removed: it was removed\n +craftcache warm", missing)
    told = {each["source"]: each for each in node.run("status", "--json").json["not_warm"]}
    assert told["org/away"]["next_try_at"] > told["org/away"]["at"]
    [job] = [j for j in node.run("queue", "ls", "--json").json["jobs"] if j["source"] == "org/away"]
    assert node.run("queue", "rm", str(job["id"])).code == 0


def test_status_says_what_is_coming_and_how_far_it_has_come(node: Node) -> None:
    gate = stalled(node, "org/coming")
    assert node.run("warm", "--detach", "org/coming").code == 0
    gate.reached.wait_blocking()
    coming: list[Any] = []
    while not coming or coming[0]["total"] is None:
        coming = node.run("status", "--json").json["coming"]
    [each] = coming
    assert (each["source"], each["state"]) == ("org/coming", "fetching")
    assert 0 <= each["done"] < each["total"] <= SIZE
    assert re.search(r"^org/coming +fetching +.* of .*", node.run("status").out, re.MULTILINE)
    [activity] = map(json.loads, node.run("top", "--json", "--count", "1").out.splitlines())
    assert [each["source"] for each in activity["coming"]] == ["org/coming"]
    gate.open()
    node.run("warm", "org/coming")


def test_ps_says_which_process_has_which_model(node: Node, commit: str) -> None:
    with node.daemon.client() as client:
        export = client.load("org/model", parts=("lm",))
        client.load("org/model", parts=("lm",))
        shown = node.run("ps")
        [process] = [
            each
            for each in node.run("ps", "--json").json["processes"]
            if each["pid"] == os.getpid()
        ]
        assert export.lm is not None
    assert (process["uid"], process["waits_for"]) == (os.getuid(), [])
    assert process["command"]
    assert " ".join(sys.orig_argv).startswith(process["command"])  # which may be cut off
    [use] = [each for each in process["models"] if each["source"] == "org/model"]
    assert use["revision"] == commit
    assert use["loads"] >= 2
    assert use["is_open"] in (True, None)
    row = rf"^{os.getpid()} +\S+ +org/model +{commit[:12]} +\d+ +.* ago +(open|-) +\S*python"
    assert re.search(row, shown.out, re.MULTILINE)


def test_a_process_that_waits_is_listed_and_one_that_has_ended_is_not(node: Node) -> None:
    gate = stalled(node, "org/waited")
    command = [*command_of(node), "load", "org/waited"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as loading:
        gate.reached.wait_blocking()
        found = {each["pid"]: each for each in node.run("ps", "--json").json["processes"]}
        assert found[loading.pid]["waits_for"] == ["org/waited"]
        assert "waits for it" in node.run("ps").out
        gate.open()
        loading.communicate()
    assert loading.returncode == 0
    while loading.pid in {each["pid"] for each in node.run("ps", "--json").json["processes"]}:
        pass


def test_a_load_that_takes_too_long_exits_with_75(node: Node) -> None:
    gate = stalled(node, "org/late")
    ran = node.run("load", "--timeout", "0.3", "--json", "org/late")
    gate.open()
    assert (ran.code, ran.problem["code"]) == (75, "Unavailable")
    assert ran.problem["retryable"]


def test_top_shows_loads_and_processes(node: Node) -> None:
    shown = node.run("top", "--count", "2", "--interval", "0.1")
    assert shown.code == 0, shown.err
    assert shown.out.count("loads: ") == 2
    assert "hits, " in shown.out
    assert "PID" in shown.out
    assert node.run("warm", "org/none-for-top").code == 1
    shown = node.run("top", "--count", "1")
    assert re.search(r" queued, [1-9]\d* not warm", shown.out)  # other tests' sources, too
    assert "org/none-for-top" in shown.out
    lines = node.run("top", "--json", "--count", "2", "--interval", "0.1").out.splitlines()
    first, second = map(json.loads, lines)
    assert second["at"] > first["at"]
    assert second["hits"] >= first["hits"]


@contextmanager
def listening(node: Node, *arguments: str) -> Iterator[IO[str]]:
    """What ``craftcache events`` prints, until the context is left."""
    command = [*command_of(node), "events", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.terminate()
            process.stdout.read()


def test_events_are_told_again_from_a_number_and_go_on_as_they_happen(node: Node) -> None:
    with listening(node, "--since", "0", "--json") as lines:
        first = json.loads(next(lines))
        events = {}
        assert node.run("pin", "org/model").code == 0
        assert node.run("verify", "org/model").code == 0
        assert node.run("unpin", "org/model").code == 0
        for line in lines:
            event = json.loads(line)
            assert event["seq"] > first["seq"]
            events[event["event"]] = event
            if event["event"] == "unpinned":
                break
    assert {"warmed", "published", "pinned", "verified"} <= set(events)
    assert (
        events["verified"] | {"files": 2, "wrong": 0, "missing": 0, "whole": False}
        == (events["verified"])
    )
    with listening(node, "--since", str(events["pinned"]["seq"]), "--kind", "unpinned") as lines:
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d+ unpinned source=org/model\n", next(lines)
        )


@pytest.mark.parametrize("command", [("events", "--since", "0"), ("top", "--json")])
def test_what_goes_on_until_it_is_interrupted_ends_well_then(
    node: Node, command: tuple[str, ...]
) -> None:
    with subprocess.Popen(
        [*command_of(node), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (0, "")


def test_both_clients_have_the_events(node: Node) -> None:
    with node.daemon.client() as client:
        event = next(client.events(0))
    assert event.kind == "warm_started"
    assert event.to_fields() == {"seq": event.seq, "event": event.kind, "at": event.at} | dict(
        event.fields
    )


async def test_the_asynchronous_client_has_them_too(node: Node) -> None:
    async with node.daemon.async_client() as client:
        events = aiter(client.events(0))
        first, second = await anext(events), await anext(events)
        await events.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert first.fields["source"] == "org/model"
    assert second.seq == first.seq + 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 hour"),
        (2 * 3600 + 60, "2 hours 1 min"),
        (86400 * 3 + 4 * 3600 + 1, "3 days 4 hours"),
        (-5, "0 s"),
    ],
)
def test_spans_of_time_are_said_in_words(seconds: float, text: str) -> None:
    assert span_text(seconds) == text
