"""The faults of the test hub against a plain HTTP client."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.support.hub import (
    CloseEarly,
    ExpiredSignature,
    Fault,
    FlipBit,
    Generated,
    NoLength,
    NoRanges,
    OtherEtag,
    RateLimited,
    Redirect,
    ResetConnection,
    Status,
    TestHub,
    Truncate,
    WithHeaders,
    WrongContentRange,
    WrongStart,
)

from .conftest import LARGE, PATH


class TestFaults:
    """Each does what its name says, to as many answers as was said."""

    @pytest.mark.parametrize(
        ("fault", "status", "header"),
        [
            (Status(503, {"Retry-After": "7"}), 503, ("Retry-After", "7")),
            (RateLimited(5), 429, ("RateLimit", '"resolvers";r=0;t=5')),
            (ExpiredSignature(), 403, ("Content-Type", "application/xml")),
            (Redirect("/elsewhere"), 302, ("Location", "/elsewhere")),
            (OtherEtag("other"), 200, ("ETag", '"other"')),
            (WithHeaders({"Content-Encoding": "gzip"}), 200, ("Content-Encoding", "gzip")),
        ],
    )
    async def test_heads(
        self,
        client: aiohttp.ClientSession,
        hub: TestHub,
        url: str,
        fault: Fault,
        status: int,
        header: tuple[str, str],
    ) -> None:
        rule = hub.inject(fault, path=PATH)
        async with client.get(url, allow_redirects=False) as response:
            assert response.status == status
            assert response.headers[header[0]] == header[1]
        async with client.get(url) as response:
            assert response.status == 200
            assert await response.read() == LARGE
        assert rule.used == 1

    @pytest.mark.parametrize(
        ("fault", "body"),
        [
            (FlipBit(1000), LARGE[:1000] + bytes([LARGE[1000] ^ 1]) + LARGE[1001:]),
            (Truncate(1000), LARGE[:1000]),
            (NoLength(), LARGE),
            (NoLength(chunked=False), LARGE),
        ],
    )
    async def test_bodies(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str, fault: Fault, body: bytes
    ) -> None:
        hub.inject(fault)
        async with client.get(url) as response:
            assert await response.read() == body
            expected = None if isinstance(fault, NoLength) else len(body)
            assert response.content_length == expected

    @pytest.mark.parametrize(
        ("fault", "status", "content_range", "body"),
        [
            (NoRanges(), 200, None, LARGE),
            (WrongContentRange(3), 206, "bytes 103-202/16384", LARGE[100:200]),
            (WrongStart(-3), 206, "bytes 100-199/16384", LARGE[97:197]),
        ],
    )
    async def test_ranges(
        self,
        client: aiohttp.ClientSession,
        hub: TestHub,
        url: str,
        fault: Fault,
        status: int,
        content_range: str | None,
        body: bytes,
    ) -> None:
        hub.inject(fault)
        async with client.get(url, headers={"Range": "bytes=100-199"}) as response:
            assert response.status == status
            assert response.headers.get("Content-Range") == content_range
            assert await response.read() == body

    @pytest.mark.parametrize("fault", [ResetConnection(), CloseEarly()])
    async def test_no_answer_at_all(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str, fault: Fault
    ) -> None:
        hub.inject(fault, method=None, times=None)
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.get(url)

    @pytest.mark.parametrize("after", [0, 1, 1000, 3_000_000])
    async def test_a_reset_comes_after_exactly_so_many_bytes(
        self, hub: TestHub, after: int
    ) -> None:
        hub.files["/big"] = Generated(8_000_000)
        hub.inject(ResetConnection(after=after))
        data, error = await raw_get(hub, "/big")
        assert len(data) == after
        assert isinstance(error, ConnectionResetError)

    @pytest.mark.parametrize("after", [0, 1000, 3_000_000])
    async def test_a_close_comes_after_exactly_so_many_bytes(
        self, hub: TestHub, after: int
    ) -> None:
        hub.files["/big"] = Generated(8_000_000)
        hub.inject(CloseEarly(after=after))
        data, error = await raw_get(hub, "/big")
        assert data == Generated(8_000_000).read(0, after)
        assert error is None

    async def test_an_undetectably_short_body(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str
    ) -> None:
        hub.inject(NoLength(chunked=False), CloseEarly(after=1000))
        async with client.get(url) as response:
            assert await response.read() == LARGE[:1000]

    async def test_a_detectably_short_body(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str
    ) -> None:
        for faults in ((CloseEarly(after=1000),), (NoLength(), CloseEarly(after=1000))):
            hub.inject(*faults)
            async with client.get(url) as response:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()

    async def test_a_redirect_loop(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str
    ) -> None:
        hub.inject(Redirect(url), times=None)
        with pytest.raises(aiohttp.TooManyRedirects):
            await client.get(url)

    async def test_rules_queue(self, client: aiohttp.ClientSession, hub: TestHub, url: str) -> None:
        hub.inject(Status(500), path=PATH)
        hub.inject(Status(502), path="*/state_dict.bin", times=2)
        hub.inject(Status(418), path="/other")
        hub.inject(Status(418), when=lambda request: request.range is not None)
        hub.inject(Status(418), origin="hub")
        always = hub.inject(Status(504), times=None)
        statuses = []
        for _ in range(5):
            async with client.get(url) as response:
                statuses.append(response.status)
        always.cancel()
        async with client.get(url) as response:
            statuses.append(response.status)
        assert statuses == [500, 502, 502, 504, 504, 200]


async def raw_get(hub: TestHub, path: str) -> tuple[bytes, OSError | None]:
    """The body of a GET, read until the connection ends, and the error it ended with."""
    host, _, port = hub.cdn.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    body, error = bytearray(), None
    try:
        while chunk := await reader.read(65536):
            body += chunk
    except OSError as caught:
        error = caught
    writer.close()
    return bytes(body), error
