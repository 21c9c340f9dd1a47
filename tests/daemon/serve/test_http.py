"""``craftcache.sock`` as any HTTP client sees it: what it answers, and to whom."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import pytest

from craftcache.errors import from_problem
from craftcache.version import VERSION
from tests.support.api import Api
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import Gate, OnDisk, RateLimited, Stall, matching

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hub import Repo, TestHub

SIZE = sum(path.stat().st_size for path in EXPORT_FILES.values())
URL = "*/state_dict.bin"


def served(hub: TestHub, path: str) -> str:
    """The URL of an export that the CDN serves as plain files below ``path``."""
    for name, file in EXPORT_FILES.items():
        hub.files[f"{path}/{name}"] = OnDisk(file)
    return hub.cdn_url(f"{path}/")


def test_health(api: Api) -> None:
    assert api.get("/health") == {"status": "ok"}


def test_status_says_what_there_is(api: Api, daemon: DaemonProcess) -> None:
    api.warm("org/model")
    status = api.get("/status")
    assert status["version"] == VERSION
    assert status["pid"] == daemon.pid
    assert status["cache_dir"] == str(daemon.cache_dir)
    assert (status["models"], status["bytes"]) == (1, SIZE)
    assert (status["requests"], status["queued"]) == (0, 0)


def test_a_model_is_found_by_every_spelling_of_its_source(
    api: Api, threaded_hub: TestHub, export_repo: Repo
) -> None:
    export_repo.branch("feature/x", export_repo.resolve("main") or "")
    plain = served(threaded_hub, "/plain export")
    signed = threaded_hub.cdn_url("/plain export/state_dict.bin") + "?sig=a%2Bb&key=1"
    sources = ["org/model", "org/model@feature/x", plain, signed]
    response = api.warm(*sources)
    assert response.status_code == 200, response.text
    for source in sources:
        for spelled in (source, quote(source, safe="")):
            model = api.get(f"/models/{spelled}")
            assert {file["filename"] for file in model["files"]} == set(EXPORT_FILES)
            assert model["size"] == SIZE
    listed = {model["source"]: model for model in api.get("/models")["models"]}
    assert set(listed) == {*sources[:2], plain, f"{plain}?..."}
    assert listed["org/model"]["revision"] == export_repo.resolve("main")


def test_when_a_retry_makes_sense_is_said_in_a_header_too(
    api: Api, threaded_hub: TestHub, export_repo: Repo
) -> None:
    threaded_hub.inject(RateLimited(300), origin="cdn", times=None)
    response = api.warm("org/model")
    assert response.status_code == 503
    assert response.json()["retry_after"] == 300
    assert response.headers["Retry-After"] == "300"


def test_a_model_that_is_not_cached_is_not_found(api: Api) -> None:
    response = api.request("GET", "/models/org/model")
    assert response.status_code == 404
    assert response.headers["Content-Type"].startswith("application/problem+json")
    problem = response.json()
    assert (problem["code"], problem["source"], problem["retryable"]) == (
        "NotFound",
        "org/model",
        False,
    )


def test_a_warm_that_waits_says_what_was_fetched_and_what_was_there(api: Api) -> None:
    for fetched, reused in ((SIZE, 0), (0, SIZE)):
        response = api.warm("org/model")
        assert response.status_code == 200
        (result,) = response.json()["results"]
        assert (result["bytes_fetched"], result["bytes_reused"]) == (fetched, reused)


def test_a_warm_of_several_tries_every_one(api: Api, threaded_hub: TestHub) -> None:
    plain = served(threaded_hub, "/export")
    response = api.warm("org/none", "org/model", plain, "x" * 200)
    assert response.status_code >= 400
    outcomes = response.json()["results"]
    assert [outcome.get("code") for outcome in outcomes] == [
        "NotFound",
        None,
        None,
        "InvalidSource",
    ]
    assert {model["source"] for model in api.get("/models")["models"]} == {"org/model", plain}


def test_a_source_that_is_named_twice_is_warmed_once(api: Api) -> None:
    assert len(api.warm("org/model", "org/model").json()["results"]) == 1
    with api.warming("org/model", "org/model") as lines:
        assert [event["event"] for event in lines].count("result") == 1


def test_a_stream_tells_each_step_and_ends_with_the_result(api: Api, threaded_hub: TestHub) -> None:
    with api.warming("org/model", "org/none") as lines:
        events = list(lines)
    mine = [event for event in events if event["source"] == "org/model"]
    *progress, result = mine
    assert {event["event"] for event in progress} == {"progress"}
    assert result["event"] == "result"
    assert result["bytes_fetched"] == SIZE
    for name, path in EXPORT_FILES.items():
        done = [e["done"] for e in progress if e["file"] == name and e["state"] == "fetching"]
        assert done == sorted(done)
        assert done[-1] == path.stat().st_size
    assert [e["state"] for e in progress if e["file"] is None][-2:] == ["publishing", "done"]
    (problem,) = [event for event in events if event["source"] == "org/none"]
    assert (problem["event"], problem["code"]) == ("problem", "NotFound")


@pytest.mark.parametrize("streams", [True, False], ids=["streaming", "waiting"])
async def test_a_client_that_goes_away_ends_what_only_it_waited_for(
    daemon: DaemonProcess, threaded_hub: TestHub, streams: bool
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate, after=1000), path=URL, origin="cdn", times=None)
    connector = aiohttp.UnixConnector(str(daemon.socket_dir / "craftcache.sock"))
    headers = {"Accept": "application/x-ndjson"} if streams else {}
    async with aiohttp.ClientSession("http://craftcached", connector=connector) as session:
        asked = asyncio.create_task(
            session.post("/v1/warm", json={"sources": ["org/model"]}, headers=headers)
        )
        await gate.reached.wait()
        if streams:
            (await asked).close()
        else:
            asked.cancel()
            await asyncio.wait([asked])
        stalled = matching(URL, origin="cdn")
        ended = await threaded_hub.wait_for_request(
            lambda request: stalled(request) and request.done
        )
        assert ended.bytes_sent < EXPORT_FILES["state_dict.bin"].stat().st_size
    gate.open()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"org/model"',
        b"\xff\xfe",
        b"{}",
        b'{"sources": []}',
        b'{"sources": "org/model"}',
        b'{"sources": [1]}',
        b'{"sources": ["org/model"], "files": "state_dict.bin"}',
        b'{"sources": ["org/model"], "files": [null]}',
        b'{"sources": ["org/model"], "wait": "no"}',
        b'{"sources": [%s]}' % b",".join([b'"org/model"'] * 257),
        b"[" * 100_000,
    ],
    ids=lambda body: body[:40].decode("ascii", "replace"),
)
def test_a_malformed_body_is_refused_with_words(idle: Api, body: bytes) -> None:
    response = idle.request("POST", "/warm", content=body)
    assert response.status_code == 400, response.text
    problem = response.json()
    assert problem["code"] == "InvalidSource"
    assert problem["hint"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("PUT", "/health", 405), ("POST", "/models/org/model", 405)],
)
def test_what_the_interface_does_not_have_is_a_problem_too(
    idle: Api, method: str, path: str, status: int
) -> None:
    response = idle.request(method, path)
    assert response.status_code == status
    assert response.headers["Content-Type"].startswith("application/problem+json")
    problem = response.json()
    assert problem["status"] == status
    assert problem["retryable"] is False
    assert from_problem(problem).message


def test_a_body_that_is_too_large_is_refused(idle: Api) -> None:
    body = json.dumps({"sources": ["x" * 300_000]}).encode()
    response = idle.request("POST", "/warm", content=body)
    assert response.status_code == 413
    assert from_problem(response.json()).message


def test_nothing_is_queued_if_one_source_is_malformed(api: Api, threaded_hub: TestHub) -> None:
    response = api.warm("org/model", "../x", wait=False)
    assert response.status_code == 400
    assert api.get("/status")["queued"] == 0
    assert threaded_hub.requests == []


def test_many_clients_at_once_are_all_answered(api: Api, daemon: DaemonProcess) -> None:
    async def ask() -> list[int]:
        connector = aiohttp.UnixConnector(str(daemon.socket_dir / "craftcache.sock"), limit=0)
        async with aiohttp.ClientSession("http://craftcached", connector=connector) as session:

            async def one(path: str) -> int:
                async with session.get(path) as answer:
                    await answer.read()
                    return answer.status

            paths = ["/v1/health", "/v1/status", "/v1/models", "/v1/models/org/model"] * 50
            return await asyncio.gather(*map(one, paths))

    api.warm("org/model")
    assert asyncio.run(ask()) == [200] * 200


# --- Who may -----------------------------------------------------------------------------------

NOBODY = 65534

AS_NOBODY = """
import http.client, json, os, socket, sys

