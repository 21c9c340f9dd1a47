"""``craftcached --check-config`` and the schema of the configuration file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from craftcache.config import ConfigError
from craftcached.config_schema import config_schema
from craftcached.settings import SETTINGS
from craftcached.settings_reading import load_settings, settings_faults

jsonschema_rs = pytest.importorskip("jsonschema_rs")  # not beside the oldest libraries

SHIPPED = Path(__file__).parents[2] / "systemd"

WRONG = """
allow = 3
max_connections = 0
no_such_setting = true
hub_timeout = "soon"
watches = [{ directory = "relative" }, "/runs/a", { directory = "/b", keep = -1 }]
deny = ["org/*"]
"""


def checked(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "craftcached", "--check-config", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_all_that_is_wrong_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(WRONG)
    monkeypatch.setenv("CRAFTCACHE_MAX_BYTES", "much")
    done = checked("--config", str(file))
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition(" must be ")[0] for line in lines if " must be " in line] == [
        f"allow in {file}",
        f"max_connections in {file}",
        f"hub_timeout in {file}",
        "CRAFTCACHE_MAX_BYTES",
    ]
    said = "\n".join(lines)
    assert "a list of strings, not 3" in said
    assert "a whole number of at least 1, not 0" in said
    assert "a number of at least 0.1, not 'soon'" in said
    assert f"unknown setting no_such_setting in {file}. There are admin_group, " in said
    assert "'relative' is no absolute path" in said
    assert "keep is -1" in said
    assert len(lines) == 6


def test_a_daemon_does_not_start_and_names_them_all_too(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("allow = 3\nno_such_setting = 1\n")
    with pytest.raises(ConfigError, match=r"2 settings are wrong: allow in .*; unknown setting"):
        load_settings({}, environment={}, config_file=file)


def test_a_file_that_is_no_toml_is_named_beside_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("allow = [")
    faults = settings_faults({}, environment={"CRAFTCACHE_MAX_BYTES": "-1"}, config_file=file)
    assert [type(fault) for fault in faults] == [ConfigError, ConfigError]
    assert f"{file} is not TOML" in faults[0].message
    assert "CRAFTCACHE_MAX_BYTES" in faults[1].message


def test_what_is_shipped_is_right() -> None:
    done = checked("--config", str(SHIPPED / "config.toml"))
    assert (done.returncode, done.stderr) == (0, "")
    assert str(SHIPPED / "config.toml") in done.stdout


def test_the_shipped_schema_is_that_of_the_settings() -> None:
    shipped = json.loads((SHIPPED / "config.schema.json").read_text())
    assert shipped == config_schema(), (
        "python -m craftcached.config_schema > systemd/config.schema.json"
    )
    assert set(shipped["properties"]) == set(SETTINGS)


def test_the_shipped_file_is_valid_with_its_defaults_too() -> None:
    schema = jsonschema_rs.validator_for(config_schema())
    text = (SHIPPED / "config.toml").read_text()
    assert schema.is_valid(tomllib.loads(text))
    defaults = tomllib.loads(re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE))
    assert len(defaults) > 5
    schema.validate(defaults)


@pytest.mark.parametrize(
    ("line", "is_right"),
    [
        ('allow = ["org/*"]', True),
        ('allow = "org/*"', False),
        ("allow = [1]", False),
        ("max_bytes = 1", True),
        ("max_bytes = -1", False),
        ("max_bytes = 1.5", False),
        ("max_bytes = true", False),
        ("max_connections = 0", False),
        ("hub_timeout = 1", True),
        ("hub_timeout = 0.0", False),
        ('user = "daemon"', True),
        ("user = 33", True),
        ("user = [33]", False),
        ('serve_dir = "/run/x"', True),
        ("serve_dir = 1", False),
        ("admin_socket_mode = 0o600", True),
        ('watches = ["/runs/a"]', True),
        ('watches = [{ directory = "/runs/a", keep = 3, poll = true }]', True),
        ('watches = [{ directory = "/runs/a", keeps = 3 }]', False),
        ("watches = [3]", False),
        ("no_such_setting = 1", False),
    ],
)
def test_the_schema_and_the_daemon_agree(tmp_path: Path, line: str, *, is_right: bool) -> None:
    file = tmp_path / "config.toml"
    file.write_text(line)
    faults = settings_faults({}, environment={}, config_file=file)
    assert (faults == ()) is is_right
    schema = jsonschema_rs.validator_for(config_schema())
    assert schema.is_valid(tomllib.loads(line)) is is_right
