"""A token goes to the Hub and nowhere else, and is shown to nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.api import Api
from tests.support.command import run
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import Redirect, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.hub import TestHub

TOKEN = "hf_s3cretTokenOfTheDaemon"


@pytest.fixture
def daemon(inspected: Path, threaded_hub: TestHub) -> Iterator[DaemonProcess]:
    """A daemon whose token may read org/gated and org/private, but not org/closed."""
    for name, kind in (("gated", "gated"), ("private", "private"), ("closed", "gated")):
        threaded_hub.repo(f"org/{name}", **{kind: True}).commit(EXPORT_FILES)
    threaded_hub.grant(TOKEN, "org/gated", "org/private")
    with DaemonProcess(inspected, HF_ENDPOINT=threaded_hub.endpoint, HF_TOKEN=TOKEN) as running:
        yield running


def everything_shown(api: Api, daemon: DaemonProcess) -> Iterator[str]:
    """All texts in which a token might turn up."""
    for target in ("/status", "/models"):
        yield api.request("GET", target).text
    daemon.terminate()
    yield daemon.log
    for directory in (daemon.cache_dir, daemon.state_dir):
        for path in directory.rglob("*"):
            if path.is_file():
                yield path.read_bytes().decode("latin-1")


@pytest.mark.parametrize("source", ["org/gated", "org/private"])
def test_a_granted_token_opens_what_is_closed_to_others(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, source: str
) -> None:
    assert api.warm(source).status_code == 200
    with daemon.client() as client:
        assert client.load(source).served_by == "daemon"
    assert threaded_hub.tokens_at_cdn == []
    asked = threaded_hub.matching("*/resolve/*", origin="hub")
    assert {request.authorization for request in asked} == {f"Bearer {TOKEN}"}
    assert [text for text in everything_shown(api, daemon) if TOKEN in text] == []


def test_a_token_that_is_not_granted_is_told_so(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    problem = api.warm("org/closed").json()
    assert problem["code"] == "AccessDenied"
    assert "not granted" in problem["detail"]
    assert TOKEN not in str(problem)
    assert [text for text in everything_shown(api, daemon) if TOKEN in text] == []


def test_a_token_that_the_hub_does_not_know_is_told_so(
    inspected: Path, threaded_hub: TestHub
) -> None:
    threaded_hub.repo("org/open").commit(EXPORT_FILES)
    with (
        DaemonProcess(
            inspected, HF_ENDPOINT=threaded_hub.endpoint, HF_TOKEN="hf_outdated"
        ) as daemon,
        Api(daemon.socket_dir) as api,
    ):
        problem = api.warm("org/open").json()
        assert problem["code"] == "AccessDenied"
        assert "hf_outdated" not in str(problem) + daemon.log


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_a_failing_hub_does_not_make_the_daemon_show_it(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, status: int
) -> None:
    threaded_hub.inject(Status(status), path="*", method="HEAD", origin="hub", times=None)
    assert TOKEN not in api.warm("org/gated").text
    assert [text for text in everything_shown(api, daemon) if TOKEN in text] == []


def test_a_hub_that_redirects_elsewhere_does_not_take_it_there(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    for method in ("HEAD", "GET"):
        threaded_hub.inject(
            Redirect(threaded_hub.cdn_url("/trap")),
            path="/org/*",
            method=method,
            origin="hub",
            times=None,
        )
    api.warm("org/gated")
    assert threaded_hub.tokens_at_cdn == []


@pytest.mark.parametrize(
    "given",
    [
        lambda path: {"HF_TOKEN_PATH": str(path)},
        lambda path: {"CREDENTIALS_DIRECTORY": str(path.parent)},
    ],
    ids=["HF_TOKEN_PATH", "systemd"],
)
def test_a_token_may_come_from_a_file(
    inspected: Path,
    threaded_hub: TestHub,
    tmp_path: Path,
    given: Callable[[Path], dict[str, str]],
) -> None:
    threaded_hub.repo("org/gated", gated=True).commit(EXPORT_FILES)
    threaded_hub.grant(TOKEN, "org/gated")
    path = tmp_path / "hf-token"
    path.write_text(f"{TOKEN}\n")
    with (
        DaemonProcess(inspected, HF_ENDPOINT=threaded_hub.endpoint, **given(path)) as daemon,
        Api(daemon.socket_dir) as api,
    ):
        assert api.warm("org/gated").status_code == 200


@pytest.mark.parametrize(
    ("is_systemds", "place"),
    [
        (True, "/etc/credstore/hf-token, which craftcached.service"),
        (False, "the daemon's HF_TOKEN"),
    ],
)
def test_who_lacks_a_token_is_told_where_this_daemon_takes_it_from(
    inspected: Path, threaded_hub: TestHub, tmp_path: Path, is_systemds: bool, place: str
) -> None:
    threaded_hub.repo("org/gated", gated=True).commit(EXPORT_FILES)
    given = {"CREDENTIALS_DIRECTORY": str(tmp_path)} if is_systemds else {}  # with none in it
    with (
        DaemonProcess(inspected, HF_ENDPOINT=threaded_hub.endpoint, **given) as daemon,
        Api(daemon.socket_dir) as api,
    ):
        for source in ("org/gated", "org/none"):
            assert place in api.warm(source).json()["hint"]
        assert place in api.get("/status")["token_place"]
        places = ("--socket-dir", str(daemon.socket_dir), "--cache-dir", str(daemon.cache_dir))
        assert f"public files only; for others put one into {place}" in run(*places, "status").out
        assert f"put a token into {place}" in run(*places, "doctor").out
