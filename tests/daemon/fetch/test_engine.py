"""What a caller of the engine gets, on a network without faults."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from blockbuster import blockbuster_ctx

from craftcache.digests import Digest, Promise
from craftcache.errors import IntegrityError, PolicyDenied, StorageFull, Unavailable
from craftcached.fetch import Fetched, Priority, RemoteFile
from craftcached.fetch.job import ROOM_AHEAD_BYTES
from tests.support.fetching import MIB, QUICK, cdn_file, hub_file, remote, rig_at, sha256_of
from tests.support.hub import Data, Gate, Generated, Hosted, NoLength, Redirect, Stall, matching

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import Request, TestHub

SEVERAL_PIECES = Generated(3 * MIB + 12345)


async def test_a_large_file_comes_whole_sealed_and_in_ranges(hub: TestHub, tmp_path: Path) -> None:
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(hub_file(hub, SEVERAL_PIECES))
    assert fetched.digests.sha256 == SEVERAL_PIECES.sha256 == sha256_of(fetched.path)
    assert fetched.digests.size == fetched.bytes_fetched == SEVERAL_PIECES.size
    assert fetched.bytes_reused == 0
    assert fetched.path.stat().st_mode & 0o777 == 0o444
    assert rig.left == ["k.whole"]
    assert rig.reports[-1] == (SEVERAL_PIECES.size, SEVERAL_PIECES.size)
    assert hub.bytes_sent(origin="cdn") == SEVERAL_PIECES.size
    assert hub.count("GET", origin="cdn") > 5
    assert hub.count("GET", origin="hub") == 1, "the signed address is used again"


async def test_pieces_come_in_parallel(hub: TestHub, tmp_path: Path) -> None:
    gate = Gate()
    content = Generated(4 * MIB)
    file = cdn_file(hub, content)
    hub.inject(Stall(gate, after=1), when=lambda r: r.range != "bytes=0-1048575", times=None)
    async with rig_at(tmp_path) as rig:
        fetching = asyncio.create_task(rig.fetch(file))
        await hub.wait_for_request(
            lambda r: r.bytes_sent == 1, count=2
        )  # two answers stand still at once
        gate.open()
        assert (await fetching).digests.sha256 == content.sha256


@pytest.mark.parametrize("size", [0, 1, 4095, MIB, MIB + 1])
@pytest.mark.parametrize("promised", [True, False])
async def test_files_of_any_size(hub: TestHub, tmp_path: Path, size: int, promised: bool) -> None:
    content = Data(os.urandom(size))
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(cdn_file(hub, content, promised=promised))
        assert fetched.path.read_bytes() == content.data
        assert fetched.digests.sha256 == content.sha256


async def test_a_small_hub_file_is_checked_by_its_git_digest(hub: TestHub, tmp_path: Path) -> None:
    content = Data(b'{"pretrained": "x"}')
    hub.files["/config.json"] = content
    promise = Promise(content.size, Digest("git-sha1", content.git_sha1))
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(RemoteFile("s", hub.cdn_url("/config.json"), promise, "k"))
        assert fetched.digests.git_sha1 == content.git_sha1
        wrong = replace(promise, digest=Digest("git-sha1", "0" * 40))
        with pytest.raises(IntegrityError):
            await rig.fetch(RemoteFile("s", hub.cdn_url("/config.json"), wrong, "other"))
        assert rig.left == ["k.whole"]


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("promised", [True, False])
async def test_servers_without_ranges_or_length(
    hub: TestHub, tmp_path: Path, chunked: bool, promised: bool
) -> None:
    content = Generated(2 * MIB + 1)
    hub.files["/w.bin"] = Hosted(content, ranges=False)
    hub.inject(NoLength(chunked=chunked), times=None)
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(remote(content, hub.cdn_url("/w.bin"), promised=promised))
    assert sha256_of(fetched.path) == content.sha256
    assert hub.count("GET") == 1


async def test_ranges_without_any_validator_are_not_put_together(
    hub: TestHub, tmp_path: Path
) -> None:
    content = Generated(3 * MIB)
    hub.files["/w.bin"] = Hosted(content, etag=None)
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(remote(content, hub.cdn_url("/w.bin"), promised=False))
    assert sha256_of(fetched.path) == content.sha256
    assert hub.requests[-1].range is None


async def test_the_servers_validator_is_handed_on(hub: TestHub, tmp_path: Path) -> None:
    hub.files["/w.bin"] = Hosted(SEVERAL_PIECES, etag="v7")
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(remote(SEVERAL_PIECES, hub.cdn_url("/w.bin"), promised=False))
    assert fetched.etag == "v7"


async def test_credentials_stay_at_their_origin(hub: TestHub, tmp_path: Path) -> None:
    hub.grant("secret")
    file = hub_file(hub, SEVERAL_PIECES)
    async with rig_at(tmp_path) as rig:
        await rig.fetch(replace(file, headers={"Authorization": "Bearer secret"}))
    assert [r.authorization for r in hub.matching(origin="hub")] == ["Bearer secret"]
    assert hub.tokens_at_cdn == []


async def test_the_policy_sees_every_hop_before_it_is_asked(hub: TestHub, tmp_path: Path) -> None:
    def only_the_hub(url: str) -> None:
        if not url.startswith(hub.endpoint):
            raise PolicyDenied("not here", source="s")

    async with rig_at(tmp_path, check_url=only_the_hub) as rig:
        with pytest.raises(PolicyDenied):
            await rig.fetch(hub_file(hub, SEVERAL_PIECES))
        assert rig.left == []
    assert hub.count(None, origin="cdn") == 0


async def test_redirects_in_a_circle_end(hub: TestHub, tmp_path: Path) -> None:
    file = cdn_file(hub, SEVERAL_PIECES)
    hub.inject(Redirect("/w.bin"), times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(Unavailable, match="redirects more than") as error:
            await rig.fetch(file)
    assert not error.value.retryable


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[::1"])
async def test_redirects_to_what_is_no_web_address(
    hub: TestHub, tmp_path: Path, target: str
) -> None:
    file = cdn_file(hub, SEVERAL_PIECES)
    hub.inject(Redirect(target), times=None)
    async with rig_at(tmp_path) as rig:
        with pytest.raises(Unavailable) as error:
            await rig.fetch(file)
    assert not error.value.retryable


async def test_many_files_at_once_share_the_limits(hub: TestHub, tmp_path: Path) -> None:
    contents = [Generated(2 * MIB + n, seed=n) for n in range(6)]
    in_flight = {0}

    def look(_: Request) -> bool:  # at every change of what the hub was asked and has sent
        in_flight.add(hub.in_flight())
        return False

    settings = replace(QUICK, max_connections_per_host=3)
    async with rig_at(tmp_path, settings) as rig, asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(rig.fetch(cdn_file(hub, content, f"/{n}", key=f"k{n}")))
            for n, content in enumerate(contents)
        ]
        looking = group.create_task(hub.wait_for_request(look))
        await asyncio.wait(tasks)
        looking.cancel()
    assert [t.result().digests.sha256 for t in tasks] == [c.sha256 for c in contents]
    assert 0 < max(in_flight) <= 3


async def test_two_fetches_of_one_key_follow_each_other(hub: TestHub, tmp_path: Path) -> None:
    file = cdn_file(hub, SEVERAL_PIECES)
    async with rig_at(tmp_path) as rig:
        first, second = await asyncio.gather(rig.fetch(file), rig.fetch(file))
        assert rig.left == ["k.whole", "k.whole"]
    assert sha256_of(first.path) == sha256_of(second.path) == SEVERAL_PIECES.sha256
    ranges = [request.range for request in hub.requests]
    assert ranges[: len(ranges) // 2].count("bytes=0-1048575") == 1


async def test_no_byte_is_fetched_without_room(hub: TestHub, tmp_path: Path) -> None:
    small = Generated(MIB, seed=5)
    async with rig_at(tmp_path, free=lambda: 2 * MIB) as rig:
        with pytest.raises(StorageFull) as full:
            await rig.fetch(cdn_file(hub, SEVERAL_PIECES))
        assert full.value.missing_bytes == SEVERAL_PIECES.size - 2 * MIB
        assert rig.left == []
        fetched = await rig.fetch(cdn_file(hub, small, "/small", key="small"))
        assert fetched.digests.sha256 == small.sha256


async def test_an_endless_body_ends_before_the_disk_does(hub: TestHub, tmp_path: Path) -> None:
    body = Generated(2 * ROOM_AHEAD_BYTES)
    hub.files["/w.bin"] = Hosted(body, ranges=False)
    hub.inject(NoLength(), times=None)
    staging, least = tmp_path / "staging", ROOM_AHEAD_BYTES

    def free() -> int:
        nonlocal least
        taken = sum(path.stat().st_size for path in staging.iterdir())
        least = min(least, ROOM_AHEAD_BYTES - taken)
        return ROOM_AHEAD_BYTES - taken

    async with rig_at(tmp_path, free=free) as rig:
        with pytest.raises(StorageFull):
            await rig.fetch(remote(body, hub.cdn_url("/w.bin"), promised=False))
        assert rig.left == []
    assert ROOM_AHEAD_BYTES // 4 < least < ROOM_AHEAD_BYTES // 2


async def test_a_deadline_ends_all_patience(hub: TestHub, tmp_path: Path) -> None:
    gate = Gate()
    hub.inject(Stall(gate), times=None)
    settings = replace(QUICK, deadline_seconds=0.05)
    async with rig_at(tmp_path, settings) as rig:
        with pytest.raises(Unavailable, match="not done within") as error:
            await rig.fetch(cdn_file(hub, SEVERAL_PIECES))
    assert error.value.retryable
    gate.open()


async def test_a_running_fetch_can_be_hurried(hub: TestHub, tmp_path: Path) -> None:
    slow, fast = Generated(32 * MIB, seed=1), Generated(2 * MIB, seed=2)
    settings = replace(QUICK, max_connections=1)
    done: list[str] = []
    gate = Gate()
    hub.inject(Stall(gate), times=1)
    async with rig_at(tmp_path, settings) as rig, asyncio.TaskGroup() as group:

        async def fetch(name: str, file: RemoteFile) -> Fetched:
            fetched = await rig.fetch(file)
            done.append(name)
            return fetched

        group.create_task(fetch("first", cdn_file(hub, slow, "/slow", key="slow")))
        await gate.reached.wait()
        group.create_task(fetch("hurried", cdn_file(hub, fast, "/fast", key="fast")))
        await asyncio.sleep(0)
        rig.engine.hurry("fast")
        rig.engine.hurry("unknown")
        gate.open()
    assert done == ["hurried", "first"]


async def test_the_cap_holds_for_all_downloads_together(hub: TestHub, tmp_path: Path) -> None:
    contents = [Generated(MIB, seed=n) for n in range(2)]
    settings = replace(QUICK, bandwidth=8 * MIB)
    loop = asyncio.get_running_loop()
    async with rig_at(tmp_path, settings) as rig:
        began = loop.time()
        await asyncio.gather(
            *(
                rig.fetch(cdn_file(hub, content, f"/{n}", key=f"k{n}"))
                for n, content in enumerate(contents)
            )
        )
        # The last block of each is paid for late, and a tenth of a second may be made up for.
        assert loop.time() - began >= (2 * MIB - 2 * 512 * 1024) / (8 * MIB) - 0.1


async def test_the_event_loop_is_never_blocked(hub: TestHub, tmp_path: Path) -> None:
    file = hub_file(hub, SEVERAL_PIECES)
    with blockbuster_ctx("craftcached"):
        async with rig_at(tmp_path) as rig:
            fetched = await rig.fetch(file, priority=Priority.WAITED_FOR)
        async with rig_at(tmp_path) as rig:
            again = await rig.fetch(file)
    assert again.bytes_reused == fetched.bytes_fetched


async def test_user_agent_and_identity(hub: TestHub, tmp_path: Path) -> None:
    async with rig_at(tmp_path, replace(QUICK, user_agent="craftcached/test")) as rig:
        await rig.fetch(hub_file(hub, SEVERAL_PIECES))
    assert {r.headers["User-Agent"] for r in hub.requests} == {"craftcached/test"}
    assert {r.headers["Accept-Encoding"] for r in hub.requests} == {"identity"}


async def test_certificates_are_checked_against_the_bundle_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    openssl = shutil.which("openssl") or pytest.skip("making a certificate needs openssl")
    make = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *names, *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=b"over TLS")

    app = web.Application()
    app.router.add_get("/w.bin", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    file = remote(Data(b"over TLS"), f"https://127.0.0.1:{runner.addresses[0][1]}/w.bin")
    async with rig_at(tmp_path) as rig:
        with pytest.raises(Unavailable, match="certificate") as error:
            await rig.fetch(file)
        assert not error.value.retryable
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with rig_at(tmp_path) as rig:
        assert (await rig.fetch(file)).path.read_bytes() == b"over TLS"
    await runner.cleanup()


async def test_proxies_come_from_the_environment(
    hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Data(b"through the proxy")
    hub.files["/w.bin"] = content
    monkeypatch.setenv("http_proxy", hub.cdn)
    async with rig_at(tmp_path) as rig:
        fetched = await rig.fetch(remote(content, "http://far.invalid/w.bin"))
    assert fetched.path.read_bytes() == content.data
    assert len(list(filter(matching("/w.bin"), hub.requests))) == 1
