"""Tokens for the servers of URLs: from files that nobody else reads, to the very host named."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from craftcached.host_tokens import HostTokens
from tests.support.api import Api
from tests.support.clients import as_root
from tests.support.daemons import DaemonProcess
from tests.support.hub import Data, Redirect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub

TOKEN = "s3cretOfTheServer"
URL = "https://models.example.com/a/state_dict.bin"


def put(directory: Path, name: str, *, mode: int = 0o600, token: str = TOKEN) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"{token}\n")
    path.chmod(mode)
    return path


async def header(tokens: HostTokens, url: str) -> str | None:
    return (await tokens.headers(url, source="s")).get("Authorization")


async def test_a_token_goes_to_the_host_and_port_that_its_file_is_named_by(tmp_path: Path) -> None:
    put(tmp_path, "models.example.com")
    put(tmp_path, "models.example.com:8443", token="other")
    tokens = HostTokens(tmp_path, {})
    assert await header(tokens, URL) == f"Bearer {TOKEN}"
    assert await header(tokens, URL.replace(".com/", ".com:443/")) == f"Bearer {TOKEN}"
    assert await header(tokens, URL.replace(".com/", ".com:8443/")) == "Bearer other"
    for elsewhere in (
        "https://models.example.com:9000/a",
        "https://example.com/a",
        "https://evil.models.example.com/a",
        "https://models.example.com@evil.example/a",
        "https://../a",
        "https://MODELS.example.org/a",
    ):
        assert await header(tokens, elsewhere) is None
    assert await header(HostTokens(None, {}), URL) is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o660])
async def test_a_file_that_others_can_read_or_write_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    put(tmp_path, "models.example.com", mode=mode)
    tokens = HostTokens(tmp_path, {})
    with caplog.at_level(logging.WARNING):
        assert await header(tokens, URL) is None
        assert await header(tokens, URL) is None
    [warning] = caplog.messages
    assert "models.example.com" in warning
    assert "chmod 600" in warning
    assert TOKEN not in warning


async def test_a_link_and_another_users_file_are_not_used(tmp_path: Path) -> None:
    path = put(tmp_path / "elsewhere", "token")
    (tmp_path / "models.example.com").symlink_to(path)
    assert await header(HostTokens(tmp_path, {}), URL) is None


@as_root
async def test_another_users_file_is_not_used(tmp_path: Path) -> None:
    path = put(tmp_path, "models.example.com")
    os.chown(path, 12001, 12001)
    assert await header(HostTokens(tmp_path, {}), URL) is None


async def test_a_credential_of_systemd_is_used_and_a_token_may_be_replaced(tmp_path: Path) -> None:
    put(tmp_path, "token-models.example.com", mode=0o440)
    tokens = HostTokens(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert await header(tokens, URL) == f"Bearer {TOKEN}"
    put(tmp_path, "token-models.example.com", mode=0o640, token="newer")
    assert await header(tokens, URL) == "Bearer newer"


def test_the_daemon_sends_it_there_and_to_no_redirects_target(
    base: Path, threaded_hub: TestHub, isolated_environment: Path
) -> None:
    """Nor is what ``.netrc`` says sent to anybody, with a token or without."""
    netrc = isolated_environment / ".netrc"
    netrc.write_text("default login somebody password n3trcPassword\n")
    netrc.chmod(0o600)
    place = urlsplit(threaded_hub.cdn).netloc
    put(base / "tokens", place)
    threaded_hub.files["/closed/weights.txt"] = Data(b"w" * 1000)
    threaded_hub.files["/moved/weights.txt"] = Data(b"m" * 1000)
    elsewhere = threaded_hub.cdn_url("/moved/weights.txt").replace("127.0.0.1", "localhost")
    threaded_hub.inject(Redirect(elsewhere), path="/away/weights.txt", method=None, times=None)
    with (
        DaemonProcess(
            base,
            *("--tokens-dir", str(base / "tokens")),
            *("--insecure-host", "127.0.0.1", "--insecure-host", "localhost"),
            HF_ENDPOINT=threaded_hub.endpoint,
            NETRC=str(netrc),
        ) as daemon,
        Api(daemon.socket_dir) as api,
    ):
        for path in ("/closed/", "/away/", "/closed/", "/away/"):  # the second time by HEAD, too
            answer = api.warm(threaded_hub.cdn_url(path), files=("weights.txt",))
            assert answer.status_code == 200, answer.text
        seen = {(each.path, each.authorization) for each in threaded_hub.requests}
        assert seen == {
            ("/closed/weights.txt", f"Bearer {TOKEN}"),
            ("/away/weights.txt", f"Bearer {TOKEN}"),
            ("/moved/weights.txt", None),
        }
        daemon.terminate()
        assert TOKEN not in daemon.log
