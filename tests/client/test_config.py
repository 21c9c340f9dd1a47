"""Where the cache and the sockets are: who has the last word, and that bad settings are named."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from craftcache import Client
from craftcache.cache.directory import CacheDir
from craftcache.config import (
    SYSTEM_CACHE_DIR,
    SYSTEM_CONFIG,
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
from craftcached.settings_reading import load_settings
from tests.support.clients import as_root
from tests.support.daemons import EXPORT

NOBODY = 65534

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


BROKEN = {
    "not TOML": b"cache_dir = ",
    "no text": b"\xff",
    "wrong types": b"cache_dir = 5\nsocket_dir = 5\nuser = []\ninsecure_hosts = 'host'",
}


@pytest.fixture(params=BROKEN)
def broken_file(
    request: pytest.FixtureRequest, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.delenv("CRAFTCACHE_INSECURE_HOSTS", raising=False)
    config_file.write_bytes(BROKEN[request.param])
    return config_file


def test_a_broken_file_stops_no_worker(
    broken_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_file = SYSTEM_CACHE_DIR if SYSTEM_CACHE_DIR.is_dir() else default_hub_cache()
    for _ in range(3):
        assert choose_cache_dir() == without_file
        assert choose_socket_dir() == (SYSTEM_SOCKET_DIR if SYSTEM_SOCKET_DIR.is_dir() else None)
        assert choose_insecure_hosts() == frozenset()
        daemon_uid()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said)) >= 1
    assert all(str(broken_file) in line and "going on with" in line for line in said)
    monkeypatch.setenv("CRAFTCACHE_CACHE_DIR", "/from/environment")
    assert choose_cache_dir() == Path("/from/environment")


def test_a_client_loads_though_its_file_is_broken(broken_file: Path) -> None:
    export = Client().load(EXPORT)
    assert export.served_by == "local"
    assert export.lm["best_state"]


def test_the_daemon_refuses_a_broken_file(broken_file: Path) -> None:
    with pytest.raises(ConfigError, match=str(broken_file)):
        load_settings({}, environment={})


@as_root
def test_a_file_that_one_may_not_read_stops_no_worker(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for directory in (config_file.parent, *config_file.parents):
        if directory.stat().st_uid == 0 and directory.is_relative_to(tempfile.gettempdir()):
            directory.chmod(0o755)
    config_file.chmod(0o600)
    os.seteuid(NOBODY)
    try:
        assert choose_cache_dir() != Path("/from/file")
    finally:
        os.seteuid(0)
    assert "cannot read" in caplog.text
    assert "Permission denied" in caplog.text


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


def test_the_daemons_user_is_the_configured_one(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file.write_text('user = "root"')
    assert daemon_uid() == 0
    config_file.write_text('user = "nobody-of-that-name"')
    assert daemon_uid() is None
    config_file.write_text('user = "4711"')
    assert daemon_uid() == 4711
    config_file.write_text("user = 4712")
    assert daemon_uid() == 4712
    monkeypatch.setenv("CRAFTCACHE_USER", "4713")
    assert daemon_uid() == 4713


def test_files_of_a_uid_without_a_name_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CacheDir(tmp_path)
    status = list(tmp_path.stat())
    status[stat.ST_UID] = 4711
    assert not cache.is_ours(os.stat_result(status))
    monkeypatch.setenv("CRAFTCACHE_USER", "4711")
    assert CacheDir(tmp_path).is_ours(os.stat_result(status))


@pytest.mark.parametrize("user", [4711, "4711", "craftcache"])
def test_the_daemon_takes_a_uid_for_its_user(config_file: Path, user: object) -> None:
    config_file.write_text(f"user = {json.dumps(user)}")
    settings = load_settings({}, environment={"STATE_DIRECTORY": "/state"})
    assert settings.user == str(user)


SERVICE_LINKS = (
    "CRAFTCACHE_SERVICE_HOST=10.0.0.1",
    "CRAFTCACHE_SERVICE_PORT=80",
    "CRAFTCACHE_SERVICE_PORT_HTTP=80",
    "CRAFTCACHE_PORT=tcp://10.0.0.1:80",
    "CRAFTCACHE_PORT_80_TCP=tcp://10.0.0.1:80",
    "CRAFTCACHE_PORT_80_TCP_PROTO=tcp",
    "CRAFTCACHE_PORT_80_TCP_PORT=80",
    "CRAFTCACHE_PORT_80_TCP_ADDR=10.0.0.1",
    "CRAFTCACHE_METRICS_SERVICE_HOST=10.0.0.1",
    "CRAFTCACHE_METRICS_SERVICE_PORT_HTTP_METRICS=9100",
    "CRAFTCACHE_METRICS_PORT_9100_UDP_ADDR=10.0.0.1",
)


def test_what_kubernetes_sets_for_services_is_no_setting(config_file: Path) -> None:
    links = dict(line.split("=", 1) for line in SERVICE_LINKS)
    without = load_settings({}, environment={"STATE_DIRECTORY": "/state"})
    assert load_settings({}, environment={"STATE_DIRECTORY": "/state"} | links) == without


@pytest.mark.parametrize(
    "variable", ["CRAFTCACHE_PORTS", "CRAFTCACHE_SERVICE", "CRAFTCACHE_MY_PORT_X"]
)
def test_other_unknown_variables_are_errors(config_file: Path, variable: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load_settings({}, environment={"STATE_DIRECTORY": "/state", variable: "1"})


HOMELESS = """
import os, sys
del os.environ["HOME"]
os.environ.pop("HF_HOME", None)
from craftcache import Client
from craftcache.config import NO_HOME, choose_cache_dir, config_path, default_hub_cache
from craftcached.settings_reading import load_settings
print(default_hub_cache().is_relative_to(NO_HOME), config_path())
print(Client(socket_dir="/nowhere").load(sys.argv[1]).served_by)
try:
    load_settings({}, environment={})
except Exception as error:
    print(error)
print(os.listdir("."))
"""


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="takes setpriv of util-linux")
def test_a_user_without_home_or_name_gets_no_directory_of_that_name(tmp_path: Path) -> None:
    """Without either, ``~`` stays what it is, and would be made where the process happens to be."""
    (tmp_path / "~/.config/craftcache").mkdir(parents=True)
    (tmp_path / "~/.config/craftcache/config.toml").write_text("not read")
    # What may be read stays so, for the interpreter may be in a home directory itself.
    capability = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    as_nobody = ("setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", *capability)
    finished = subprocess.run(
        [*as_nobody, sys.executable, "-c", HOMELESS, EXPORT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = finished.stdout.splitlines()
    assert lines[1:2] == ["local"], finished.stderr
    assert lines[0] == f"True {SYSTEM_CONFIG if SYSTEM_CONFIG.is_file() else None}"
    assert "there is no cache_dir: uid 4242 has no home directory" in lines[2]
    assert lines[3] == "['~']"
