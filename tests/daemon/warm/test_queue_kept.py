"""A warm that nobody waits for: what was acknowledged is done, whatever happens to the daemon."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from tests.support.api import Api
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Gate, Stall, Status, matching

if TYPE_CHECKING:
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

LM = "*/state_dict.bin"


def promised(daemon: DaemonProcess) -> list[str]:
    """The sources in the records of a daemon that is not running."""
    with sqlite3.connect(daemon.state_dir / "craftcached.sqlite") as records:
        return [row[0] for row in records.execute("SELECT source FROM queued_warms ORDER BY id")]


def test_a_promise_is_kept_after_a_crash(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate, after=1000), path=LM, origin="cdn")
    response = api.warm("org/model", wait=False)
    assert response.status_code == 202
    (job,) = response.json()["jobs"]
    assert job["source"] == "org/model"
    assert api.get("/status")["queued"] == 1
    gate.reached.wait_blocking()
    daemon.kill()
    assert promised(daemon) == ["org/model"]
    before = len(threaded_hub.requests)
    gate.open()
    daemon.start()
    again = matching(LM, origin="cdn", method="GET")
    threaded_hub.wait_for_request_blocking(
        lambda request: again(request) and request.done and request.number >= before
    )
    with Api(daemon.socket_dir) as fresh:
        (result,) = fresh.warm("org/model").json()["results"]
    assert result["revision"] == export_repo.resolve("main")
    for name in EXPORT_FILES:
        assert threaded_hub.bytes_sent(f"*/{name}", origin="cdn") < 2 * result["size"]


def test_an_acknowledged_promise_is_on_the_disk(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="*", method="HEAD", origin="hub", times=None)
    for number in range(20):
        assert api.warm(f"org/model-{number}", wait=False).status_code == 202
    daemon.kill()
    gate.open()
    assert promised(daemon) == [f"org/model-{number}" for number in range(20)]


def test_a_promise_that_cannot_be_kept_is_forgotten(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    api.warm("org/none", "org/model", wait=False)
    for _ in range(2):  # both promises have been looked at before both of these are answered
        api.warm("org/model")
        api.warm("org/none")
    daemon.terminate()
    assert promised(daemon) == []


def test_a_promise_is_made_once(api: Api, threaded_hub: TestHub) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="*", method="HEAD", origin="hub", times=None)
    numbers = {api.warm("org/model", wait=False).json()["jobs"][0]["id"] for _ in range(3)}
    assert len(numbers) == 1
    assert api.get("/status")["queued"] == 1
    gate.open()


def test_a_promise_outlasts_a_hub_that_is_away(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    away = threaded_hub.inject(Status(503), path="*", method="HEAD", origin="hub", times=None)
    asked = matching("*/state_dict.bin", method="HEAD", origin="hub")
    api.warm("org/model", wait=False)
    threaded_hub.wait_for_request_blocking(lambda request: asked(request) and request.done)
    assert api.warm("org/model").status_code == 503
    daemon.terminate()
    assert promised(daemon) == ["org/model"]
    away.cancel()
    daemon.start()
    came = matching(LM, origin="cdn", method="GET")
    threaded_hub.wait_for_request_blocking(lambda request: came(request) and request.done)
