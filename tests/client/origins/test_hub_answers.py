"""What a Hub may not say of a file: nothing of its answer becomes a path unless it is a digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from craftcache.errors import Unavailable
from craftcache.origins.hub import HubApi
from craftcache.sources import HubSource
from tests.support.hub import WithHeaders

if TYPE_CHECKING:
    from craftcache.origins.hub import HubFile
    from tests.support.hub import Repo, TestHub


def described(hub: TestHub) -> HubFile:
    api = HubApi(hub.endpoint, token=None, timeout=10)
    return api.describe(HubSource("org/model"), "state_dict.bin", "main")


def test_a_commit_is_taken_as_it_is(threaded_hub: TestHub, export_repo: Repo) -> None:
    assert described(threaded_hub).commit == export_repo.resolve("main")


@pytest.mark.parametrize("commit", ["../../../../escaped", "main", "/etc", "A" * 40, "a" * 39])
@pytest.mark.usefixtures("export_repo")
def test_a_commit_that_is_none_is_refused(threaded_hub: TestHub, commit: str) -> None:
    threaded_hub.inject(WithHeaders({"X-Repo-Commit": commit}), method="HEAD", origin="hub")
    with pytest.raises(Unavailable, match="malformed") as raised:
        described(threaded_hub)
    assert not raised.value.retryable


@pytest.mark.parametrize("etag", ["../../escaped", "A" * 64, "a" * 63, ""])
@pytest.mark.usefixtures("export_repo")
def test_a_digest_that_is_none_is_refused(threaded_hub: TestHub, etag: str) -> None:
    threaded_hub.inject(WithHeaders({"X-Linked-Etag": etag}), method="HEAD", origin="hub")
    with pytest.raises(Unavailable, match="malformed"):
        described(threaded_hub)
