"""``craftcached --help`` and its options: one for each setting, none forgotten."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from craftcached.settings import SETTINGS, Setting, Settings

CRAFTCACHED = (sys.executable, "-m", "craftcached")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CRAFTCACHED, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(scope="module")
def listed() -> str:
    """The help, without its line breaks."""
    return " ".join(run("--help").stdout.split())


def test_every_field_but_the_token_is_a_setting() -> None:
    assert {item.name for item in fields(Settings)} == {*SETTINGS, "hub_token", "hub_token_place"}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_the_help_says_of_a_setting_all_that_is_known(listed: str, setting: Setting) -> None:
    description = listed.partition(f" {setting.option} ")[2].partition(" --")[0]
    assert setting.meaning in description
    assert f"[{setting.variable}; default: {setting.default}]" in description


def test_the_help_says_what_is_the_default(listed: str) -> None:
    assert "[CRAFTCACHE_WORKER_SOCKET_MODE; default: 0666]" in listed
    assert "[CRAFTCACHE_ALLOW; default: *]" in listed
    assert "[CRAFTCACHE_SERVE_DIR; default: none]" in listed
    assert "[CRAFTCACHE_DRAIN_SECONDS; default: 4.0]" in listed


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-connections", "0"),
        ("--max-bytes", "much"),
        ("--hub-timeout", "0"),
        ("--admin-socket-mode", "rw"),
    ],
)
def test_an_option_that_does_not_fit_is_wrong_usage(option: str, value: str) -> None:
    refused = run(option, value)
    assert refused.returncode == 2
    assert option in refused.stderr
