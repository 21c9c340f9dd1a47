"""What only a worker's token may read: it fetches that for itself, and says no token to others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from craftcache import Client
from craftcache.errors import AccessDenied, NotFound
from craftcache.wire import Hello, Problem, encode
from tests.support.checkpoints import assert_same
from tests.support.clients import expected
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.sockets import ScriptedDaemon
from tests.support.sockets.scripted import answer, socket_path

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from tests.support.hub import TestHub


@pytest.fixture
def hidden(threaded_hub: TestHub) -> list[str]:
    """Repositories that only one token may read."""
    threaded_hub.repo("org/gated", gated=True).commit(EXPORT_FILES)
    threaded_hub.repo("org/private", private=True).commit(EXPORT_FILES)
    names = ["org/gated", "org/private"]
    threaded_hub.grant("hf_mine", *names)
    return names


def test_what_the_daemon_may_not_read_a_worker_with_a_token_fetches_for_itself(
    daemon: DaemonProcess,
    threaded_hub: TestHub,
    hub_endpoint: str,
    hidden: list[str],
    isolated_environment: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with daemon.client() as client:
        for source in hidden:
            with pytest.raises((AccessDenied, NotFound)):
                client.load(source)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        for source in hidden:
            for served_by in ("origin", "cache"):
                export = client.load(source)
                assert export.served_by == served_by
                assert "may not read" in (export.fallback_reason or "")
                assert_same(export.lm, expected("state_dict.bin"))
            path = client.resolve(source, "state_dict.bin")
            assert path.is_relative_to(isolated_environment / "huggingface" / "hub")
        with pytest.raises(NotFound):
            client.load("org/missing")
        assert client.warm("org/gated")[0].served_by == "origin"
    assert not list(daemon.cache_dir.glob("models--org--*"))
    assert threaded_hub.tokens_at_cdn == []
    assert "hf_mine" not in daemon.log


@pytest.mark.parametrize("fallback", ["none", "cache", "offline"])
def test_a_worker_that_may_not_fetch_is_told_what_the_daemon_said(
    base: Path, hub_endpoint: str, fallback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    if fallback == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        fallback = "origin"
    denied = Problem(AccessDenied("the repository is gated", source="org/gated"))
    client = Client(socket_dir=base / "run", cache_dir=base / "cache", fallback=fallback)
    with ScriptedDaemon(socket_path(base), answer(denied)), client:
        with pytest.raises(AccessDenied, match="gated"):
            client.load("org/gated")
        client.close()


def test_no_token_crosses_the_socket(
    base: Path, hub_endpoint: str, hidden: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    heard: list[bytes] = []
    denied = Problem(AccessDenied("the repository is gated", source="org/gated"))

    def scene(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        heard.extend(connection.recv(70_000) for _ in range(2))
        for message in (Hello(), denied):
            connection.send(encode(message))
        heard.append(connection.recv(70_000))

    client = Client(socket_dir=base / "run", cache_dir=base / "cache")
    with ScriptedDaemon(socket_path(base), scene), client:
        assert client.load("org/gated").served_by == "origin"
        client.close()
    assert b"org/gated" in b"".join(heard)
    assert b"hf_mine" not in b"".join(heard)