path, method, target, body, *groups = sys.argv[1:]
# The interpreter may be one that only root can start, so rights are dropped inside it.
os.setgroups([int(gid) for gid in groups])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
connection = http.client.HTTPConnection("craftcached")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(path)
connection.request(method, target, body or None)
answer = connection.getresponse()
print(json.dumps([answer.status, json.loads(answer.read())]))
"""


def as_nobody(
    socket_dir: Path, method: str, target: str, body: str = "", groups: tuple[int, ...] = ()
) -> tuple[int, dict[str, Any]]:
    """Ask as another user, in a process of that user's own."""
    socket = str(socket_dir / "craftcache.sock")
    run = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, socket, method, target, body, *map(str, groups)],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    status, answer = json.loads(run.stdout)
    return status, answer


@pytest.fixture
def group() -> grp.struct_group:
    """A group of this machine that neither root nor nobody is in."""
    return next(g for g in grp.getgrall() if g.gr_gid not in (0, NOBODY))


@pytest.fixture
def shared_api(
    inspected: Path, threaded_hub: TestHub, export_repo: Repo, group: grp.struct_group
) -> Iterator[Api]:
    """A daemon that every user may connect to, with org/model in its cache."""
    if os.geteuid() != 0:
        pytest.skip("only root can ask as another user")
    inspected.chmod(0o755)
    with ExitStack() as stack:
        running = stack.enter_context(
            DaemonProcess(
                inspected,
                *("--admin-group", group.gr_name),
                HF_ENDPOINT=threaded_hub.endpoint,
                CRAFTCACHE_ADMIN_SOCKET_MODE="666",
            )
        )
        api = stack.enter_context(Api(running.socket_dir))
        api.warm("org/model")
        yield api


