"""What a model needs when the model or the Hub changes: refreshed, reported or dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.dependencies import PAIR, REFERRING, WORDS, host_codec, host_t5, listed
from tests.support.hub import Data, Status

if TYPE_CHECKING:
    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

CODEC_ID = "facebook/encodec_32khz"


@pytest.fixture
def url(api: Api, threaded_hub: TestHub) -> str:
    """A model on a plain server that needs t5-base from the Hub; both are warm."""
    host_t5(threaded_hub)
    for name, content in PAIR.items():
        threaded_hub.files[f"/run/{name}"] = Data(content)
    address = threaded_hub.cdn_url("/run/")
    (result,) = api.warm(address).json()["results"]
    assert result["not_refreshed"] == []
    return address


def test_what_is_cached_is_reported_as_not_refreshed_while_the_hub_is_down(
    url: str, api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    down = threaded_hub.inject(Status(503), origin="hub", method=None, times=None)
    (result,) = api.warm(url).json()["results"]
    assert result["not_refreshed"] == ["t5-base"]
    assert listed(api)[url]["needs"][0]["is_cached"]
    assert down.used > 0
    daemon.terminate()
    assert "t5-base is not refreshed: the Hub answers 503" in daemon.log


def test_what_is_not_cached_is_missing_while_the_hub_is_down(
    url: str, api: Api, threaded_hub: TestHub
) -> None:
    assert api.delete("t5-base").status_code == 200
    threaded_hub.inject(Status(503), origin="hub", method=None, times=None)
    problem = api.warm(url).json()
    assert problem["code"] == "Unavailable"
    assert "t5-base is missing" in problem["detail"]


def test_a_need_that_the_hub_has_no_more_is_no_outage(
    url: str, api: Api, threaded_hub: TestHub
) -> None:
    threaded_hub.inject(
        Status(404, {"X-Error-Code": "RepoNotFound"}), origin="hub", method=None, times=None
    )
    assert api.warm(url).json()["code"] == "NotFound"


def current(api: Api) -> set[str]:
    """What is cached, but for revisions that a newer one took the place of."""
    return {source for source, model in listed(api).items() if not model["superseded"]}


@pytest.mark.parametrize("who", ["nobody", "another model", "a user", "a pin"])
def test_what_a_new_revision_no_longer_needs_goes_when_nobody_else_needs_it(
    api: Api, threaded_hub: TestHub, who: str
) -> None:
    host_t5(threaded_hub)
    host_codec(threaded_hub)
    repo = threaded_hub.repo("org/model")
    repo.commit(REFERRING)
    threaded_hub.repo("org/other").commit(REFERRING)
    api.warm("org/model", *(["org/other"] if who == "another model" else []))
    match who:
        case "a user":
            api.warm(CODEC_ID, files=("config.json",))
        case "a pin":
            assert api.request("PUT", f"/pins/{CODEC_ID}").status_code == 200
    assert CODEC_ID in listed(api)
    repo.commit(PAIR)
    assert api.warm("org/model").status_code == 200
    left = current(api) - {"org/other"}
    assert left == {"org/model", "t5-base"} | ({CODEC_ID} if who != "nobody" else set())


def test_it_goes_even_if_what_the_new_revision_needs_cannot_be_had(
    api: Api, threaded_hub: TestHub
) -> None:
    host_t5(threaded_hub)
    repo = threaded_hub.repo("org/model")
    repo.commit(PAIR)
    api.warm("org/model")
    repo.commit({**REFERRING, "state_dict.bin": WORDS["state_dict.bin"]})
    assert api.warm("org/model").json()["code"] == "NotFound"  # there is no such codec
    assert current(api) == {"org/model"}
