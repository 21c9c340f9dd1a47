"""Mirrors are asked before the origin; a bad one costs time only, whatever is bad about it.

The mirror is a second test hub, whose CDN serves what a mirror would; its faults are the hub's.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.digests import Digest, Promise
from craftcache.errors import IntegrityError, NotFound, Unavailable
from craftcached.fetch import RemoteFile
from craftcached.mirror_rule import MirrorRule
from tests.client.network.servers import TlsFront, make_certificate
from tests.support.fetching import cdn_file, hub_file, sha256_of
from tests.support.hub import (
    CloseEarly,
    Data,
    Drip,
    FlipBit,
    Gate,
    Generated,
    NoRanges,
    Redirect,
    ResetConnection,
    Stall,
    Status,
    TestHub,
    Truncate,
    Valve,
    WrongContentRange,
    WrongStart,
)

from .mirrored import CONTENT, COPY, SLICE, Fleet, fleet_with, rule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.hub import Fault

HTML = b"<html>Please log in</html>" * 100


@pytest.fixture
async def fleet(tmp_path: Path, hub: TestHub, mirror: TestHub) -> AsyncIterator[Fleet]:
    async with fleet_with(tmp_path, rule(mirror, patience=0.3), hub=hub, mirror=mirror) as fleet:
        yield fleet


async def test_bytes_come_from_the_mirror_in_its_slices(fleet: Fleet) -> None:
    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file)
    fetched = await fleet.fetch(file)
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert (fleet.origin_copies, fleet.mirror_copies) == (0.0, 1.0)
    asked = fleet.mirror.matching(origin="cdn")
    for request in asked:
        first, _, last = (request.range or "").removeprefix("bytes=").partition("-")
        assert int(first) % SLICE == 0
        assert int(last) // SLICE == int(first) // SLICE
    assert {request.headers["X-Craftcache-Content"] for request in asked} == {f"{CONTENT.sha256}:1"}
    [statistics] = fleet.mirrors.statistics()
    assert (statistics.bytes, statistics.failures, statistics.is_open) == (COPY, {}, False)


async def test_who_asks_is_told_to_the_hub_only(
    tmp_path: Path, hub: TestHub, mirror: TestHub
) -> None:
    content = Data(CONTENT.data)
    hub.repo("org/gated", gated=True).commit({"state_dict.bin": content})
    hub.grant("hf_secret", "org/gated")
    file = RemoteFile(
        "org/gated",
        hub.resolve_url("org/gated", "state_dict.bin"),
        Promise(COPY, Digest("sha256", CONTENT.sha256)),
        "k",
        {"Authorization": "Bearer hf_secret"},
    )
    async with fleet_with(tmp_path, rule(mirror), hub=hub, mirror=mirror) as fleet:
        fleet.serve(file)
        await fleet.fetch(file)
    assert fleet.mirror_copies == 1.0
    assert mirror.tokens_at_cdn == []
    assert {request.query["sig"] for request in mirror.requests} != set()


BAD: dict[str, tuple[Fault, ...]] = {
    "refuses access": (Status(403),),
    "wants a token": (Status(401),),
    "has no such file": (Status(404),),
    "fails": (Status(500),),
    "is busy": (Status(429, {"Retry-After": "3600"}),),
    "redirects": (Redirect("http://127.0.0.1:1/elsewhere"),),
    "answers with a page": (Status(200, {"Content-Type": "text/html"}, HTML),),
    "compresses": (Status(206, {"Content-Encoding": "gzip"}, HTML),),
    "sends another range": (WrongContentRange(),),
    "resets": (ResetConnection(),),
    "resets midway": (ResetConnection(after=SLICE // 2),),
    "closes midway": (CloseEarly(after=1000),),
    "is truncated": (Truncate(COPY - 1),),
}


@pytest.mark.parametrize("faults", BAD.values(), ids=BAD)
async def test_a_mirror_that_serves_nothing_costs_no_failure(
    fleet: Fleet, faults: tuple[Fault, ...]
) -> None:
    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file)
    fleet.mirror.inject(*faults, origin="cdn", times=None)
    fetched = await fleet.fetch(file)
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert fleet.origin_copies <= 1.3
    [statistics] = fleet.mirrors.statistics()
    assert statistics.failures.total() >= 1


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_mirror_may_have_certificates_of_its_own(
    tmp_path: Path, hub: TestHub, mirror: TestHub, is_known: bool
) -> None:
    certificate = make_certificate(tmp_path / "its")
    other = make_certificate(tmp_path / "other")
    with TlsFront(certificate.context, int(mirror.cdn.rpartition(":")[2])) as front:
        ca = certificate.path if is_known else other.path
        rules = rule(mirror, url=f"https://127.0.0.1:{front.port}", insecure=False, ca=str(ca))
        async with fleet_with(tmp_path, rules, hub=hub, mirror=mirror) as fleet:
            file = hub_file(hub, CONTENT)
            fleet.serve(file)
            fetched = await fleet.fetch(file)
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert mirror.bytes_sent(origin="cdn") == (COPY if is_known else 0)


async def test_certificates_that_cannot_be_read_are_said_at_the_start(
    tmp_path: Path, hub: TestHub, mirror: TestHub
) -> None:
    rules = rule(mirror, ca=str(tmp_path / "absent.pem"))
    with pytest.raises(Unavailable, match=r"absent\.pem of mirror 127\.0\.0\.1"):
        async with fleet_with(tmp_path, rules, hub=hub, mirror=mirror):
            pass


async def test_one_that_has_no_ranges_sends_the_file_in_one_answer(fleet: Fleet) -> None:
    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file)
    fleet.mirror.inject(NoRanges(), origin="cdn", times=None)
    await fleet.fetch(file)
    assert (fleet.origin_copies, fleet.mirror_copies) == (0.0, 1.0)


async def test_one_that_is_not_there_is_left_alone(
    tmp_path: Path, hub: TestHub, mirror: TestHub
) -> None:
    absent = MirrorRule.parse("hub=http://127.0.0.1:1")
    async with fleet_with(tmp_path, absent, hub=hub, mirror=mirror) as fleet:
        fetched = await fleet.fetch(hub_file(hub, CONTENT))
        assert sha256_of(fetched.path) == CONTENT.sha256
        assert fleet.origin_copies == 1.0
        assert fleet.told("mirror_failed")[0]["mirror"] == "127.0.0.1:1"


@pytest.mark.parametrize("after", [None, 1000])
async def test_one_that_stalls_is_passed_by(fleet: Fleet, after: int | None) -> None:
    gate = Gate()
    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file)
    fleet.mirror.inject(Stall(gate, after), origin="cdn", times=None)
    fetched = await fleet.fetch(file)
    gate.open()
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert fleet.origin_copies <= 1.0
    assert fleet.told("mirror_failed")


async def test_a_slow_one_is_used_while_it_progresses(fleet: Fleet) -> None:
    """It is asked for what it has; how much slower it is than the origin, nobody has tried."""
    valve = Valve(SLICE)
    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file)
    fleet.mirror.inject(Drip(valve), origin="cdn", times=None)
    fetching = asyncio.create_task(fleet.fetch(file))
    await fleet.mirror.wait_for_request(lambda request: request.bytes_sent == SLICE)
    valve.open()
    await fetching
    assert fleet.origin_copies == 0.0


@pytest.mark.parametrize("spoiled", [FlipBit(5 * SLICE + 9), WrongStart(-1)], ids=["flip", "shift"])
async def test_wrong_bytes_are_left_behind_by_a_integrity_retry(
    fleet: Fleet, spoiled: Fault
) -> None:
    def is_first(request: Any) -> bool:
        return bool(request.headers["X-Craftcache-Content"].endswith(":1"))

    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file)
    fleet.mirror.inject(spoiled, origin="cdn", when=is_first, times=None)
    fetched = await fleet.fetch(file)
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert (fleet.origin_copies, fleet.mirror_copies) == (0.0, 2.0)
    [wrong] = fleet.told("mirror_wrong")
    if isinstance(spoiled, FlipBit):
        assert wrong["ranges"] == [[5 * SLICE, 6 * SLICE]]
    assert wrong["mirror"] == fleet.mirror.cdn.removeprefix("http://")
    [statistics] = fleet.mirrors.statistics()
    assert statistics.wrong_ranges == len(wrong["ranges"])
    # It is told to fetch them anew, if they are still what they were.
    await fleet.mirror.wait_for_request(
        lambda request: request.headers.get("Cache-Control") == "no-cache" and request.done
    )


async def test_a_mirror_that_lies_again_is_not_asked_a_third_time(fleet: Fleet) -> None:
    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file, Generated(COPY, seed=8))  # of the right size, and an older revision, say
    fetched = await fleet.fetch(file)
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert (fleet.origin_copies, fleet.mirror_copies) == (1.0, 2.0)
    [statistics] = fleet.mirrors.statistics()
    assert statistics.is_open
    await fleet.fetch(hub_file(fleet.hub, CONTENT, "other.bin", key="o"))
    assert fleet.mirror_copies == 2.0


async def test_what_the_publisher_got_wrong_is_said_after_all_attempts(fleet: Fleet) -> None:
    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file)
    promise = Promise(COPY, Digest("sha256", "0" * 64))
    with pytest.raises(IntegrityError, match="three times, the last time past caches"):
        await fleet.fetch(replace(file, promise=promise))
    assert (fleet.origin_copies, fleet.mirror_copies) == (1.0, 2.0)


async def test_a_mirrors_word_that_there_is_no_such_file_counts_for_nothing(fleet: Fleet) -> None:
    """Only the origin's does."""
    file = hub_file(fleet.hub, CONTENT)
    gone = replace(file, url=file.url.replace("state_dict", "absent"), key="gone")
    with pytest.raises(NotFound):
        await fleet.fetch(gone)
    fleet.hub.inject(Status(500), method="GET", times=None)
    with pytest.raises(Unavailable):
        await fleet.fetch(replace(file, key="k2"))


