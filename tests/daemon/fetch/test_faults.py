"""Each thing that networks and origins do wrong, alone and mixed: right bytes or a typed error."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craftcache.errors import (
    AccessDenied,
    CraftcacheError,
    IntegrityError,
    NotFound,
    Unavailable,
)
from craftcached.fetch import Priority
from tests.support.fetching import (
    IMPATIENT,
    MIB,
    QUICK,
    cdn_file,
    hub_file,
    remote,
    rig_at,
    sha256_of,
)
from tests.support.hub import (
    CloseEarly,
    Drip,
    ExpiredSignature,
    Fault,
    FlipBit,
    Gate,
    Generated,
    Hosted,
    NoLength,
    NoRanges,
    OtherEtag,
    RateLimited,
    Redirect,
    ResetConnection,
    Stall,
    Status,
    TestHub,
    Truncate,
    Valve,
    WithHeaders,
    WrongContentRange,
    WrongStart,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcached.fetch import RemoteFile
    from tests.support.fetching import Rig
    from tests.support.hub import Content, Request

CONTENT = Generated(2 * MIB + 777)

PASSING: dict[str, Callable[[], Fault]] = {
    "reset before the head": ResetConnection,
    "reset in the body": lambda: ResetConnection(after=100_000),
    "closed before the head": CloseEarly,
    "closed in the body": lambda: CloseEarly(after=100_000),
    "408": lambda: Status(408),
    "429": RateLimited,
    "500": lambda: Status(500),
    "502": lambda: Status(502),
    "503 with a wait": lambda: Status(503, {"Retry-After": "0"}),
    "504": lambda: Status(504),
    "expired signature": ExpiredSignature,
    "no range": NoRanges,
    "no length": NoLength,
    "ends with the connection": lambda: NoLength(chunked=False),
    "another range": WrongContentRange,
    "another version": OtherEtag,
    "no validator": lambda: OtherEtag(None),
    "shorter file": lambda: Truncate(MIB + 5),
    "no range says so": lambda: Status(416),
}
"""Faults of a single answer that the engine gets over, whichever answer it is."""


@pytest.mark.parametrize("answer", [0, 1, 4])
@pytest.mark.parametrize("name", PASSING)
async def test_faults_that_pass_are_gotten_over(
    hub: TestHub, tmp_path: Path, name: str, answer: int
) -> None:
    file = hub_file(hub, CONTENT)
    seen = 0

    def nth(_: object) -> bool:
        nonlocal seen
        seen += 1
        return seen == answer + 1

    rule = hub.inject(PASSING[name](), origin="cdn", when=nth)
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(file)
        assert rig.left == ["k.whole"]
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert rule.used == 1


LASTING: dict[str, tuple[Callable[[], Fault], type[CraftcacheError], bool]] = {
    "always reset": (ResetConnection, Unavailable, True),
    "always closed": (CloseEarly, Unavailable, True),
    "always 503": (lambda: Status(503), Unavailable, True),
    "always 429": (RateLimited, Unavailable, True),
    "always expired": (ExpiredSignature, AccessDenied, False),
    "404": (lambda: Status(404), NotFound, False),
    "410": (lambda: Status(410), NotFound, False),
    "418": (lambda: Status(418), Unavailable, False),
    "a redirect to nowhere": (lambda: Status(302), Unavailable, False),
    "a wrong bit": (lambda: FlipBit(MIB + 9), IntegrityError, False),
    "other bytes than the head says": (WrongStart, IntegrityError, False),
    "a shorter file": (lambda: Truncate(MIB), IntegrityError, True),
    "compressed": (lambda: WithHeaders({"Content-Encoding": "gzip"}), IntegrityError, False),
}
"""Faults of every answer: the error that comes of them, and whether a later try may help."""


@pytest.mark.parametrize("name", LASTING)
async def test_faults_that_last_have_names(hub: TestHub, tmp_path: Path, name: str) -> None:
    fault, error, retryable = LASTING[name]
    file = hub_file(hub, CONTENT)
    hub.inject(fault(), origin="cdn", times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(error) as raised:
            await rig.fetch(file)
        assert rig.left == []
    assert type(raised.value) is error
    assert raised.value.retryable is retryable
    assert raised.value.source == "org/model"
    assert "sig=" not in str(raised.value)


@pytest.mark.parametrize("name", LASTING)
async def test_faults_that_begin_midway_leave_what_a_later_run_can_use(
    hub: TestHub, tmp_path: Path, name: str
) -> None:
    fault, _, _ = LASTING[name]
    file = hub_file(hub, CONTENT)
    rule = hub.inject(fault(), origin="cdn", when=is_later, times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(CraftcacheError):
            await rig.fetch(file)
        rule.cancel()
        await assert_resumable(rig, file, CONTENT)


@pytest.mark.parametrize(("status", "error"), [(401, AccessDenied), (403, AccessDenied)])
async def test_the_hubs_own_refusal(
    hub: TestHub, tmp_path: Path, status: int, error: type[CraftcacheError]
) -> None:
    hub.inject(Status(status), origin="hub", times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(error):
            await rig.fetch(hub_file(hub, CONTENT))
    assert hub.count("GET") == 1, "asking again would not help"


async def test_the_hub_says_what_is_absent_with_401_too(hub: TestHub, tmp_path: Path) -> None:
    hub.inject(Status(401, {"X-Error-Code": "RepoNotFound"}), origin="hub", times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(NotFound):
            await rig.fetch(hub_file(hub, CONTENT))


async def test_signatures_that_expire_midway_are_renewed(hub: TestHub, tmp_path: Path) -> None:
    file = hub_file(hub, CONTENT)
    gate = Gate()
    hub.inject(Stall(gate, after=1), origin="cdn", when=is_later)
    async with rig_at(tmp_path) as rig:
        fetching = asyncio.create_task(rig.fetch(file))
        await gate.reached.wait()
        hub.expire_signatures()
        gate.open()
        fetched = await fetching
    assert fetched.digests.sha256 == CONTENT.sha256
    assert hub.count("GET", origin="hub") >= 2


async def test_a_longer_wait_than_ours_is_handed_to_the_caller(
    hub: TestHub, tmp_path: Path
) -> None:
    hub.inject(RateLimited(reset_s=300), times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(Unavailable) as error:
            await rig.fetch(cdn_file(hub, CONTENT))
    assert error.value.retry_after == 300
    assert hub.count("GET") == 1


@pytest.mark.parametrize("after", [None, 0, 300_000])
async def test_a_silent_connection_is_dropped_and_its_range_asked_for_again(
    hub: TestHub, tmp_path: Path, after: int | None
) -> None:
    gate = Gate()
    hub.inject(Stall(gate, after=after), origin="cdn")
    async with rig_at(tmp_path, IMPATIENT) as rig:
        fetched = await rig.fetch(hub_file(hub, CONTENT))
    assert fetched.digests.sha256 == CONTENT.sha256
    gate.open()


async def test_a_trickle_counts_as_silence(hub: TestHub, tmp_path: Path) -> None:
    allowed = 1000
    valve = Valve(allowed)
    hub.inject(Drip(valve))

    def has_gone_or_is_new(request: Request) -> bool:
        return request.bytes_sent >= allowed or request.number > 0

    greedy = replace(IMPATIENT, minimum_rate=1_000_000)
    async with rig_at(tmp_path, greedy) as rig, asyncio.TaskGroup() as group:
        fetching = group.create_task(rig.fetch(cdn_file(hub, CONTENT)))
        while (await hub.wait_for_request(has_gone_or_is_new)).number == 0:
            allowed += 10
            valve.allow(10)
        assert (await fetching).digests.sha256 == CONTENT.sha256
    valve.open()


async def test_a_hub_that_stays_silent_is_unavailable(hub: TestHub, tmp_path: Path) -> None:
    gate = Gate()
    hub.inject(Stall(gate), times=None)
    async with rig_at(tmp_path, replace(IMPATIENT, stall_seconds=0.05, attempts=2)) as rig:
        with pytest.raises(Unavailable) as error:
            await rig.fetch(cdn_file(hub, CONTENT))
    assert error.value.retryable
    gate.open()


async def test_a_port_where_nobody_listens(tmp_path: Path) -> None:
    async with rig_at(tmp_path) as rig:
        with pytest.raises(Unavailable) as error:
            await rig.fetch(remote(CONTENT, "http://127.0.0.1:9/w.bin?token=secret"))
    assert "secret" not in str(error.value)


async def test_a_file_replaced_midway_comes_in_its_new_version_only(
    hub: TestHub, tmp_path: Path
) -> None:
    new = Generated(2 * MIB, seed=3)
    file = cdn_file(hub, CONTENT, promised=False)
    gate = Gate()
    hub.inject(Stall(gate, after=1), when=is_later)
    async with rig_at(tmp_path) as rig:
        fetching = asyncio.create_task(rig.fetch(file))
        await gate.reached.wait()
        hub.files["/w.bin"] = new
        gate.open()
        fetched = await fetching
    assert sha256_of(fetched.path) == new.sha256


async def test_servers_that_disagree_about_the_validator_are_read_in_one_answer(
    hub: TestHub, tmp_path: Path
) -> None:
    file = cdn_file(hub, CONTENT)
    for number in range(40):
        hub.inject(OtherEtag(f"server-{number}"))
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(file)
    assert fetched.digests.sha256 == CONTENT.sha256
    assert hub.requests[-1].range is None


async def test_more_than_was_promised_is_not_taken(hub: TestHub, tmp_path: Path) -> None:
    hub.files["/w.bin"] = Hosted(Generated(64 * MIB), ranges=False)
    hub.inject(NoLength(), times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(IntegrityError):
            await rig.fetch(remote(CONTENT, hub.cdn_url("/w.bin")))
        assert rig.left == []


async def test_a_redirect_that_is_a_fault_of_one_server(hub: TestHub, tmp_path: Path) -> None:
    file = cdn_file(hub, CONTENT)
    hub.inject(Redirect(hub.cdn_url("/gone")))
    async with rig_at(tmp_path) as rig:
        with pytest.raises(NotFound):
            await rig.fetch(file)


MIXABLE = st.sampled_from([fault for _, fault in sorted(PASSING.items())]) | st.sampled_from(
    [fault for fault, _, _ in LASTING.values()]
)


@given(
    faults=st.lists(st.tuples(MIXABLE, st.integers(1, 3), st.booleans()), max_size=6),
    ranges=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_mixture_gives_the_right_bytes_or_a_typed_error(
    faults: list[tuple[Callable[[], Fault], int, bool]], ranges: bool
) -> None:
    async def example(base: Path) -> None:
        async with TestHub() as hub, rig_at(base, replace(QUICK, backoff_seconds=0.0001)) as rig:
            hub.files["/w.bin"] = Hosted(CONTENT, etag="v1", ranges=ranges)
            file = remote(CONTENT, hub.cdn_url("/w.bin"))
            rules = [
                hub.inject(fault(), times=times, when=is_later if later else None)
                for fault, times, later in faults
            ]
            try:
                fetched = await rig.fetch(file)
            except CraftcacheError:
                for rule in rules:
                    rule.cancel()
                await assert_resumable(rig, file, CONTENT)
            else:
                assert sha256_of(fetched.path) == CONTENT.sha256
                assert rig.left == ["k.whole"]

    with tempfile.TemporaryDirectory() as base:
        asyncio.run(example(Path(base)))


@given(cuts=st.lists(st.integers(0, 12), min_size=1, max_size=4), ranges=st.booleans())
@settings(max_examples=25, deadline=None)
def test_cancelled_at_any_moment_it_goes_on_or_begins_again(cuts: list[int], ranges: bool) -> None:
    async def example(base: Path) -> None:
        async with TestHub() as hub, rig_at(base, replace(QUICK, max_connections=1)) as rig:
            hub.files["/w.bin"] = Hosted(CONTENT, etag="v1", ranges=ranges)
            file = remote(CONTENT, hub.cdn_url("/w.bin"))
            for cut in cuts:
                await cancelled_after(rig, file, cut)
                assert rig.left in ([], ["k.journal", "k.part"], ["k.part"])
            fetched = await rig.fetch(file)
            assert sha256_of(fetched.path) == CONTENT.sha256

    with tempfile.TemporaryDirectory() as base:
        asyncio.run(example(Path(base)))


async def cancelled_after(rig: Rig, file: RemoteFile, requests_and_reports: int) -> None:
    """Cancel a fetch once so many of its steps are seen; what is done before is thrown away."""
    left = requests_and_reports
    fetching = asyncio.create_task(
        rig.engine.fetch(file, priority=Priority.BACKGROUND, report=lambda *_: step())
    )

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            fetching.cancel()

    step()
    with contextlib.suppress(asyncio.CancelledError):
        (await fetching).path.unlink()


def is_later(request: Request) -> bool:
    """Whether this is not the first request of an attempt."""
    return request.range != "bytes=0-1048575"


async def assert_resumable(rig: Rig, file: RemoteFile, content: Content) -> None:
    """Staging is empty or holds what the next fetch builds on."""
    assert rig.left in ([], ["k.journal", "k.part"])
    fetched = await rig.fetch(file)
    assert sha256_of(fetched.path) == content.sha256
    assert rig.left == ["k.whole"]
