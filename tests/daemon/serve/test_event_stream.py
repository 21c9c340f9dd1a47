"""``GET /v1/events`` of a running daemon: all that happens, from any number, over restarts too."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from craftcache.daemon.admin import AdminClient
from craftcache.errors import InvalidSource, NotFound, Unavailable
from tests.support.daemons import EXPORT_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess

BESIDE = "index_refused"
"""Told of what the fixtures have put into the cache beforehand."""

SIZE = sum(path.stat().st_size for path in EXPORT_FILES.values())


@contextmanager
def stream(daemon: DaemonProcess, query: str = "") -> Iterator[httpx.Response]:
    transport = httpx.HTTPTransport(uds=str(daemon.socket_dir / "craftcache.sock"))
    with (
        httpx.Client(transport=transport, timeout=60) as client,
        client.stream("GET", f"http://craftcached/v1/events{query}") as response,
    ):
        yield response


def until(daemon: DaemonProcess, kind: str, since: int = 0) -> list[dict[str, Any]]:
    """The events after a number, up to the first of a kind."""
    events = []
    with stream(daemon, f"?since={since}") as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"
        for line in response.iter_lines():
            events.append(json.loads(line))
            if events[-1]["event"] == kind:
                return events
    raise AssertionError("the stream ended")


def test_all_that_happens_is_an_event_with_its_number(api: Api, daemon: DaemonProcess) -> None:
    api.warm("org/model")
    with daemon.client() as client, pytest.raises(NotFound):
        client.warm("org/none")
    assert api.request("PUT", "/pins/org%2Fmodel").is_success
    assert api.request("POST", "/verify").is_success
    assert api.request("DELETE", "/pins/org%2Fmodel").is_success
    assert api.delete("org/model").is_success
    events = until(daemon, "removed")
    assert [event["event"] for event in events if event["event"] != BESIDE] == [
        "warm_started",
        "published",
        "warmed",
        "warm_started",
        "warm_failed",
        "pinned",
        "verified",
        "unpinned",
        "removed",
    ]
    first = events[0]["seq"]
    assert [event["seq"] for event in events] == list(range(first, first + len(events)))
    by_kind = {event["event"]: event for event in events}
    warmed, failed = by_kind["warmed"], by_kind["warm_failed"]
    assert (warmed["source"], warmed["bytes_fetched"]) == ("org/model", SIZE)
    assert (failed["source"], failed["code"]) == ("org/none", "NotFound")
    assert not failed["retryable"]
    assert until(daemon, "removed", events[-4]["seq"]) == events[-3:]


def test_what_is_no_number_is_refused(api: Api) -> None:
    for since in ("-1", "x", "", "1.5", "9" * 30, "\u0661"):
        answer = api.request("GET", "/events", params={"since": since})
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidSource"), since


def test_a_client_goes_on_after_a_restart_and_is_told_of_what_it_missed(
    api: Api, daemon: DaemonProcess
) -> None:
    admin = AdminClient(daemon.socket_dir)
    events = admin.events(0)
    api.warm("org/model")
    while next(events).kind != "warmed":
        pass
    daemon.kill()
    daemon.start()
    with daemon.client() as client:
        client.warm("org/model")
    gap, started = next(events), next(events)
    assert (gap.kind, started.kind) == ("gap", "warm_started")
    assert started.seq == gap.seq + 1


def test_what_cannot_be_had_is_said_at_once(daemon: DaemonProcess) -> None:
    with pytest.raises(Unavailable, match="no socket directory"):
        AdminClient(None).events()
    with pytest.raises(InvalidSource, match="no number of an event"):
        next(AdminClient(daemon.socket_dir).events(-1))


def test_each_refused_request_is_one_line_that_says_to_whom(
    api: Api, daemon: DaemonProcess
) -> None:
    api.request("POST", "/warm", json={"sources": ["../etc"]})
    api.request("GET", "/models/org%2Fnone")
    with daemon.client() as client, pytest.raises(NotFound):
        client.load("org/none")
    assert daemon.terminate() == 0
    lines = [line for line in daemon.log.splitlines() if "refused" in line]
    assert len(lines) == 3
    assert "refused POST /v1/warm" in lines[0]
    assert "refused GET /v1/models/{source} of org/none to uid " in lines[1]
    assert "refused load of org/none to uid " in lines[2]
    assert all("NotFound" in line for line in lines[1:])
