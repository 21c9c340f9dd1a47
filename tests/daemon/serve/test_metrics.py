"""``GET /metrics``: what Prometheus reads of a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from craftcache.errors import NotFound, Offline
from craftcache.version import VERSION
from craftcache.watch_rule import WatchRule
from craftcache.wire import ReportedFallback
from craftcached.counts import Counts
from craftcached.histogram import Histogram
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Gate, RateLimited, Stall

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

SIZE = sum(path.stat().st_size for path in EXPORT_FILES.values())

HOW = ("hit", "miss")

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


def test_one_missing_file_takes_nothing_away(
    api: Api, daemon: DaemonProcess, export_repo: Repo
) -> None:
    api.warm("org/model")
    before = scrape(daemon)
    (lost, kept) = sorted(daemon.cache_dir.glob("models--*/blobs/*"))
    lost.unlink()
    after = scrape(daemon)
    assert set(before) <= set(after)
    assert 0 < after["craftcache_resident_bytes"] <= kept.stat().st_size
    (daemon.cache_dir / ".craftcache" / "manifests" / f"{'0' * 64}.json").write_text("{")
    assert set(before) <= set(scrape(daemon))


def test_what_takes_time_is_in_histograms(api: Api, daemon: DaemonProcess) -> None:
    api.warm("org/model")
    api.warm("org/none")
    with daemon.client() as client:
        client.load("org/model", device="meta")
    samples = scrape(daemon)
    assert samples["craftcache_load_wait_seconds_count{result=hit}"] == 1
    assert samples["craftcache_load_wait_seconds_bucket{le=+Inf,result=hit}"] == 1
    assert samples["craftcache_load_wait_seconds_bucket{le=10,result=hit}"] == 1
    assert samples["craftcache_fetch_duration_seconds_count"] == len(EXPORT_FILES)
    assert samples["craftcache_fetch_bytes_per_second_count"] == len(EXPORT_FILES)
    assert samples["craftcache_fetch_bytes_per_second_sum"] > 0
    assert samples["craftcache_warm_duration_seconds_count{outcome=done}"] == 1
    assert samples["craftcache_warms_total{outcome=failed}"] == 1
    assert samples["craftcache_not_warm_sources"] == 1
    while not scrape(daemon)["craftcache_event_loop_lag_seconds_count"]:
        pass


def test_what_administrators_do_is_counted_by_its_reason(api: Api, daemon: DaemonProcess) -> None:
    api.warm("org/model")
    blob = min(daemon.cache_dir.glob("models--*/blobs/*"), key=lambda path: path.stat().st_size)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"rot")
    assert api.request("POST", "/verify").is_success
    samples = scrape(daemon)
    assert samples["craftcache_verified_files_total{outcome=right}"] == 1
    assert samples["craftcache_verified_files_total{outcome=mended}"] == 1
    assert samples["craftcache_quarantined_total"] == samples["craftcache_quarantined_files"] == 1
    assert samples["craftcache_problems"] == 1
    assert samples["craftcache_quarantined_bytes"] > 0
    assert api.request("POST", "/evict", json={"bytes": 1}).json()["removed"] == ["org/model"]
    samples = scrape(daemon)
    assert samples["craftcache_evictions_total{reason=asked}"] == 1
    assert samples["craftcache_evicted_bytes_total{reason=asked}"] > 0


def test_workers_tell_of_loads_without_the_daemon_when_it_is_there_again(
    daemon: DaemonProcess, threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with daemon.client() as client:
        client.warm("org/model")
        daemon.kill()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert client.load("org/model", device="meta").served_by == "cache"
        assert client.load("org/model", device="meta").served_by == "cache"
        with pytest.raises(Offline):
            client.load("org/absent")
        daemon.start()
        assert client.load("org/model", device="meta").served_by == "daemon"
        assert client.load("org/model", device="meta").served_by == "daemon"
        status = client.status()
    samples = scrape(daemon)
    assert samples["craftcache_worker_fallbacks_total{reason=absent}"] == 3
    assert samples["craftcache_loads_total{result=fallback,served_by=cache}"] == 2
    assert samples["craftcache_loads_total{result=fallback,served_by=nobody}"] == 1
    by_daemon = [samples[f"craftcache_loads_total{{result={r},served_by=daemon}}"] for r in HOW]
    assert sum(by_daemon) == 2
    assert status.fallbacks == {"absent": 3}


def test_what_a_worker_makes_up_makes_no_labels() -> None:
    counts = Counts()
    counts.count_fallbacks(
        [ReportedFallback("silent", "cache", 2), ReportedFallback("made up", "elsewhere", 3)]
    )
    assert counts.fallbacks == {"silent": 2, "other": 3}
    assert counts.loads["cache", "fallback"] == 2
    assert counts.loads["other", "fallback"] == 3
    for number in range(1000):
        counts.count_bytes(f"https://host{number}/x", "verified", 1)
    assert len({origin for origin, _ in counts.bytes_fetched}) <= 65
    assert counts.bytes_fetched.total() == 1000


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_counts_all_that_is_not_above_each_bound(values: list[float]) -> None:
    bounds = (0.5, 1.0, 50.0)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    buckets = dict(histogram.buckets())
    assert buckets == {
        "0.5": sum(value <= 0.5 for value in values),
        "1": sum(value <= 1 for value in values),
        "50": sum(value <= 50 for value in values),
        "+Inf": len(values),
    }
    assert histogram.sum == pytest.approx(sum(values))
