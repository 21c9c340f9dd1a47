"""Wrong bytes: fetched once more from the beginning, and only then an error that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from craftcache.digests import Digest, Promise
from craftcache.errors import IntegrityError
from craftcached.fetch import Fetched, IntegrityRetry, Priority, RemoteFile
from tests.support.fetching import MIB, hub_file, remote, rig_at, sha256_of
from tests.support.hub import Data, FlipBit, Generated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.fetching import Rig
    from tests.support.hub import Request, TestHub

CONTENT = Generated(2 * MIB + 777)


def is_past_caches(request: Request) -> bool:
    return request.headers.get("Cache-Control") == "no-cache"


async def fetch(rig: Rig, file: RemoteFile) -> Fetched:
    return await IntegrityRetry(rig.engine).fetch(
        file, priority=Priority.BACKGROUND, report=lambda _done, _total: None
    )


@pytest.mark.parametrize("offset", [9, MIB + 9, CONTENT.size - 1])
async def test_what_a_cache_on_the_way_holds_wrong_is_passed_by(
    hub: TestHub, tmp_path: Path, offset: int
) -> None:
    file = hub_file(hub, CONTENT)
    hub.inject(
        FlipBit(offset), origin="cdn", when=lambda request: not is_past_caches(request), times=None
    )
    async with rig_at(tmp_path) as rig:
        fetched = await fetch(rig, file)
        assert rig.left == ["k.whole"]
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert (fetched.bytes_fetched, fetched.bytes_reused) == (CONTENT.size, 0)
    again = [request for request in hub.requests if is_past_caches(request)]
    assert {request.origin for request in again} == {"hub", "cdn"}
    assert sum(request.bytes_sent for request in again if request.origin == "cdn") == CONTENT.size


async def test_the_error_says_how_often_it_was_tried_and_what_was_seen(
    hub: TestHub, tmp_path: Path
) -> None:
    file = hub_file(hub, CONTENT)
    wrong = hub.inject(FlipBit(5), origin="cdn", times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(IntegrityError, match=r"fetched twice, .* with the same result"):
            await fetch(rig, file)
        assert rig.left == []
    starts = hub.matching("*", method="GET", origin="hub")
    assert [is_past_caches(request) for request in starts] == [False, True]
    assert wrong.used >= 2


async def test_what_was_seen_the_first_time_is_told_where_it_was_another_thing(
    hub: TestHub, tmp_path: Path
) -> None:
    file = hub_file(hub, CONTENT)
    hub.inject(FlipBit(6), origin="cdn", when=is_past_caches, times=None)
    hub.inject(FlipBit(5), origin="cdn", times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(IntegrityError) as raised:
            await fetch(rig, file)
    message = raised.value.message
    assert message.count(f"where the origin promised {CONTENT.sha256}") == 2
    first, second = (part.split()[0] for part in message.split("sha256 is ")[1:])
    assert first != second


async def test_the_second_attempt_goes_over_a_new_connection(tmp_path: Path) -> None:
    """A path that spoils what it carries (a broken balancer, say) is not taken again."""
    content = Data(b"right" * 1000)
    ports: list[int] = []

    async def serve(request: web.Request) -> web.Response:
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        is_first = not ports or port == ports[0]
        ports.append(port)
        return web.Response(body=content.data if not is_first else b"wrong" * 1000)

    app = web.Application()
    app.router.add_get("/w.bin", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        promise = Promise(digest=Digest("sha256", content.sha256))
        async with rig_at(tmp_path) as rig:
            fetched = await fetch(rig, RemoteFile("s", f"http://{host}:{port}/w.bin", promise, "k"))
    finally:
        await runner.cleanup()
    assert fetched.digests.sha256 == content.sha256
    assert len(set(ports)) == 2


class Watched:
    """A Fetcher that brings wrong bytes once; notes with which priority it is asked."""

    def __init__(self, during_first: Callable[[], None]) -> None:
        self.asked: list[tuple[int, Priority]] = []
        self._during_first = during_first

    async def fetch(
        self, file: RemoteFile, *, priority: Priority, report: Callable[[int, int | None], None]
    ) -> Fetched:
        self.asked.append((file.attempt, priority))
        self._during_first()
        raise IntegrityError("wrong", source=file.source)

    def hurry(self, key: str) -> None:
        assert key == "k"


@pytest.mark.parametrize("is_waited_for", [False, True])
async def test_who_began_to_wait_during_the_first_attempt_waits_for_the_second(
    is_waited_for: bool,
) -> None:
    def during() -> None:
        if is_waited_for:
            attempts.hurry("k")

    watched = Watched(during)
    attempts = IntegrityRetry(watched)
    file = remote(CONTENT, "http://host/w.bin")
    for _ in range(2):
        with pytest.raises(IntegrityError):
            await attempts.fetch(
                file, priority=Priority.BACKGROUND, report=lambda _done, _total: None
            )
    later = Priority.WAITED_FOR if is_waited_for else Priority.BACKGROUND
    assert watched.asked == [(1, Priority.BACKGROUND), (2, later)] * 2
