"""``GET /metrics``: the daemon's state and counters, for Prometheus."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from craftcache.daemon.administration import Outcome

from .mirror_metrics import mirror_metrics
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
        """Add the route, and count the responses of all."""
        app.router.add_get("/metrics", self._get)
        app.middlewares.insert(0, self._counted)

    @answers(media=("text/plain",))
    async def _get(self, _request: web.Request) -> web.Response:
        snapshot = _Snapshot(
            await self._service.status(),
            sum(warm.failure is not None for warm in self._service.queued()),
            self._workers(),
            _copied(self._counts),
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


def _copied(counts: Counts) -> Counts:
    return replace(
        counts,
        fetch_failures=counts.fetch_failures.copy(),
        refusals=counts.refusals.copy(),
        responses=counts.responses.copy(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot(Collector):
    """Everything at one moment.

    Attributes:
        status: The daemon's status.
        failing: Queued warms that have failed at least once and are tried again.
        workers: Statistics of the worker socket.
        counts: A copy of the counters, which count from the daemon's start.
        scrubbed_bytes: Bytes that the scrub has hashed since then.
        scrub_findings: Number of its verdicts since then, by outcome.
        mirrors: Statistics of the mirrors.
    """

    status: DaemonStatus
    failing: int
    workers: WorkerStatistics
    counts: Counts
    scrubbed_bytes: int
    scrub_findings: Mapping[str, int]
    mirrors: Sequence[MirrorStatistics]

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        yield from self._gauges()
        yield from self._counters()
        yield from mirror_metrics(self.mirrors)

    def _gauges(self) -> Iterator[Metric]:
        status, workers = self.status, self.workers
        yield _gauge(
            "build_info", "1, with the software's version.", {(status.version,): 1}, "version"
        )
        yield _gauge("start_time_seconds", "When the daemon started.", _one(status.started_at))
        yield _gauge("models", "Models that are cached.", _one(status.models))
        yield _gauge("cached_bytes", "Of all cached models, each file once.", _one(status.bytes))
        if status.resident_bytes is not None:
            yield _gauge("resident_bytes", "Of them in memory.", _one(status.resident_bytes))
        yield _gauge(
            "requests_in_flight",
            "Different requests that are fetched, verified or published for.",
            _one(status.requests),
        )
        yield _gauge("queued_warms", "Warms that are promised and not done.", _one(status.queued))
        yield _gauge(
            "failing_warms", "Of them have failed and are tried again.", _one(self.failing)
        )
        by_state = {(state,): count for state, count in status.watches.items()}
        yield _gauge("watches", "Watched directories.", by_state, "state")
        yield _gauge(
            "quarantined_files", "Turned out wrong, and kept for a look.", _one(status.quarantined)
        )
        yield _gauge("quarantined_bytes", "Of them.", _one(status.quarantined_bytes))
        yield _gauge(
            "scrub_age_seconds",
            "Since the last hashing of the cached file that was hashed longest ago.",
            _one(time.time() - status.hashed_since if status.hashed_since is not None else 0.0),
        )
        yield _gauge("worker_connections", "Workers connected.", _one(workers.connections))
        yield _gauge("worker_requests", "Requests of workers under way.", _one(workers.requests))
        yield _gauge("worker_followers", "Workers that follow a watch.", _one(workers.followers))

    def _counters(self) -> Iterator[Metric]:
        counts = self.counts
        yield _counter(
            "loads",
            "Loads served: a hit's files were at hand, a miss's were brought.",
            {("hit",): counts.hits, ("miss",): counts.misses},
            "result",
        )
        yield _counter(
            "served_bytes", "Of the files that loads were handed.", _one(counts.bytes_served)
        )
        yield _counter(
            "fetched_bytes", "Downloaded, of files that came whole.", _one(counts.bytes_fetched)
        )
        yield _counter(
            "resumed_bytes", "Left by interrupted downloads and used.", _one(counts.bytes_resumed)
        )
        yield _counter(
            "fetch_failures", "Downloads given up.", _by_one(counts.fetch_failures), "code"
        )
        yield _counter("scrubbed_bytes", "Hashed by the scrub.", _one(self.scrubbed_bytes))
        yield _counter(
            "scrub_findings",
            "What the scrub found of files, indexes, links and manifests.",
            {(outcome,): self.scrub_findings.get(outcome, 0) for outcome in get_args(Outcome)},
            "outcome",
        )
        yield _counter(
            "worker_failures",
            "Requests on the worker socket that ended in an error.",
            _by_one(counts.refusals),
            "code",
        )
        yield _counter("http_responses", "Over HTTP.", counts.responses, "method", "path", "status")


def _encode(snapshot: _Snapshot) -> bytes:
    registry = CollectorRegistry()
    registry.register(snapshot)
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _by_one(counts: Mapping[str, int]) -> dict[tuple[str], int]:
    """Values of a metric with one label."""
    return {(label,): count for label, count in counts.items()}


def _one(value: float) -> dict[tuple[()], float]:
    """The value of a metric without labels."""
    return {(): value}


def _gauge(name: str, meaning: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(f"craftcache_{name}", meaning, labels=labels)
    for labelled, value in values.items():
        family.add_metric(labelled, value)
    return family


def _counter(name: str, meaning: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = CounterMetricFamily(f"craftcache_{name}", meaning, labels=labels)
    for labelled, value in values.items():
        family.add_metric(labelled, value)
    return family
