"""Every metric of the daemon: its name, kind, labels and meaning.

The scrape, the table in docs/http.md, the dashboard and the alert rules go by this table: none of
them can name a metric that is not here, and none that is here is left out of a scrape.

Names follow Prometheus' conventions: base units, and ``_total`` for what only grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["METRICS", "Kind", "MetricDefinition"]

Kind: TypeAlias = Literal["gauge", "counter", "histogram"]

PREFIX = "craftcache_"


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """What a metric is.

    Attributes:
        name: Its name without the prefix and without ``_total``.
        kind: Its kind.
        meaning: What it says, for people.
        labels: Names of its labels.
        is_optional: Whether it has no sample where it is not known.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    is_optional: bool = False

    @property
    def full_name(self) -> str:
        """The name under which its samples stand."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


def _gauge(name: str, meaning: str, *labels: str, optional: bool = False) -> MetricDefinition:
    return MetricDefinition(name, "gauge", meaning, labels, optional)


def _counter(name: str, meaning: str, *labels: str) -> MetricDefinition:
    return MetricDefinition(name, "counter", meaning, labels)


def _histogram(name: str, meaning: str, *labels: str) -> MetricDefinition:
    return MetricDefinition(name, "histogram", meaning, labels)


METRICS: dict[str, MetricDefinition] = {
    metric.name: metric
    for metric in (
        _gauge("build_info", "1, with the software's version.", "version"),
        _gauge("start_time_seconds", "When the daemon started."),
        _gauge("models", "Models that are cached."),
        _gauge("cached_bytes", "Size of all cached models, each file counted once."),
        _gauge("resident_bytes", "Part of the cached bytes that is in memory.", optional=True),
        _gauge("quota_bytes", "The setting max_bytes; 0 is no limit."),
        _gauge("disk_free_bytes", "Bytes that the daemon may still write.", optional=True),
        _gauge("disk_size_bytes", "Size of the cache's file system.", optional=True),
        _gauge("quarantined_files", "Files that turned out wrong and are kept for a look."),
        _gauge("quarantined_bytes", "Size of the quarantined files."),
        _gauge("problems", "What is wrong, as the status lists it."),
        _gauge("not_warm_sources", "Sources that were wanted or here before and are not warm."),
        _gauge("requests_in_flight", "Sources that are fetched, verified or published."),
        _gauge("queued_warms", "Warms that are promised and not done."),
        _gauge("failing_warms", "Queued warms that have failed and are tried again."),
        _gauge("watches", "Watched directories.", "state"),
        _gauge("worker_connections", "Workers connected."),
        _gauge("worker_requests", "Requests of workers under way."),
        _gauge("worker_followers", "Workers that follow a watch."),
        _gauge("model_processes", "Processes that were handed models and still run."),
        _gauge(
            "scrub_age_seconds",
            "Time since the hashing of the cached file that was hashed longest ago.",
            optional=True,
        ),
        _gauge("gpu_models", "Models in a GPU's memory, for all workers of it.", "gpu"),
        _gauge("gpu_leases", "Leases of those models that processes hold.", "gpu"),
        _gauge("gpu_used_bytes", "Memory of a GPU that those models take.", "gpu"),
        _gauge("gpu_quota_bytes", "Memory of a GPU that models may take.", "gpu"),
        _counter("loads", "Loads, by who served them and how.", "served_by", "result"),
        _histogram("load_wait_seconds", "Time from a load's request to its answer.", "result"),
        _counter("served_bytes", "Size of the files that loads were handed."),
        _counter("fetched_bytes", "Bytes downloaded, by origin and outcome.", "origin", "outcome"),
        _counter("resumed_bytes", "Bytes that interrupted downloads had left, and that were used."),
        _counter("fetch_failures", "Downloads given up.", "code"),
        _histogram("fetch_duration_seconds", "Time that each file's download took."),
        _histogram("fetch_bytes_per_second", "Rate of each file's download."),
        _counter("warms", "Warms that ended.", "outcome"),
        _histogram("warm_duration_seconds", "Time that each warm took.", "outcome"),
        _counter("evictions", "Models that were evicted.", "reason"),
        _counter("evicted_bytes", "Bytes that evictions freed.", "reason"),
        _counter("quarantined", "Published files that were set aside as wrong."),
        _counter("verified_files", "Verdicts of verifications on request.", "outcome"),
        _counter("scrubbed_bytes", "Bytes hashed by the scrub."),
        _counter("scrub_findings", "Verdicts of the scrub on whatever is cached.", "outcome"),
        _gauge("mirror_up", "0 while a mirror has failed and is left alone.", "mirror"),
        _counter("mirror_bytes", "Bytes downloaded from mirrors.", "mirror"),
        _counter("mirror_failures", "Requests that a mirror did not serve.", "mirror", "kind"),
        _counter("mirror_wrong_ranges", "Ranges from mirrors that turned out wrong.", "mirror"),
        _counter("worker_failures", "Requests on the worker socket that failed.", "code"),
        _counter("worker_fallbacks", "Loads without the daemon, as workers tell it.", "reason"),
        _counter("http_responses", "Responses to HTTP requests.", "method", "path", "status"),
        _histogram("event_loop_lag_seconds", "Time by which the event loop was late."),
        _counter("scrape_failures", "Parts of a scrape left out because they failed.", "part"),
    )
}
"""All of them, by name, in the order of a scrape."""
