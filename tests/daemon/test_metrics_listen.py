"""The setting ``metrics_listen``: where it may stand, and what is no address."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import httpx
import pytest

from craftcache.config import ConfigError
from craftcached.address import Address
from craftcached.settings_reading import load_settings
from tests.support.daemons import DaemonProcess

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9464", "127.0.0.1", 9464),
        ("localhost:0", "localhost", 0),
        ("[::1]:9464", "::1", 9464),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
    ],
)
def test_an_address_is_read_and_written_the_same(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


WRONG = ["9464", "127.0.0.1", "host:", ":9464", "host:65536", "::1:9464", "a b:1", "h:1\n"]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_address_is_an_error_that_names_the_setting(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"CRAFTCACHE_METRICS_LISTEN: .* is no address like"):
        load_settings({}, environment={"CRAFTCACHE_METRICS_LISTEN": text})
    file = tmp_path / "config.toml"
    file.write_text("metrics_listen = 9464\n")
    with pytest.raises(ConfigError, match=r"metrics_listen in .* must be a string"):
        load_settings({}, environment={}, config_file=file)


def test_a_port_that_is_taken_is_said_and_a_free_one_is_served(base: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = base / "config.toml"
        file.write_text(f'metrics_listen = "127.0.0.1:{port}"\n')
        daemon = DaemonProcess(base, "--config", str(file))
        daemon.spawn()
        assert daemon.wait() == 1
    with daemon:
        assert f"cannot start: metrics_listen 127.0.0.1:{port} cannot be used" in daemon.log
        assert "craftcache_models 0.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