async def test_a_mirror_that_comes_back_is_used_again(fleet: Fleet) -> None:
    """Half-open: one request tries it, and closes the circuit."""
    [its] = fleet.mirrors
    its.circuit.trip(0.0)
    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file)
    await fleet.fetch(file)
    assert fleet.mirror_copies == 1.0
    assert fleet.told("mirror_recovered")


@pytest.mark.parametrize("comes_back", [True, False])
async def test_one_that_served_and_is_lost_is_waited_for(
    tmp_path: Path, hub: TestHub, mirror: TestHub, comes_back: bool
) -> None:
    """Started again, it brings all of it; gone for ever, nothing."""
    rules = rule(mirror, grace=600.0 if comes_back else 0.1)
    async with fleet_with(tmp_path, rules, hub=hub, mirror=mirror) as fleet:
        first = hub_file(hub, CONTENT)
        fleet.serve(first)
        await fleet.fetch(first)
        lost = mirror.inject(ResetConnection(), origin="cdn", times=None)
        second = hub_file(hub, CONTENT, "other.bin", key="o")
        fleet.serve(second)
        fetching = asyncio.create_task(fleet.fetch(second))
        seen = mirror.count("GET", origin="cdn")
        await mirror.wait_for_request(lambda _: mirror.count("GET", origin="cdn") >= seen + 2)
        if comes_back:
            lost.cancel()
        fetched = await fetching
        assert sha256_of(fetched.path) == CONTENT.sha256
        assert fleet.origin_copies == (0.0 if comes_back else 1.0)
        assert len(fleet.told("mirror_recovered")) == (1 if comes_back else 0)


