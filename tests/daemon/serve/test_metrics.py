"""``GET /metrics``: what Prometheus reads of a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from craftcache.errors import NotFound
from craftcache.version import VERSION
from craftcache.watch_rule import WatchRule
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Gate, RateLimited, Stall

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

SIZE = sum(path.stat().st_size for path in EXPORT_FILES.values())

FETCHED = "craftcache_fetched_bytes_total{origin=127.0.0.1,outcome=verified}"


def scrape(daemon: DaemonProcess) -> dict[str, float]:
    """Every sample by its name and labels, as in ``name{label=value}``."""
    transport = httpx.HTTPTransport(uds=str(daemon.socket_dir / "craftcache.sock"))
    with httpx.Client(transport=transport) as client:
        response = client.get("http://craftcached/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def test_an_empty_daemon(daemon: DaemonProcess) -> None:
    samples = scrape(daemon)
    assert samples[f"craftcache_build_info{{version={VERSION}}}"] == 1
    assert samples["craftcache_models"] == samples["craftcache_cached_bytes"] == 0
    assert samples["craftcache_loads_total{result=hit,served_by=daemon}"] == 0
    assert samples["process_resident_memory_bytes"] > 0


def test_what_was_fetched_and_served_is_counted(
    api: Api, daemon: DaemonProcess, export_repo: Repo
) -> None:
    with daemon.client() as client:
        client.load("org/model", device="meta")
        client.load("org/model", device="meta")
        samples = scrape(daemon)
        assert samples["craftcache_loads_total{result=miss,served_by=daemon}"] == 1
        assert samples["craftcache_loads_total{result=hit,served_by=daemon}"] == 1
        assert samples["craftcache_served_bytes_total"] == 2 * SIZE
        assert samples[FETCHED] == SIZE
        assert samples["craftcache_resumed_bytes_total"] == 0
        assert (samples["craftcache_models"], samples["craftcache_cached_bytes"]) == (1, SIZE)
        assert 0 < samples["craftcache_resident_bytes"] <= SIZE
        assert samples["craftcache_worker_connections"] == 1
        api.warm("org/model")
    assert scrape(daemon)[FETCHED] == SIZE


def test_failures_are_counted_by_their_code(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_repo: Repo
) -> None:
    with daemon.client() as client:
        for call in (client.load, client.warm):
            with pytest.raises(NotFound):
                call("org/absent")
    threaded_hub.inject(RateLimited(3600), origin="cdn", times=None)
    assert api.warm("org/model").json()["code"] == "Unavailable"
    samples = scrape(daemon)
    assert samples["craftcache_worker_failures_total{code=NotFound}"] == 2
    assert samples["craftcache_fetch_failures_total{code=Unavailable}"] >= 1


def test_responses_are_counted_by_path_and_not_by_what_a_client_makes_up(
    api: Api, daemon: DaemonProcess
) -> None:
    api.get("/health")
    for path in ("/models/org%2Fa", "/models/org%2Fb", "/made/up", "/made/up/too"):
        assert api.request("GET", path).status_code == 404
    assert api.request("PATCH", "/health").status_code == 405
    counted = {
        name.removeprefix("craftcache_http_responses_total"): count
        for name, count in scrape(daemon).items()
        if name.startswith("craftcache_http_responses_total")
    }
    assert counted == {
        "{method=GET,path=/v1/health,status=200}": 1,
        "{method=GET,path=/v1/models/{source},status=404}": 2,
        "{method=other,path=other,status=404}": 2,
        "{method=other,path=other,status=405}": 1,
    }


def test_what_is_under_way_promised_and_watched(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, base: Path
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="*", method="HEAD", origin="hub", times=None)
    (job,) = api.warm("org/model", wait=False).json()["jobs"]
    gate.reached.wait_blocking()
    rule = WatchRule(name="run", directory=str(base / "run-export"))
    assert api.request("PUT", "/watches/run", json=rule.to_fields()).is_success
    samples = scrape(daemon)
    assert samples["craftcache_requests_in_flight"] == 1
    assert (samples["craftcache_queued_warms"], samples["craftcache_failing_warms"]) == (1, 0)
    assert samples["craftcache_watches{state=absent}"] == 1
    assert api.request("DELETE", f"/warm/{job['id']}").is_success
    gate.open()
    assert scrape(daemon)["craftcache_queued_warms"] == 0
