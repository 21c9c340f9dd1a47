"""The same file under a new signature is on the node already, where its name promises its hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from tests.support.checkpoints import saved
from tests.support.hub import Data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

MODEL = Data(saved({"model": 1}))
NAME = f"/bucket/name-{MODEL.sha256[:8]}.th"


@pytest.fixture(params=["daemon", "alone"])
def client(request: pytest.FixtureRequest, base: Path, threaded_hub: TestHub) -> Client:
    """Of a daemon, or of a worker without one."""
    if request.param == "daemon":
        daemon: DaemonProcess = request.getfixturevalue("daemon")
        return daemon.client()
    return Client(socket_dir=base / "nothing", cache_dir=base / "cache")


@pytest.fixture
def signed(threaded_hub: TestHub) -> Callable[..., str]:
    """URLs of a file as an object store signs them."""
    threaded_hub.files[NAME] = MODEL

    def sign(number: int, name: str = NAME) -> str:
        return f"{threaded_hub.cdn_url(name)}?X-Signature=s3cret{number}&Expires={number}"

    return sign


def test_it_is_not_fetched_again(
    client: Client, threaded_hub: TestHub, signed: Callable[..., str]
) -> None:
    assert client.load_state_dict(signed(1)) == {"model": 1}
    sent = len(threaded_hub.requests)
    assert client.load_state_dict(signed(2)) == {"model": 1}
    assert client.load_state_dict(signed(2)) == {"model": 1}
    assert len(threaded_hub.requests) == sent


def test_another_path_with_the_same_name_is_another_file(
    client: Client, threaded_hub: TestHub, signed: Callable[..., str]
) -> None:
    client.load_state_dict(signed(1))
    path = NAME.replace("bucket", "other")
    threaded_hub.files[path] = MODEL
    assert client.load_state_dict(signed(2, path)) == {"model": 1}
    assert threaded_hub.count("GET", path) > 0


def test_a_name_without_a_hash_says_nothing(
    client: Client, threaded_hub: TestHub, signed: Callable[..., str]
) -> None:
    threaded_hub.files["/bucket/plain.th"] = Data(saved({"old": 1}))
    assert client.load_state_dict(signed(1, "/bucket/plain.th")) == {"old": 1}
    threaded_hub.files["/bucket/plain.th"] = Data(saved({"new": 1}))
    assert client.load_state_dict(signed(2, "/bucket/plain.th")) == {"new": 1}


def test_what_was_spoilt_since_is_fetched_again(
    client: Client, threaded_hub: TestHub, signed: Callable[..., str]
) -> None:
    client.load_state_dict(signed(1))
    blob = client.cache_dir / ".craftcache" / "blobs" / "sha256" / MODEL.sha256
    blob.chmod(0o644)
    blob.write_bytes(b"spoilt")
    sent = len(threaded_hub.requests)
    assert client.load_state_dict(signed(2)) == {"model": 1}
    assert len(threaded_hub.requests) > sent
