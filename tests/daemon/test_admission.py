"""Room before bytes, in a daemon: refused before the first byte, or made, and kept for jobs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import PolicyDenied, StorageFull
from tests.support.api import Api
from tests.support.command import Node
from tests.support.daemons import DaemonProcess
from tests.support.dependencies import (
    OTHER_CODEC,
    PAIR,
    T5_FILES,
    export,
    host_t5,
    lm,
    seen_before,
    t5,
)
from tests.support.hub import Data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hub import TestHub

KB = 1000
LIMIT = 12 * KB
FILES = ("weights.txt",)


def model(hub: TestHub, name: str, size: int) -> str:
    """A repository with one file of that size, which needs no inspection."""
    hub.repo(f"org/{name}").commit({FILES[0]: Data(name.encode()[:1] * size)}, lfs=FILES)
    return f"org/{name}"


@pytest.fixture
def limited(base: Path, threaded_hub: TestHub) -> Iterator[DaemonProcess]:
    """A daemon with a limit of twelve thousand bytes and a hold of an hour at most."""
    with DaemonProcess(
        base,
        *("--max-bytes", str(LIMIT), "--max-hold", "3600"),
        HF_ENDPOINT=threaded_hub.endpoint,
    ) as running:
        yield running


def sources(api: Api) -> set[str]:
    return {each["source"] for each in api.get("/models")["models"]}


def test_the_one_that_is_too_large_is_refused_and_the_five_stay(
    limited: DaemonProcess, threaded_hub: TestHub
) -> None:
    five = [model(threaded_hub, name, 2 * KB) for name in ("a", "b", "c", "d", "e")]
    large = model(threaded_hub, "large", 14 * KB)
    with Api(limited.socket_dir) as api, limited.client() as client:
        assert api.warm(*five, files=FILES).status_code == 200
        before = len(threaded_hub.requests)
        with pytest.raises(StorageFull) as refused:
            client.warm(large, filenames=FILES)
        assert refused.value.missing_bytes == 2 * KB
        assert "14.0 kB more" in refused.value.message
        assert "max_bytes, which is 12.0 kB" in refused.value.message
        fetched = [each for each in threaded_hub.requests[before:] if each.method == "GET"]
        assert not [each for each in fetched if "/resolve/" in each.path or each.origin == "cdn"]
        assert sources(api) == set(five)
        problem = api.warm(large, files=FILES)
        assert problem.status_code == 507
        assert problem.json()["missing_bytes"] == 2 * KB
        # One more of the same size fits; the next takes the place of the longest unused.
        another, one_more = (model(threaded_hub, name, 2 * KB) for name in ("f", "g"))
        assert api.warm(another, files=FILES).status_code == 200
        assert sources(api) == {*five, another}
        assert api.warm(one_more, files=FILES).status_code == 200
        assert sources(api) == {*five[1:], another, one_more} or len(sources(api)) == 6
        room = api.get("/room")
        assert room["used"] + room["claimed"] <= LIMIT
        assert room["max_bytes"] == LIMIT


def test_what_a_user_holds_is_there_when_the_job_starts(
    limited: DaemonProcess, threaded_hub: TestHub
) -> None:
    held, pinned = (model(threaded_hub, name, 5 * KB) for name in ("held", "pinned"))
    other = model(threaded_hub, "other", 5 * KB)
    node = Node(threaded_hub, limited)
    with Api(limited.socket_dir) as api, limited.client() as client:
        done = node.run("warm", "--hold", "30m", "--file", FILES[0], held)
        assert done.code == 0, done.err
        assert f"{held}: held until 2" in done.out
        assert client.warm(pinned, filenames=FILES)[0].held_until is None
        assert node.run("pin", "--for", "1d", pinned, "--json").json["expires_at"] > 1e9
        with pytest.raises(StorageFull) as refused:
            client.warm(other, filenames=FILES)
        assert refused.value.retryable
        assert sources(api) == {held, pinned}
        shown = {each.source: each for each in client.models()}
        assert shown[held].held_until
        assert shown[pinned].pinned_until
        assert " held" in node.run("ls").out
        assert "until 2" in node.run("show", held).out
        with pytest.raises(PolicyDenied, match="at most 3600 s"):
            client.warm(other, filenames=FILES, hold=3601.0)
        refusal = api.request(
            "POST", "/warm", json={"sources": [other], "hold": 7200, "wait": False}
        )
        assert refusal.status_code == 403
        limited.kill()
        limited.start()
    with Api(limited.socket_dir) as api, limited.client() as client:
        assert api.get(f"/models/{held}")["held_until"]
        assert api.get(f"/models/{pinned}")["pinned_until"]
        assert api.warm(other, files=FILES).status_code == 507
        assert sources(api) == {held, pinned}
        # An administrator's own word is stronger than a hold, not than a pin.
        assert api.delete(held).status_code == 200
        assert api.delete(pinned).status_code == 403
        assert api.warm(other, files=FILES).status_code == 200
        assert api.get("/users")["users"][0]["held"] == 0


def test_a_revision_that_was_replaced_counts_and_goes_first(
    limited: DaemonProcess, threaded_hub: TestHub
) -> None:
    changing = "org/changing"
    repo = threaded_hub.repo(changing)
    repo.commit({FILES[0]: Data(b"1" * 4 * KB)}, lfs=FILES)
    old = model(threaded_hub, "old", 2 * KB)
    new = model(threaded_hub, "new", 4 * KB)
    with Api(limited.socket_dir) as api:
        assert api.warm(old, files=FILES).status_code == 200
        assert api.warm(changing, files=FILES).status_code == 200
        first = api.get(f"/models/{changing}")["files"][0]["path"]
        repo.commit({FILES[0]: Data(b"2" * 4 * KB)}, lfs=FILES)
        assert api.warm(changing, files=FILES).status_code == 200
        assert api.get("/room")["superseded"] == 4 * KB
        assert (limited.cache_dir / first).exists()
        assert api.warm(new, files=FILES).status_code == 200
        assert sources(api) == {old, changing, new}
        assert not (limited.cache_dir / first).exists()
        assert api.get("/room")["superseded"] == 0


def test_a_free_part_of_the_disk_that_there_is_not_refuses_all(
    base: Path, threaded_hub: TestHub
) -> None:
    wanted = model(threaded_hub, "wanted", KB)
    with (
        DaemonProcess(
            base, CRAFTCACHE_MIN_FREE="100%", HF_ENDPOINT=threaded_hub.endpoint
        ) as running,
        Api(running.socket_dir) as api,
    ):
        problem = api.warm(wanted, files=FILES).json()
        assert problem["code"] == "StorageFull"
        assert "min_free" in problem["detail"]
        room = api.get("/room")
        assert room["min_free"] == room["capacity"]


def test_a_queued_warm_holds_when_it_is_done(limited: DaemonProcess, threaded_hub: TestHub) -> None:
    held = model(threaded_hub, "held", KB)
    body = {"sources": [held], "files": list(FILES), "hold": 600, "wait": False}
    with Api(limited.socket_dir) as api:
        (job,) = api.request("POST", "/warm", json=body).json()["jobs"]
        assert job["hold"] == 600
        while api.get("/warm")["jobs"]:
            pass
        assert api.get(f"/models/{held}")["held_until"]


def test_what_a_model_is_known_to_need_is_admitted_with_it(
    base: Path, threaded_hub: TestHub
) -> None:
    seen_before(base / "cache")
    repo = threaded_hub.repo("org/model")
    repo.commit(PAIR)
    host_t5(threaded_hub)
    pair, needed = (sum(map(len, files.values())) for files in (PAIR, T5_FILES))
    filler = model(threaded_hub, "filler", 3 * KB)
    with DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as running:
        with Api(running.socket_dir) as api:
            assert api.warm("org/model").status_code == 200
            assert api.warm(filler, files=FILES).status_code == 200
            assert api.delete("t5-base").status_code == 200
            first = api.get("/models/org/model")["revision"]
            indexes = api.get("/room")["used"] - pair - 3 * KB
        running.terminate()
    # Room for a new revision of the pair, and for what it needs, but not for both.
    limit = 2 * pair + needed // 2 + indexes + 2 * KB
    assert limit < 2 * pair + needed + indexes
    repo.commit(export(lm(description=t5(), more=t5("other")), OTHER_CODEC))
    with (
        DaemonProcess(
            base, "--max-bytes", str(limit + 3 * KB), HF_ENDPOINT=threaded_hub.endpoint
        ) as running,
        Api(running.socket_dir) as api,
    ):
        assert api.request("PUT", f"/pins/{filler}").status_code == 200
        before = len(threaded_hub.requests)
        problem = api.warm("org/model").json()
        assert problem["code"] == "StorageFull"
        assert problem["source"] == "org/model"
        asked = threaded_hub.requests[before:]
        assert not [each for each in asked if each.origin == "cdn" and each.method == "GET"]
        assert api.get("/models/org/model")["revision"] == first
        assert filler in sources(api)


def test_only_a_warm_fails_by_what_is_denied_and_once(base: Path, threaded_hub: TestHub) -> None:
    seen_before(base / "cache")
    threaded_hub.repo("org/model").commit(PAIR)
    host_t5(threaded_hub)
    denied = ("--deny", "t5-base", "--deny", "org/denied")
    with (
        DaemonProcess(base, *denied, HF_ENDPOINT=threaded_hub.endpoint) as running,
        Api(running.socket_dir) as api,
    ):

        def failed() -> int:
            metrics = api.request("GET", "http://craftcached/metrics").text
            found = re.search(r'craftcache_warms_total{outcome="failed"} (\d+)', metrics)
            return int(found[1]) if found else 0

        plan = api.request("POST", "/plan", json={"sources": ["org/denied"]})
        assert plan.json()["code"] == "PolicyDenied"
        assert (failed(), api.get("/status")["not_warm"]) == (0, [])
        for warms in (1, 2):  # of the second it is known before what it needs
            assert api.warm("org/model").json()["code"] == "PolicyDenied"
            assert failed() == warms
        assert [each["source"] for each in api.get("/status")["not_warm"]] == ["t5-base"]
