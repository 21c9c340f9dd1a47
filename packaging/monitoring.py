"""Writes the Grafana dashboard and Prometheus' alert rules, from the daemon's own table of metrics.

    python packaging/monitoring.py [DIRECTORY]

writes ``grafana-dashboard.json`` and ``prometheus-rules.yaml``, by default into systemd/examples,
where a test finds them as they are committed. An expression can name no metric that the daemon does
not have: names are looked up in craftcached.serve.metric_table, and another one is a KeyError.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from craftcached.serve.metric_table import METRICS

__all__ = ["DASHBOARD", "RULES", "dashboard", "rules", "write"]

EXAMPLES = Path(__file__).parents[1] / "systemd" / "examples"

DASHBOARD = "grafana-dashboard.json"
RULES = "prometheus-rules.yaml"

NODE = 'instance=~"$instance"'
"""Restricts a panel to the nodes that are chosen above it."""


def name(metric: str) -> str:
    """The full name of a metric of the table."""
    return METRICS[metric].full_name


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of the dashboard.

    Attributes:
        title: What it shows.
        unit: Grafana's name of the unit.
        queries: Expressions, each with the text of its legend.
        kind: Grafana's name of the panel.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert rule.

    Attributes:
        title: Its name.
        expression: What is true while something is wrong.
        lasting: How long it is true before anybody is told.
        severity: ``warning`` or ``critical``.
        summary: What is wrong; of which node is added.
        action: What to do.
    """

    title: str
    expression: str
    lasting: str
    severity: str
    summary: str
    action: str


def gauge(metric: str) -> str:
    """The value of a gauge."""
    return f"{name(metric)}{{{NODE}}}"


def rate(metric: str, *by: str) -> str:
    """How fast a counter grows, by some of its labels."""
    return f"sum by ({', '.join(by or ('instance',))}) (rate({name(metric)}{{{NODE}}}[5m]))"


def quantile(metric: str, share: float, *by: str) -> str:
    """The value that so large a share of observations is not above."""
    labels = ", ".join(("le", *by))
    buckets = f"rate({name(metric)}_bucket{{{NODE}}}[5m])"
    return f"histogram_quantile({share}, sum by ({labels}) ({buckets}))"


PANELS = (
    Panel("Models", "short", ((gauge("models"), "{{instance}}"),), "stat"),
    Panel("Not warm", "short", ((gauge("not_warm_sources"), "{{instance}}"),), "stat"),
    Panel("Problems", "short", ((gauge("problems"), "{{instance}}"),), "stat"),
    Panel("Processes", "short", ((gauge("model_processes"), "{{instance}}"),), "stat"),
    Panel(
        "Loads by who served them",
        "ops",
        ((rate("loads", "served_by", "result"), "{{served_by}} {{result}}"),),
    ),
    Panel(
        "Load wait",
        "s",
        (
            (quantile("load_wait_seconds", 0.5, "result"), "{{result}} median"),
            (quantile("load_wait_seconds", 0.99, "result"), "{{result}} 99 %"),
        ),
    ),
    Panel(
        "Bytes fetched by origin",
        "Bps",
        ((rate("fetched_bytes", "origin", "outcome"), "{{origin}} {{outcome}}"),),
    ),
    Panel(
        "Downloads: rate of each file",
        "Bps",
        (
            (quantile("fetch_bytes_per_second", 0.5), "median"),
            (quantile("fetch_bytes_per_second", 0.1), "slowest tenth"),
        ),
    ),
    Panel(
        "Downloads: time of each file",
        "s",
        (
            (quantile("fetch_duration_seconds", 0.5), "median"),
            (quantile("fetch_duration_seconds", 0.95), "95 %"),
        ),
    ),
    Panel(
        "Warms",
        "ops",
        ((rate("warms", "outcome"), "{{outcome}}"),),
    ),
    Panel(
        "Time of a warm",
        "s",
        ((quantile("warm_duration_seconds", 0.95, "outcome"), "{{outcome}} 95 %"),),
    ),
    Panel(
        "Queue",
        "short",
        (
            (gauge("queued_warms"), "queued {{instance}}"),
            (gauge("failing_warms"), "failing {{instance}}"),
            (gauge("requests_in_flight"), "in flight {{instance}}"),
        ),
    ),
    Panel(
        "Room",
        "bytes",
        (
            (gauge("cached_bytes"), "cached {{instance}}"),
            (gauge("resident_bytes"), "in memory {{instance}}"),
            (gauge("quota_bytes"), "max_bytes {{instance}}"),
            (gauge("disk_free_bytes"), "disk free {{instance}}"),
        ),
    ),
    Panel(
        "Evictions",
        "ops",
        ((rate("evictions", "reason"), "{{reason}}"),),
    ),
    Panel(
        "Bytes freed by eviction",
        "Bps",
        ((rate("evicted_bytes", "reason"), "{{reason}}"),),
    ),
    Panel(
        "Workers without the daemon",
        "ops",
        ((rate("worker_fallbacks", "reason"), "{{reason}}"),),
    ),
    Panel(
        "Refused and failed",
        "ops",
        (
            (rate("worker_failures", "code"), "worker {{code}}"),
            (rate("fetch_failures", "code"), "download {{code}}"),
        ),
    ),
    Panel(
        "Integrity",
        "short",
        (
            (gauge("quarantined_files"), "in quarantine {{instance}}"),
            (rate("verified_files", "outcome"), "verified {{outcome}}"),
        ),
    ),
    Panel(
        "Since the last scrub",
        "s",
        ((gauge("scrub_age_seconds"), "{{instance}}"),),
    ),
    Panel(
        "Event loop lag",
        "s",
        ((quantile("event_loop_lag_seconds", 0.99, "instance"), "{{instance}} 99 %"),),
    ),
    Panel(
        "Workers",
        "short",
        (
            (gauge("worker_connections"), "connections {{instance}}"),
            (gauge("worker_requests"), "requests {{instance}}"),
            (gauge("worker_followers"), "followers {{instance}}"),
        ),
    ),
)

