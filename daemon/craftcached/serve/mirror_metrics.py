"""The metrics of mirrors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from craftcached.fetch import MirrorStatistics

__all__ = ["mirror_metrics"]


def mirror_metrics(mirrors: Sequence[MirrorStatistics]) -> Iterator[Metric]:
    """The metrics of all mirrors at one moment; counters count from the daemon's start."""
    up = GaugeMetricFamily(
        "craftcache_mirror_up",
        "0 while a mirror has failed and is left alone.",
        labels=["mirror"],
    )
    received = CounterMetricFamily(
        "craftcache_mirror_bytes", "Bytes downloaded from mirrors.", labels=["mirror"]
    )
    failures = CounterMetricFamily(
        "craftcache_mirror_failures",
        "Requests that a mirror did not serve, by what was wrong.",
        labels=["mirror", "kind"],
    )
    wrong = CounterMetricFamily(
        "craftcache_mirror_wrong_ranges",
        "Ranges from mirrors that turned out wrong.",
        labels=["mirror"],
    )
    for each in mirrors:
        up.add_metric([each.name], not each.is_open)
        received.add_metric([each.name], each.bytes)
        wrong.add_metric([each.name], each.wrong_ranges)
        for kind, count in each.failures.items():
            failures.add_metric([each.name, kind], count)
    yield from (up, received, failures, wrong)
