"""The settings of room and budgets: what they may be, and that a reload puts them in force."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from craftcache.config import ConfigError
from craftcached.settings_reading import load_settings
from tests.support.api import Api
from tests.support.daemons import DaemonProcess

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub


def test_what_they_are_by_default_and_may_be(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.touch()
    settings = load_settings({}, environment={}, config_file=file)
    assert (settings.min_free, settings.max_hold, settings.evict_others) == ("15%", 86400.0, False)
    assert settings.max_daily_bytes_per_uid == settings.max_requests_per_uid == 0
    file.write_text('min_free = 5000\nevict_others = true\nmax_hold = 60\ntokens_dir = "/t"\n')
    settings = load_settings({}, environment={"CRAFTCACHE_MAX_HOLD": "61"}, config_file=file)
    assert (settings.min_free, settings.max_hold, settings.evict_others) == ("5000", 61.0, True)
    assert str(settings.tokens_dir) == "/t"
    environment = {"CRAFTCACHE_EVICT_OTHERS": "false", "CRAFTCACHE_MIN_FREE": "2%"}
    settings = load_settings({}, environment=environment, config_file=file)
    assert (settings.min_free, settings.evict_others) == ("2%", False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('min_free = "much"', "min_free .*15%"),
        ("min_free = true", "min_free .*string"),
        ("min_free = -1", "min_free"),
        ('evict_others = "yes"', "evict_others .*true or false"),
        ("max_hold = -1", "max_hold .*at least"),
        ("max_queued_per_uid = -1", "max_queued_per_uid .*at least"),
    ],
)
def test_what_they_may_not_be_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_settings({}, environment={}, config_file=file)


def test_a_reload_puts_them_in_force(base: Path, threaded_hub: TestHub) -> None:
    config = base / "craftcache" / "config.toml"
    config.parent.mkdir()
    config.touch()
    environment = {
        "XDG_CONFIG_HOME": str(base),
        "HF_ENDPOINT": threaded_hub.endpoint,
        "CRAFTCACHE_MIN_FREE": "",
    }
    with DaemonProcess(base, **environment) as daemon, Api(daemon.socket_dir) as api:
        assert api.get("/room")["max_bytes"] == 0
        config.write_text(
            'max_bytes = 7\nmin_free = "8"\nevict_others = true\nmax_queued_per_uid = 9\n'
        )
        os.kill(daemon.pid, signal.SIGHUP)
        deadline = time.monotonic() + 60
        while (room := api.get("/room"))["max_bytes"] != 7:
            assert time.monotonic() < deadline, daemon.log
        assert (room["min_free"], room["evicts_others"]) == (8, True)
        assert api.get("/users")["limits"]["queued"] == 9
