"""``GET /metrics``: the daemon's state and counters, for Prometheus.

A scrape is made of parts. One that fails, whatever the reason, is left out and counted; the others
are there all the same.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from craftcache.daemon.administration import Outcome
from craftcached.histogram import Histogram

from .metric_table import METRICS, PREFIX
from .openapi import answers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from craftcache.wire import DaemonStatus
    from craftcached.counts import Counts
    from craftcached.fetch import MirrorStatistics
    from craftcached.service import Service

    from .worker import WorkerStatistics

__all__ = ["MetricsRoute"]

log = logging.getLogger("craftcached")

OTHER = "other"
"""Label for requests to unknown paths: clients must not be able to add values to a label."""


class MetricsRoute:
    """Encodes the state of the service, the worker socket's statistics and the counters.

    Args:
        service: The daemon's service.
        workers: Returns the statistics of the worker socket.
        counts: The daemon's counters; HTTP responses are counted in them too.
        mirrors: Returns the statistics of the mirrors.
    """

    def __init__(
        self,
        service: Service,
        workers: Callable[[], WorkerStatistics],
        counts: Counts,
        mirrors: Callable[[], Sequence[MirrorStatistics]],
    ) -> None:
        self._service = service
        self._workers = workers
        self._counts = counts
        self._mirrors = mirrors

    def add_to(self, app: web.Application) -> None:
        """Add the route, and count the responses of all that ``app`` has."""
        app.router.add_get("/metrics", self._get)
        app.middlewares.insert(0, self._counted)

    @answers(media=("text/plain",))
    async def _get(self, _request: web.Request) -> web.Response:
        try:
            status = await self._service.inventory.status()
        except Exception:
            log.exception("a scrape lacks the status")
            self._counts.scrape_failures["status"] += 1
            status = None
        snapshot = _Snapshot(
            status,
            sum(warm.failure is not None for warm in self._service.warms.queue.all()),
            self._workers(),
            copy.deepcopy(self._counts),
            self._service.integrity.scrub.hashed_bytes,
            dict(self._service.integrity.scrub.found),
            self._mirrors(),
        )
        body = await asyncio.to_thread(_encode, snapshot)  # it reads of the process in /proc
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    @web.middleware
    async def _counted(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        response = await handler(request)
        resource = request.match_info.route.resource
        method, path = (request.method, resource.canonical) if resource else (OTHER, OTHER)
        self._counts.responses[method, path, str(response.status)] += 1
        return response


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot(Collector):
    """Everything at one moment.

    Attributes:
        status: The daemon's status; None where it cannot be had.
        failing: Queued warms that have failed at least once and are tried again.
        workers: Statistics of the worker socket.
        counts: A copy of the counters, which count from the daemon's start.
        scrubbed_bytes: Bytes that the scrub has hashed since then.
        scrub_findings: Number of its verdicts since then, by outcome.
        mirrors: Statistics of the mirrors.
    """

    status: DaemonStatus | None
    failing: int
    workers: WorkerStatistics
    counts: Counts
    scrubbed_bytes: int
    scrub_findings: Mapping[str, int]
    mirrors: Sequence[MirrorStatistics]

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        if self.status is not None:
            yield from _state(self.status)
        yield _family("failing_warms", self.failing)
        yield _family("worker_connections", self.workers.connections)
        yield _family("worker_requests", self.workers.requests)
        yield _family("worker_followers", self.workers.followers)
        yield from _counters(self.counts)
        yield _family("scrubbed_bytes", self.scrubbed_bytes)
        found = {each: self.scrub_findings.get(each, 0) for each in get_args(Outcome)}
        yield _family("scrub_findings", found)
        yield from _mirrors(self.mirrors)
        yield from _histograms(self.counts)


def _state(status: DaemonStatus) -> Iterator[Metric]:
    yield _family("build_info", {status.version: 1})
    yield _family("start_time_seconds", status.started_at)
    yield _family("models", status.models)
    yield _family("cached_bytes", status.bytes)
    yield _family("resident_bytes", status.resident_bytes)
    yield _family("quota_bytes", status.max_bytes)
    disk = status.disk
    yield _family("disk_free_bytes", None if disk is None else disk.free_bytes)
    yield _family("disk_size_bytes", None if disk is None else disk.total_bytes)
    yield _family("quarantined_files", status.quarantined)
    yield _family("quarantined_bytes", status.quarantined_bytes)
    yield _family("problems", len(status.problems))
    yield _family("not_warm_sources", status.not_warm_count)
    yield _family("requests_in_flight", status.requests)
    yield _family("queued_warms", status.queued)
    yield _family("watches", status.watches)
    yield _family("model_processes", status.processes)
    yield _family("gpu_models", {gpu.uuid: len(gpu.models) for gpu in status.gpus})
    leases = {gpu.uuid: sum(each.leases for each in gpu.models) for gpu in status.gpus}
    yield _family("gpu_leases", leases)
    yield _family("gpu_used_bytes", {gpu.uuid: gpu.used_bytes for gpu in status.gpus})
    yield _family("gpu_quota_bytes", {gpu.uuid: gpu.max_bytes for gpu in status.gpus})
    since = status.hashed_since
    yield _family("scrub_age_seconds", None if since is None else max(time.time() - since, 0.0))


def _counters(counts: Counts) -> Iterator[Metric]:
    yield _family("loads", counts.loads)
    yield _family("served_bytes", counts.bytes_served)
    yield _family("fetched_bytes", counts.bytes_fetched)
    yield _family("resumed_bytes", counts.bytes_resumed)
    yield _family("fetch_failures", counts.fetch_failures)
    yield _family("warms", counts.warms)
    yield _family("evictions", counts.evictions)
    yield _family("evicted_bytes", counts.bytes_evicted)
    yield _family("quarantined", counts.quarantined)
    yield _family("verified_files", counts.verified)
    yield _family("worker_failures", counts.refusals)
    yield _family("worker_fallbacks", counts.fallbacks)
    yield _family("http_responses", counts.responses)
    yield _family("scrape_failures", counts.scrape_failures)


def _mirrors(mirrors: Sequence[MirrorStatistics]) -> Iterator[Metric]:
    yield _family("mirror_up", {each.name: not each.is_open for each in mirrors})
    yield _family("mirror_bytes", {each.name: each.bytes for each in mirrors})
    failures = {(m.name, kind): n for m in mirrors for kind, n in m.failures.items()}
    yield _family("mirror_failures", failures)
    yield _family("mirror_wrong_ranges", {each.name: each.wrong_ranges for each in mirrors})


def _histograms(counts: Counts) -> Iterator[Metric]:
    yield _histogram("load_wait_seconds", counts.load_wait)
    yield _histogram("fetch_duration_seconds", counts.fetch_seconds)
    yield _histogram("fetch_bytes_per_second", counts.fetch_rate)
    yield _histogram("warm_duration_seconds", counts.warm_seconds)
    yield _histogram("event_loop_lag_seconds", counts.loop_lag)


def _encode(snapshot: _Snapshot) -> bytes:
    registry = CollectorRegistry()
    registry.register(snapshot)
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _family(name: str, values: float | Mapping[Any, float] | None) -> Metric:
    """A gauge or counter: its value, or its values by label, or by labels in a tuple.

    With None, which stands for a value that is not known, it is named and has no sample.
    """
    metric = METRICS[name]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(PREFIX + name, metric.meaning, labels=metric.labels)
    if values is None:
        return family
    if isinstance(values, int | float):
        family.add_metric((), values)
        return family
    for labelled, value in values.items():
        family.add_metric((labelled,) if isinstance(labelled, str) else labelled, value)
    return family


def _histogram(name: str, values: Histogram | Mapping[str, Histogram]) -> Metric:
    metric = METRICS[name]
    family = HistogramMetricFamily(PREFIX + name, metric.meaning, labels=metric.labels)
    by_label = [("", values)] if isinstance(values, Histogram) else values.items()
    for label, histogram in by_label:
        family.add_metric((label,) if label else (), histogram.buckets(), histogram.sum)
    return family