async def test_a_signature_that_expires_is_renewed_at_the_hub_and_the_mirror_used_on(
    fleet: Fleet,
) -> None:
    def is_late(request: Any) -> bool:
        return int((request.range or "=0-").partition("=")[2].partition("-")[0]) >= 8 * SLICE

    file = hub_file(fleet.hub, CONTENT)
    fleet.serve(file)
    fleet.mirror.inject(Status(403), origin="cdn", when=is_late, times=1)
    fleet.hub.inject(Status(403), origin="cdn", when=is_late, times=1)
    fetched = await fleet.fetch(file)
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert fleet.hub.count("GET", origin="hub") == 2
    assert fleet.mirror_copies >= 0.9


async def test_two_mirrors_share_the_slices_alike_on_all_nodes(
    tmp_path: Path, hub: TestHub, mirror: TestHub
) -> None:
    """So each slice is fetched from the origin by one of them only."""
    served: list[dict[str, list[str]]] = []
    async with TestHub() as other:
        rules = [rule(mirror, weight=3), rule(other), rule(hub, weight=0, url="http://127.0.0.1:1")]
        for node in ("a", "b"):
            async with fleet_with(tmp_path / node, *rules, hub=hub, mirror=mirror) as fleet:
                file = hub_file(hub, CONTENT, key=node)
                fleet.serve(file)
                replace(fleet, mirror=other).serve(file)
                await fleet.fetch(file)
                asked = {
                    each.cdn: sorted(request.range or "" for request in each.requests)
                    for each in (mirror, other)
                }
                served.append(asked)
    assert hub.bytes_sent(origin="cdn") == 0
    assert len(served[0][mirror.cdn]) > len(served[0][other.cdn]) > 0
    for cdn, ranges in served[1].items():
        assert set(ranges) == set(served[0][cdn])


async def test_a_part_of_what_the_origin_is_asked_for_is_held_back(
    tmp_path: Path, hub: TestHub, mirror: TestHub
) -> None:
    """The mirror's bytes are not, and neither are those of files without one."""
    small = Generated(SLICE, seed=3)
    async with fleet_with(
        tmp_path, rule(mirror), hub=hub, mirror=mirror, uplink=10 * COPY
    ) as fleet:
        file = hub_file(hub, CONTENT)
        fleet.serve(file)
        await fleet.fetch(file)
        await fleet.fetch(cdn_file(hub, small, key="plain"))
        mirror.inject(Status(500), origin="cdn", times=None)
        fetched = await fleet.fetch(replace(file, key="again"))
    assert sha256_of(fetched.path) == CONTENT.sha256


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_small_file_is_asked_for_by_the_hubs_path_and_a_token_only_with_trust(
    tmp_path: Path, hub: TestHub, mirror: TestHub, trusted: bool
) -> None:
    content = Data(b'{"model_type": "t5"}')
    for each in (hub, mirror):
        each.grant("hf_secret", "org/gated")
        each.repo("org/gated", gated=True).commit({"config.json": content})
    file = RemoteFile(
        "org/gated",
        hub.resolve_url("org/gated", "config.json"),
        Promise(content.size, Digest("git-sha1", content.git_sha1)),
        "k",
        {"Authorization": "Bearer hf_secret"},
    )
    rules = rule(mirror, url=mirror.endpoint, forward_token=trusted)
    async with fleet_with(tmp_path, rules, hub=hub, mirror=mirror) as fleet:
        fetched = await fleet.fetch(file)
    assert sha256_of(fetched.path) == content.sha256
    [asked] = mirror.requests
    assert asked.authorization == ("Bearer hf_secret" if trusted else None)
    assert hub.count("GET") == (0 if trusted else 1)
