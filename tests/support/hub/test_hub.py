"""The test hub against a plain HTTP client."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
from typing import TYPE_CHECKING

import aiohttp
import pytest
from blockbuster import blockbuster_ctx
from huggingface_hub import constants, hf_hub_download

from tests.support.hub import (
    Data,
    Drip,
    Gate,
    Generated,
    Hosted,
    OnDisk,
    Stall,
    Status,
    TestHub,
    Valve,
    matching,
)

from .conftest import FILES, LARGE, PATH

if TYPE_CHECKING:
    from pathlib import Path


class TestRanges:
    """Of plain files, by the rules of HTTP."""

    @pytest.mark.parametrize(
        ("wanted", "part"),
        [
            ("bytes=0-0", slice(0, 1)),
            ("bytes=100-199", slice(100, 200)),
            ("bytes=16000-", slice(16000, None)),
            ("bytes=16000-99999", slice(16000, None)),
            ("bytes=-10", slice(-10, None)),
            ("bytes=-99999", slice(0, None)),
        ],
    )
    async def test_satisfiable(
        self, client: aiohttp.ClientSession, url: str, wanted: str, part: slice
    ) -> None:
        async with client.get(url, headers={"Range": wanted}) as response:
            assert response.status == 206
            assert await response.read() == LARGE[part]
            start, stop, _ = part.indices(len(LARGE))
            expected = f"bytes {start}-{stop - 1}/{len(LARGE)}"
            assert response.headers["Content-Range"] == expected

    @pytest.mark.parametrize("wanted", ["bytes=16384-", "bytes=-0", "bytes=99999-100000"])
    async def test_unsatisfiable(
        self, client: aiohttp.ClientSession, url: str, wanted: str
    ) -> None:
        async with client.get(url, headers={"Range": wanted}) as response:
            assert response.status == 416
            assert response.headers["Content-Range"] == f"bytes */{len(LARGE)}"
            assert await response.read() == b""

    @pytest.mark.parametrize("wanted", ["bytes=5-4", "bytes=-", "lines=1-2", "bytes=0-1,5-6"])
    async def test_ignored(self, client: aiohttp.ClientSession, url: str, wanted: str) -> None:
        async with client.get(url, headers={"Range": wanted}) as response:
            assert response.status == 200
            assert await response.read() == LARGE

    async def test_conditions(self, client: aiohttp.ClientSession, url: str) -> None:
        async with client.head(url) as response:
            etag = response.headers["ETag"]
            assert response.headers["Accept-Ranges"] == "bytes"
            assert response.content_length == len(LARGE)
        for headers, status in (
            ({"Range": "bytes=1-1", "If-Range": etag}, 206),
            ({"Range": "bytes=1-1", "If-Range": '"other"'}, 200),
            ({"Range": "bytes=1-1", "If-Range": f"W/{etag}"}, 200),
            ({"If-None-Match": etag}, 304),
            ({"If-None-Match": '"other"'}, 200),
            ({"If-Match": '"other"'}, 412),
            ({"If-Match": etag}, 200),
        ):
            async with client.get(url, headers=headers) as response:
                assert response.status == status

    async def test_a_server_without_ranges_or_etag(
        self, client: aiohttp.ClientSession, hub: TestHub
    ) -> None:
        hub.files["/old.th"] = Hosted(Data(LARGE), ranges=False)
        async with client.get(hub.cdn_url("/old.th"), headers={"Range": "bytes=1-"}) as response:
            assert response.status == 200
            assert "ETag" not in response.headers
            assert await response.read() == LARGE

    async def test_an_unknown_path(self, client: aiohttp.ClientSession, hub: TestHub) -> None:
        async with client.get(hub.cdn_url("/absent")) as response:
            assert response.status == 404


class TestSignatures:
    async def test_expire_and_are_renewed(
        self, client: aiohttp.ClientSession, hub: TestHub
    ) -> None:
        hub.repo("org/model").commit(FILES)
        source = hub.resolve_url("org/model", "state_dict.bin")
        async with client.get(source) as response:
            signed = response.url
            assert await response.read() == LARGE
        for bad in (signed.with_query(None), signed.update_query(sig="0")):
            async with client.get(bad) as response:
                assert response.status == 403
        hub.expire_signatures()
        async with client.get(signed) as response:
            assert response.status == 403
        async with client.get(source) as response:
            assert await response.read() == LARGE
            assert response.url != signed


class TestGates:
    async def test_a_stall_lasts_until_its_gate_opens(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str
    ) -> None:
        gate = Gate()
        hub.inject(Stall(gate, after=1000))
        async with client.get(url) as response:
            await gate.reached.wait()
            assert await response.content.readexactly(1000) == LARGE[:1000]
            [request] = hub.requests
            assert (request.status, request.bytes_sent, request.done) == (200, 1000, False)
            assert hub.in_flight(PATH) == 1
            gate.open()
            assert await response.content.read() == LARGE[1000:]
        await hub.wait_for_request(lambda request: request.done)
        assert hub.in_flight(PATH) == 0

    async def test_a_stall_before_the_head(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str
    ) -> None:
        gate = Gate()
        hub.inject(Stall(gate), Status(503))
        answer = asyncio.create_task(client.get(url))
        await gate.reached.wait()
        assert hub.requests[0].status is None
        gate.open()
        async with await answer as response:
            assert response.status == 503

    async def test_a_client_that_leaves_ends_the_answer(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str
    ) -> None:
        gate = Gate()
        hub.inject(Stall(gate, after=10))
        async with client.get(url) as response:
            await gate.reached.wait()
            response.close()
        request = await hub.wait_for_request(lambda request: request.done)
        assert request.bytes_sent == 10

    async def test_a_drip_lets_through_what_is_allowed(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str
    ) -> None:
        valve = Valve(10)
        hub.inject(Drip(valve))
        async with client.get(url) as response:
            assert await response.content.readexactly(10) == LARGE[:10]
            valve.allow(5)
            await hub.wait_for_request(lambda request: request.bytes_sent == 15)
            assert await response.content.readexactly(5) == LARGE[10:15]
            valve.open()
            assert await response.content.read() == LARGE[15:]

    async def test_closing_the_hub_does_not_wait_for_stalls(
        self, client: aiohttp.ClientSession
    ) -> None:
        gate = Gate()
        async with TestHub() as hub:
            hub.files[PATH] = Data(LARGE)
            hub.inject(Stall(gate, after=10))
            response = await client.get(hub.cdn_url(PATH))
            await gate.reached.wait()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
        assert hub.requests[0].done

    async def test_waiting_for_several_requests(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str
    ) -> None:
        waiting = asyncio.create_task(hub.wait_for_request(matching(PATH), count=3))
        for _ in range(3):
            async with client.get(url):
                pass
        assert (await waiting).number == 2

    async def test_a_wait_in_vain_tells_what_there_was(
        self, client: aiohttp.ClientSession, hub: TestHub, url: str
    ) -> None:
        async with client.get(url):
            pass
        with pytest.raises(TimeoutError, match=f"cdn GET {PATH}"):
            await hub.wait_for_request(matching("/other"), timeout_s=0)

    def test_from_another_thread(self, threaded_hub: TestHub, tmp_path: Path) -> None:
        threaded_hub.repo("org/model").commit(FILES)
        gate = Gate()
        threaded_hub.inject(Stall(gate), method="HEAD")
        gate.open()
        hf_hub_download(
            "org/model", "config.json", endpoint=threaded_hub.endpoint, cache_dir=tmp_path
        )
        gate.reached.wait_blocking()
        request = threaded_hub.wait_for_request_blocking(
            lambda request: request.method == "GET" and request.done
        )
        assert request.bytes_sent == len(FILES["config.json"])
        with pytest.raises(TimeoutError):
            threaded_hub.wait_for_request_blocking(matching("/other"), timeout_s=0)


class TestContent:
    def test_generated_bytes_are_the_same_however_they_are_read(self) -> None:
        content = Generated(300_000, seed=1)
        whole = content.read(0, content.size)
        assert len(whole) == content.size
        for offset, length in ((0, 1), (65_530, 10), (65_536, 65_536), (299_999, 1), (7, 250_000)):
            assert content.read(offset, length) == whole[offset : offset + length]
        assert content.sha256 == hashlib.sha256(whole).hexdigest()
        assert content.git_sha1 == hashlib.sha1(b"blob 300000\0" + whole).hexdigest()
        assert Generated(300_000, seed=2).read(0, 100) != whole[:100]
        blocks = {whole[at : at + 65_536] for at in range(0, 262_144, 65_536)}
        assert len(blocks) == 4

    async def test_the_hub_never_blocks_the_loop(
        self, client: aiohttp.ClientSession, hub: TestHub, tmp_path: Path
    ) -> None:
        path = tmp_path / "file.bin"
        path.write_bytes(LARGE)
        hub.files["/disk.bin"] = OnDisk(path)
        repo = hub.repo("org/model")
        repo.commit({"disk.bin": path, "generated.bin": Generated(1_000_000)})
        with blockbuster_ctx("tests.support.hub"):
            for url, size in (
                (hub.cdn_url("/disk.bin"), len(LARGE)),
                (hub.resolve_url("org/model", "disk.bin"), len(LARGE)),
                (hub.resolve_url("org/model", "generated.bin"), 1_000_000),
            ):
                async with client.get(url) as response:
                    assert len(await response.read()) == size


def test_the_environment_is_isolated(isolated_environment: Path) -> None:
    assert os.path.expanduser("~") == str(isolated_environment)
    assert not constants.HF_HOME.startswith(pwd.getpwuid(os.getuid()).pw_dir)
    ours = {name for name in os.environ if name.startswith(("XDG_", "CRAFTCACHE_", "AUDIOCRAFT_"))}
    assert ours == {"CRAFTCACHE_INSECURE_HOSTS", "CRAFTCACHE_MIN_FREE"}