ALERTS = (
    Alert(
        "CraftcacheDown",
        'up{job="craftcache"} == 0',
        "5m",
        "critical",
        "craftcached is not scraped, or is down",
        "systemctl status craftcached; workers load without it meanwhile",
    ),
    Alert(
        "CraftcacheDiskAlmostFull",
        f"{name('disk_free_bytes')} / {name('disk_size_bytes')} < 0.05",
        "15m",
        "warning",
        "less than a twentieth of the cache's disk is free",
        "craftcache evict --bytes SIZE, set max_bytes, or make room",
    ),
    Alert(
        "CraftcacheAboveQuota",
        f"{name('cached_bytes')} > {name('quota_bytes')} and {name('quota_bytes')} > 0",
        "30m",
        "warning",
        "more is cached than max_bytes allows, and nothing more can go",
        "craftcache evict --dry-run says what stays and why",
    ),
    Alert(
        "CraftcacheQuarantine",
        f"increase({name('quarantined')}[1h]) > 0",
        "0m",
        "critical",
        "a published file turned out wrong",
        "look at the disk and at who can write to the cache; craftcache verify hashes the rest",
    ),
    Alert(
        "CraftcacheWarmsFail",
        f"{name('failing_warms')} > 0",
        "1h",
        "warning",
        "queued warms fail again and again",
        "craftcache status says which, and why",
    ),
    Alert(
        "CraftcacheProblems",
        f"{name('problems')} > 0",
        "15m",
        "warning",
        "the status lists what is wrong",
        "craftcache status says what to do about each",
    ),
    Alert(
        "CraftcacheWorkersFallBack",
        f"sum by (instance, reason) (increase({name('worker_fallbacks')}"
        '{reason!~"denied|absent"}[15m])) > 0',
        "0m",
        "warning",
        "workers load without the daemon, though it runs",
        "craftcache doctor; the reason says whether it was silent, busy or failed",
    ),
    Alert(
        "CraftcacheEventLoopLags",
        "histogram_quantile(0.99, sum by (le, instance) "
        f"(rate({name('event_loop_lag_seconds')}_bucket[10m]))) > 0.5",
        "10m",
        "warning",
        "the daemon answers late",
        "too little CPU for the daemon, or a fault of its own: report it with the log",
    ),
    Alert(
        "CraftcacheDownloadsFail",
        f"sum by (instance, code) (increase({name('fetch_failures')}"
        '{code!~"NotFound|PolicyDenied"}[30m])) > 3',
        "0m",
        "warning",
        "downloads are given up",
        "journalctl -u craftcached CRAFTCACHE_EVENT=warm_failed says which, and why",
    ),
    Alert(
        "CraftcacheNotScrubbed",
        f"{name('scrub_age_seconds')} > 60 * 86400",
        "1h",
        "warning",
        "the cache was not hashed again for two months",
        "craftcache verify",
    ),
    Alert(
        "CraftcacheScrapeIncomplete",
        f"increase({name('scrape_failures')}[15m]) > 0",
        "0m",
        "warning",
        "a part of a scrape is missing",
        "the daemon's log says why",
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    return {
        "title": "craftcache",
        "uid": "craftcache",
        "tags": ["craftcache"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_datasource(), _instances()]},
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


def rules() -> dict[str, Any]:
    """The alert rules, as Prometheus reads them."""
    return {"groups": [{"name": "craftcache", "rules": [_rule(alert) for alert in ALERTS]}]}


def write(directory: Path) -> None:
    """Write both files."""
    (directory / DASHBOARD).write_text(json.dumps(dashboard(), indent=1) + "\n")
    head = "# Alert rules, and what to do about each alert. Made by packaging/monitoring.py.\n"
    text = yaml.safe_dump(rules(), sort_keys=False, width=100)
    (directory / RULES).write_text(head + text)


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "type": "datasource",
        "query": "prometheus",
        "label": "Prometheus",
    }


def _instances() -> dict[str, Any]:
    return {
        "name": "instance",
        "label": "Node",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": f"label_values({name('build_info')}, instance)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    width, height = (6, 4) if panel.kind == "stat" else (12, 8)
    stats = sum(each.kind == "stat" for each in PANELS)
    place = number if panel.kind == "stat" else number - stats
    in_row = 24 // width
    top = 0 if panel.kind == "stat" else 4
    return {
        "id": number + 1,
        "title": panel.title,
        "type": panel.kind,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "gridPos": {
            "x": place % in_row * width,
            "y": top + place // in_row * height,
            "w": width,
            "h": height,
        },
        "targets": [
            {"refId": chr(ord("A") + each), "expr": expression, "legendFormat": legend}
            for each, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.title,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": f"{{{{ $labels.instance }}}}: {alert.summary}",
            "description": f"{alert.action}.",
        },
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLES)
