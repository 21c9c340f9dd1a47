"""The Hub's address may hold a password, which is told to the Hub alone."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from tests.support.api import Api
from tests.support.command import run
from tests.support.daemons import DaemonProcess

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import Repo, TestHub

SECRET = "hidden-word"


def test_it_is_shown_nowhere(base: Path, threaded_hub: TestHub, export_repo: Repo) -> None:
    credentials = base64.b64encode(f"user:{SECRET}".encode()).decode()
    threaded_hub.grant(f"Basic {credentials}", export_repo.repo_id)
    endpoint = threaded_hub.endpoint.replace("://", f"://user:{SECRET}@")
    with DaemonProcess(base, HF_ENDPOINT=endpoint) as daemon, Api(daemon.socket_dir) as api:
        warmed = api.warm("org/model")
        assert warmed.is_success, warmed.text
        assert api.request("POST", "/warm", json={"sources": ["org/none"]}).status_code == 404
        status = api.request("GET", "/status")
        assert status.json()["hub_endpoint"] == threaded_hub.endpoint
        shown = {
            path: api.request("GET", path).text
            for path in ("/status", "/models/org/model", "/not_warm", "http://craftcached/metrics")
        }
        places = ("--socket-dir", str(daemon.socket_dir), "--cache-dir", str(daemon.cache_dir))
        for arguments in (["doctor"], ["ls", "--json"], ["show", "org/model"]):
            ran = run(*places, *arguments, HF_ENDPOINT=endpoint)
            shown[arguments[0]] = ran.out + ran.err
        assert "_bytes_total" in shown["http://craftcached/metrics"]
        shown["log"] = daemon.log
        manifests = (daemon.cache_dir / ".craftcache" / "manifests").iterdir()
        shown |= {path.name: path.read_text() for path in manifests}
    assert [place for place, text in shown.items() if SECRET in text] == []
    assert f'"{threaded_hub.endpoint}/org/model/resolve/' in shown["/models/org/model"]
