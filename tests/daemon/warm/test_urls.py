"""URLs: exports and single checkpoints, what is new under an old address, where they may lead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from craftcache import IntegrityError
from tests.support.checkpoints import saved
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Data, Hosted, OnDisk, Redirect

if TYPE_CHECKING:
    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

LM = EXPORT_FILES["state_dict.bin"]
SIZE = sum(path.stat().st_size for path in EXPORT_FILES.values())
OTHER = saved({"other": 1})


@pytest.fixture
def export_url(threaded_hub: TestHub) -> str:
    """The directory of an export on a plain server."""
    for name, path in EXPORT_FILES.items():
        threaded_hub.files[f"/runs/7/{name}"] = OnDisk(path)
    return threaded_hub.cdn_url("/runs/7/")


@pytest.mark.parametrize("named", ["", *EXPORT_FILES])
def test_an_export_is_named_by_its_directory_or_either_file(
    api: Api, daemon: DaemonProcess, export_url: str, named: str
) -> None:
    (result,) = api.warm(export_url + named).json()["results"]
    assert result["source"] == export_url
    assert {file["filename"] for file in result["files"]} == set(EXPORT_FILES)
    with daemon.client() as client:
        export = client.load(export_url)
    assert export.served_by == "daemon"
    assert export.revision == result["revision"]


def test_a_single_checkpoint(api: Api, daemon: DaemonProcess, threaded_hub: TestHub) -> None:
    threaded_hub.files["/models/any name.th"] = OnDisk(LM)
    url = threaded_hub.cdn_url("/models/any name.th")
    (result,) = api.warm(url).json()["results"]
    (file,) = result["files"]
    assert (file["filename"], file["sha256"]) == ("any name.th", OnDisk(LM).sha256)
    assert (daemon.cache_dir / file["path"]).stat().st_mode & 0o777 == 0o444
    with daemon.client() as client:
        assert client.load_state_dict(url)["best_state"].keys()
        assert client.load(url, parts=("lm",)).files["lm"].sha256 == file["sha256"]


def test_an_unchanged_validator_spares_the_download(
    api: Api, threaded_hub: TestHub, export_url: str
) -> None:
    api.warm(export_url)
    before = threaded_hub.count("GET", "/runs/*")
    (result,) = api.warm(export_url).json()["results"]
    assert (result["bytes_fetched"], result["bytes_reused"]) == (0, SIZE)
    assert threaded_hub.count("GET", "/runs/*") == before


def test_a_server_without_validators_is_asked_for_the_bytes_again(
    api: Api, threaded_hub: TestHub
) -> None:
    threaded_hub.files["/bare.th"] = Hosted(OnDisk(LM), etag=None)
    first, second = (
        api.warm(threaded_hub.cdn_url("/bare.th")).json()["results"][0] for _ in range(2)
    )
    assert second["bytes_fetched"] == LM.stat().st_size
    assert second["revision"] == first["revision"]


def test_a_changed_body_is_a_new_revision_and_never_swapped_under_a_reader(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.files["/model.th"] = OnDisk(LM)
    url = threaded_hub.cdn_url("/model.th")
    with daemon.client() as client:
        (old,) = api.warm(url).json()["results"]
        threaded_hub.files["/model.th"] = Data(OTHER)
        assert "best_state" in client.load_state_dict(url)
        (new,) = api.warm(url).json()["results"]
        assert new["revision"] != old["revision"]
        assert client.load_state_dict(url) == {"other": 1}


def test_a_torch_hub_name_that_changed_is_refused(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    name = f"/name-{OnDisk(LM).sha256[:8]}.th"
    threaded_hub.files[name] = OnDisk(LM)
    url = threaded_hub.cdn_url(name)
    assert api.warm(url).status_code == 200
    threaded_hub.files[name] = Data(OTHER)
    assert api.warm(url).json()["code"] == "IntegrityError"
    with daemon.client() as client:
        assert "best_state" in client.load_state_dict(url)


def test_a_digest_is_checked_against_what_is_cached_too(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    threaded_hub.files["/model.th"] = OnDisk(LM)
    url = threaded_hub.cdn_url("/model.th")
    api.warm(url)
    with daemon.client() as client:
        with pytest.raises(IntegrityError):
            client.load_state_dict(f"{url}#sha256={'0' * 64}")
        assert client.load_state_dict(f"{url}#sha256={OnDisk(LM).sha256}")


def test_a_signed_query_is_sent_and_neither_shown_nor_kept(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub, export_url: str
) -> None:
    url = f"{export_url}state_dict.bin?token=s3cret%2B1"
    (result,) = api.warm(url).json()["results"]
    assert api.warm(f"{threaded_hub.cdn_url('/none.th')}?token=s3cret", wait=False)
    assert result["source"] == f"{export_url}?..."
    sent = threaded_hub.matching("/runs/7/*", method="GET")
    assert {request.query["token"] for request in sent} == {"s3cret+1"}
    with daemon.client() as client:
        assert client.load(url).served_by == "daemon"
        assert "s3cret" not in repr(client.models())
        assert "s3cret" not in repr(client.status())
    assert "s3cret" not in api.request("GET", "/models").text
    daemon.terminate()
    assert "s3cret" not in daemon.log
    assert [
        path
        for path in daemon.cache_dir.rglob("*")
        if path.is_file() and b"s3cret" in path.read_bytes()
    ] == []


def test_a_redirect_to_another_origin_is_followed(
    api: Api, threaded_hub: TestHub, export_url: str
) -> None:
    elsewhere = f"{threaded_hub.endpoint}/there"
    threaded_hub.inject(
        Redirect(f"{export_url}state_dict.bin"), path="/there.th", method=None, times=None
    )
    assert elsewhere not in export_url
    (result,) = api.warm(f"{threaded_hub.endpoint}/there.th").json()["results"]
    assert result["files"][0]["sha256"] == OnDisk(LM).sha256


def test_a_redirect_that_is_asked_about_again_must_be_allowed_too(
    api: Api, threaded_hub: TestHub
) -> None:
    threaded_hub.files["/model.th"] = OnDisk(LM)
    url = threaded_hub.cdn_url("/model.th")
    api.warm(url)
    threaded_hub.inject(Redirect("http://127.0.0.2:1/x"), path="/model.th", method="HEAD")
    problem = api.warm(url).json()
    assert (problem["code"], problem["source"]) == ("PolicyDenied", url), problem


@pytest.mark.parametrize("location", ["http://[", "http://127.0.0.1:x/", "ftp://127.0.0.1/x"])
def test_a_redirect_to_no_url_is_the_servers_fault(
    api: Api, threaded_hub: TestHub, location: str
) -> None:
    threaded_hub.files["/model.th"] = OnDisk(LM)
    url = threaded_hub.cdn_url("/model.th")
    api.warm(url)
    threaded_hub.inject(Redirect(location), path="/model.th", method="HEAD")
    problem = api.warm(url).json()
    assert (problem["code"], problem["source"], problem["retryable"]) == ("Unavailable", url, False)


def test_names_that_carry_their_hash_are_the_same_for_any_server(
    api: Api, threaded_hub: TestHub
) -> None:
    for folder in ("a", "b"):
        threaded_hub.files[f"/{folder}/model.th"] = OnDisk(LM)
    first, second = (threaded_hub.cdn_url(f"/{folder}/model.th") for folder in "ab")
    api.warm(first)
    (result,) = api.warm(f"{second}#sha256={OnDisk(LM).sha256}").json()["results"]
    assert result["bytes_fetched"] == 0
    assert threaded_hub.count("GET", "/b/model.th") == 0
