"""The units as files: how exposed what they start is, by systemd's own reckoning."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from craftcached.settings_reading import load_settings

UNITS = Path(__file__).parents[2] / "systemd"

MOST = 15
"""Tenths of systemd's exposure level."""

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_analyze
@pytest.mark.parametrize("unit", sorted(UNITS.rglob("*.service")), ids=lambda unit: unit.name)
def test_no_unit_is_more_exposed_than_it_must_be(unit: Path) -> None:
    analyzed = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST}", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert analyzed.returncode == 0, analyzed.stdout


@needs_analyze
def test_the_threshold_means_something(tmp_path: Path) -> None:
    unit = tmp_path / "open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST}", str(unit)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_restarting_the_service_leaves_the_socket_alone() -> None:
    settings = (UNITS / "craftcache.socket").read_text().splitlines()
    assert not any(line.startswith(("PartOf=", "BindsTo=")) for line in settings)


def test_every_example_setting_is_one_of_the_daemons() -> None:
    text = (UNITS / "config.toml").read_text()
    shown = "\n".join(line.removeprefix("#") for line in text.splitlines() if line[1:2] != " ")
    example = tomllib.loads(shown)
    assert example
    defaults = load_settings({}, environment={})
    for name, value in example.items():
        default = getattr(defaults, name)
        assert (list(default) if isinstance(default, tuple) else default) == value, name
