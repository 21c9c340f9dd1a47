"""A setting that does not exist: the error names those that do, every one of them."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from craftcache.config import ConfigError
from craftcached.settings import Settings
from craftcached.settings_reading import load_settings

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {item.name for item in fields(Settings)} - {"hub_token", "hub_token_place"}


def named(hint: str | None) -> set[str]:
    return set((hint or "").removeprefix("There are ").split(", "))


def test_in_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("no_such_setting = 1\n")
    with pytest.raises(ConfigError) as raised:
        load_settings({}, environment={}, config_file=file)
    assert named(raised.value.hint) == NAMES


def test_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.touch()
    with pytest.raises(ConfigError) as raised:
        load_settings({}, environment={"CRAFTCACHE_NO_SUCH": "1"}, config_file=file)
    assert named(raised.value.hint) == {f"CRAFTCACHE_{name.upper()}" for name in NAMES}
