"""The log has one line for each warm: what, at which revision, how much came, how it ended."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from craftcache import NotFound
from tests.support.hub import Gate, Stall, matching

if TYPE_CHECKING:
    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub


def lines(daemon: DaemonProcess) -> list[str]:
    """The lines about warms, from their first word on, without what differs from run to run."""
    daemon.terminate()
    found = re.findall(r"((?:not )?warmed .*)", daemon.log)
    return [re.sub(r"\d+\.\d\d s", "N s", line) for line in found]


def test_a_warm_that_fetches_and_one_that_finds_all_in_place(
    api: Api, daemon: DaemonProcess, export_repo: Repo
) -> None:
    commit = export_repo.resolve("main")
    for _ in range(2):
        api.warm("org/model")
    assert lines(daemon) == [
        f"warmed org/model at {commit}: 2.2 MB fetched, 0 bytes reused, N s",
        f"warmed org/model at {commit}: 0 bytes fetched, 2.2 MB reused, N s",
    ]


def test_a_load_logs_what_it_had_to_fetch_and_nothing_where_all_was_warm(
    daemon: DaemonProcess, export_repo: Repo
) -> None:
    with daemon.client() as client:
        for _ in range(2):
            client.load("org/model")
    commit = export_repo.resolve("main")
    assert lines(daemon) == [f"warmed org/model at {commit}: 2.2 MB fetched, 0 bytes reused, N s"]


def test_a_failed_warm_says_why(daemon: DaemonProcess) -> None:
    with daemon.client() as client, pytest.raises(NotFound):
        client.warm("org/none")
    [line] = lines(daemon)
    assert line.startswith("not warmed org/none: NotFound, no such repository")
    assert line.endswith(", N s")


def test_a_warm_that_nobody_waits_for_any_more(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate, after=1000), path="*/state_dict.bin", origin="cdn")
    with api.warming("org/model") as events:
        next(events)
        threaded_hub.wait_for_request_blocking(
            matching("*/state_dict.bin", method="GET", origin="cdn")
        )
    gate.open()
    assert lines(daemon) == ["not warmed org/model: nobody waits for it any more, N s"]
