"""The dashboard and the alert rules: as they are made, and against a scrape of a running daemon."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from craftcached.serve.metric_table import METRICS
from tests.support.daemons import DaemonProcess
from tests.support.tools import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "systemd" / "examples"
DASHBOARD, RULES = EXAMPLES / "grafana-dashboard.json", EXAMPLES / "prometheus-rules.yaml"


def expressions() -> list[str]:
    """All that Prometheus is asked, by panels and by rules."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return asked + [rule["expr"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What Prometheus reads over TCP of a daemon that has done nothing yet."""
    base = tmp_path_factory.mktemp("m")
    with DaemonProcess(base, "--metrics-listen", "127.0.0.1:0") as daemon:
        found = re.search(r"metrics are at (http://127\.0\.0\.1:\d+/metrics)", daemon.log)
        assert found is not None, daemon.log
        answer = httpx.get(found[1])
        assert answer.status_code == 200
        assert httpx.get(found[1].replace("/metrics", "/v1/status")).status_code == 404
        yield answer.text


def test_what_is_committed_is_what_is_made(tmp_path: Path) -> None:
    script = ROOT / "packaging" / "monitoring.py"
    subprocess.run([sys.executable, script, tmp_path], check=True)
    for path in (DASHBOARD, RULES):
        assert (tmp_path / path.name).read_text() == path.read_text(), f"run {script}"


def test_every_metric_named_in_them_is_in_a_scrape_of_a_running_daemon(scrape: str) -> None:
    types = dict(re.findall(r"^# TYPE (craftcache_\w+) (\w+)$", scrape, re.MULTILINE))
    named = {name for each in expressions() for name in re.findall(r"craftcache_\w+", each)}
    assert len(named) > 25
    for name in named:
        family = name.removesuffix("_bucket")
        assert family in types, name
        assert (types[family] == "histogram") == name.endswith("_bucket"), name


def test_a_scrape_has_every_metric_of_the_table_and_no_other(scrape: str) -> None:
    types = dict(re.findall(r"^# TYPE (craftcache_\w+) (\w+)$", scrape, re.MULTILINE))
    assert types == {metric.full_name: metric.kind for metric in METRICS.values()}


def test_every_label_named_in_them_is_one_of_its_metric() -> None:
    labels = {metric.full_name: {*metric.labels, "instance"} for metric in METRICS.values()}
    for expression in expressions():
        for name, matchers in re.findall(r"(craftcache_\w+?)(?:_bucket)?\{(.*?)\}", expression):
            assert set(re.findall(r"(\w+)[!=]=?~?\"", matchers)) <= labels[name], expression


@needs("promtool")
def test_prometheus_takes_the_rules_and_finds_nothing_to_say_of_the_scrape(scrape: str) -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    linted = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape, capture_output=True, text=True, check=False
    )
    complaints = [line for line in linted.stderr.splitlines() if line.startswith("craftcache_")]
    assert complaints == []


def case(series: str, values: str, at: str, alert: str, *fires: dict[str, str]) -> dict[str, Any]:
    """A test of ``promtool test rules``: the labels with which an alert fires at a time."""
    expected = [
        {"exp_labels": {"severity": severity, "instance": "node", **rest}}
        for severity, rest in ((each.pop("severity"), each) for each in fires)
    ]
    return {
        "interval": "1m",
        "input_series": [{"series": series, "values": values}],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}],
    }


@needs("promtool")
def test_the_rules_fire_when_something_is_wrong_and_else_do_not(tmp_path: Path) -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]:
        del rule["annotations"]  # else each test would have to repeat them
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [group]}))
    failing, wrong = "craftcache_failing_warms", "craftcache_quarantined_total"
    silent = 'craftcache_worker_fallbacks_total{instance="node",reason="silent"}'
    absent = silent.replace("silent", "absent")
    node = '{instance="node"}'
    warning = {"severity": "warning"}
    cases = [
        case(failing + node, "1x70", "59m", "CraftcacheWarmsFail"),
        case(failing + node, "1x70", "61m", "CraftcacheWarmsFail", dict(warning)),
        case(wrong + node, "0x70", "30m", "CraftcacheQuarantine"),
        case(wrong + node, "0 0 1x70", "30m", "CraftcacheQuarantine", {"severity": "critical"}),
        case(
            silent, "0 0 3x70", "10m", "CraftcacheWorkersFallBack", warning | {"reason": "silent"}
        ),
        case(absent, "0 0 3x70", "10m", "CraftcacheWorkersFallBack"),
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": cases}))
    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
