"""Where the cache and the sockets are: who has the last word, and that bad settings are named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from craftcache.config import (
    SYSTEM_CACHE_DIR,
    SYSTEM_SOCKET_DIR,
    ConfigError,
    choose_cache_dir,
    choose_insecure_hosts,
    choose_socket_dir,
    config_path,
    daemon_uid,
    default_hub_cache,
    read_config,
)

CACHE_VARIABLES = ("CRAFTCACHE_CACHE_DIR", "AUDIOCRAFT_CACHE_DIR")


@pytest.fixture
def config_file(isolated_environment: Path) -> Path:
    path = isolated_environment / ".config" / "craftcache" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text('cache_dir = "/from/file"\nsocket_dir = "/run/from/file"\n')
    return path


def test_the_cache_directory_is_what_the_highest_of_them_says(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", "/from/systemd:/second")
    chosen = []
    for variable in CACHE_VARIABLES:
        monkeypatch.setenv(variable, f"/from/{variable}")
    chosen.append(choose_cache_dir("/from/argument"))
    for variable in CACHE_VARIABLES:
        chosen.append(choose_cache_dir())
        monkeypatch.delenv(variable)
    chosen.append(choose_cache_dir())
    config_file.unlink()
    chosen.append(choose_cache_dir())
    assert chosen == [
        Path("/from/argument"),
        Path("/from/CRAFTCACHE_CACHE_DIR"),
        Path("/from/AUDIOCRAFT_CACHE_DIR"),
        Path("/from/file"),
        Path("/from/systemd"),
    ]


def test_without_any_setting_the_cache_is_the_systems_or_the_librarys() -> None:
    expected = SYSTEM_CACHE_DIR if SYSTEM_CACHE_DIR.is_dir() else default_hub_cache()
    assert choose_cache_dir() == expected


def test_paths_are_absolute_and_without_tilde(
    isolated_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_cache_dir("~/cache") == isolated_environment / "cache"
    assert choose_cache_dir("a/../cache") == tmp_path / "cache"
    assert choose_socket_dir("run") == tmp_path / "run"


def test_the_socket_directory_is_what_the_highest_of_them_says(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "craftcache").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("CRAFTCACHE_SOCKET_DIR", "/run/from/environment")
    assert choose_socket_dir("/run/from/argument") == Path("/run/from/argument")
    assert choose_socket_dir() == Path("/run/from/environment")
    monkeypatch.delenv("CRAFTCACHE_SOCKET_DIR")
    assert choose_socket_dir() == Path("/run/from/file")
    config_file.unlink()
    system = SYSTEM_SOCKET_DIR if SYSTEM_SOCKET_DIR.is_dir() else None
    assert choose_socket_dir() == (system or tmp_path / "craftcache")
    (tmp_path / "craftcache").rmdir()
    assert choose_socket_dir() == system


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HF_HOME": "/hf"},
        {"HF_HOME": "~/hf"},
        {"HF_HOME": "$HOME/hf"},
        {"XDG_CACHE_HOME": "/xdg"},
        {"HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
        {"HF_HUB_CACHE": "~/new", "HUGGINGFACE_HUB_CACHE": "/old"},
    ],
    ids=str,
)
def test_the_librarys_own_cache_is_where_the_library_finds_it(environment: dict[str, str]) -> None:
    base = {name: value for name, value in os.environ.items() if name != "HF_HOME"}
    program = (
        "from craftcache.config import default_hub_cache\n"
        "from huggingface_hub.constants import HF_HUB_CACHE\n"
        "print(default_hub_cache(), HF_HUB_CACHE, sep='\\n')\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env=base | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = printed.stdout.splitlines()
    assert ours == theirs


def test_the_users_own_file_is_read(config_file: Path) -> None:
    assert config_path() == config_file
    assert read_config(config_path())["cache_dir"] == "/from/file"
    assert read_config(None) == {}


@pytest.mark.parametrize("content", [b"cache_dir = ", b"\xff", b"cache_dir = 5\nsocket_dir = 5"])
def test_a_broken_file_is_an_error_that_names_it(config_file: Path, content: bytes) -> None:
    config_file.write_bytes(content)
    for choose in (choose_cache_dir, choose_socket_dir):
        with pytest.raises(ConfigError, match=str(config_file)):
            choose()


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_config(tmp_path)


def test_insecure_hosts_come_from_the_environment_or_the_file(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRAFTCACHE_INSECURE_HOSTS", raising=False)
    assert choose_insecure_hosts() == frozenset()
    config_file.write_text('insecure_hosts = ["a", "b"]')
    assert choose_insecure_hosts() == {"a", "b"}
    monkeypatch.setenv("CRAFTCACHE_INSECURE_HOSTS", "c, d,")
    assert choose_insecure_hosts() == {"c", "d"}


def test_insecure_hosts_of_another_type_are_an_error(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRAFTCACHE_INSECURE_HOSTS", raising=False)
    config_file.write_text('insecure_hosts = "host"')
    with pytest.raises(ConfigError, match="insecure_hosts"):
        choose_insecure_hosts()


def test_the_daemons_user_is_the_configured_one(config_file: Path) -> None:
    config_file.write_text('user = "root"')
    assert daemon_uid() == 0
    config_file.write_text('user = "nobody-of-that-name"')
    assert daemon_uid() is None