def test_only_administrators_may_remove(
    shared_api: Api, inspected: Path, group: grp.struct_group
) -> None:
    removal = ("DELETE", "/v1/models/org%2Fmodel", "")
    status, problem = as_nobody(inspected / "run", *removal)
    assert (status, problem["code"]) == (403, "PolicyDenied")
    assert problem["source"] == "org/model"
    assert group.gr_name in problem["hint"]
    assert len(shared_api.get("/models")["models"]) == 1
    status, answer = as_nobody(inspected / "run", *removal, groups=(group.gr_gid,))
    assert (status, answer) == (
        200,
        {"source": "org/model", "freed_bytes": SIZE, "was_cached": True},
    )
    assert shared_api.get("/models")["models"] == []


@pytest.mark.parametrize("target", ["/v1/verify", "/v1/evict"])
def test_only_administrators_may_verify_and_evict(
    shared_api: Api, inspected: Path, group: grp.struct_group, target: str
) -> None:
    status, problem = as_nobody(inspected / "run", "POST", target, "")
    assert (status, problem["code"]) == (403, "PolicyDenied")
    status, _ = as_nobody(inspected / "run", "POST", target, "", groups=(group.gr_gid,))
    assert status == 200


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/v1/health", ""),
        ("GET", "/v1/status", ""),
        ("GET", "/v1/models/org/model", ""),
        ("POST", "/v1/warm", '{"sources": ["org/model"]}'),
    ],
)
def test_anybody_who_may_connect_may_look_and_warm(
    shared_api: Api, inspected: Path, method: str, target: str, body: str
) -> None:
    status, _ = as_nobody(inspected / "run", method, target, body)
    assert status == 200


@pytest.fixture(scope="module")
def idle() -> Iterator[Api]:
    """A daemon for requests that come to nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="cc-") as base,
        DaemonProcess(Path(base), HF_ENDPOINT="http://127.0.0.1:9") as running,
        Api(running.socket_dir) as api,
    ):
        yield api
