"""Users' URLs lead to public addresses only, those aside that the administrator excepts."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from craftcache.errors import PolicyDenied, Unavailable
from craftcache.network.addresses import is_public, literal_address
from craftcache.origins.policy import UrlPolicy
from craftcache.sources import UrlSource
from craftcached.fetch import Engine
from craftcached.fetch.faults import Fault
from craftcached.fetch.network import Network, PrivateAddressError, PublicResolver
from craftcached.warm.url_origin import UrlOrigin
from tests.client.network.servers import Proxy
from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.fetching import QUICK, Rig, cdn_file, rig_at
from tests.support.hub import Data, Redirect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.hub import TestHub

CONTENT = Data(b"inside the node's own network")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:93.184.216.34", True),
        ("::127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::93.184.216.34", True),
        ("[::1]", False),
        ("127.1", False),
        ("2130706433", False),
        ("0x7f.0.0.1", False),
        ("0177.0.0.1", False),
        ("127.0.0.1.", False),
        ("1572395042", True),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    literal = literal_address(address)
    assert literal is not None
    assert is_public(literal) is public


async def fetch(
    hub: TestHub,
    directory: Path,
    url: str,
    *,
    may_be_private: Callable[[str, int], bool] = lambda _host, _port: False,
) -> bytes:
    """Have an engine fetch what a user's URL names."""
    file = replace(cdn_file(hub, CONTENT), url=url, public_only=True)
    async with Engine(
        directory / "staging",
        QUICK,
        check_url=lambda _: None,
        may_be_private=may_be_private,
    ) as engine:
        return (await Rig(engine, directory).fetch(file)).path.read_bytes()


HOSTS = [
    "127.0.0.1",
    "127.0.0.2",
    "[::ffff:127.0.0.1]",
    "[::1]",
    "0.0.0.0",
    "localhost",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
]
"""Loopback, as a user may write it."""


@pytest.mark.parametrize("host", HOSTS)
async def test_loopback_is_refused_however_it_is_written(
    hub: TestHub, tmp_path: Path, host: str
) -> None:
    url = f"http://{host}:{urlsplit(hub.cdn).port}/w.bin"
    with pytest.raises(PolicyDenied, match="private, loopback or link-local") as raised:
        await fetch(hub, tmp_path, url)
    assert raised.value.hint is not None
    assert "private_hosts" in raised.value.hint
    assert hub.requests == []


@pytest.mark.parametrize("host", HOSTS)
async def test_a_redirect_leads_no_further_in(hub: TestHub, tmp_path: Path, host: str) -> None:
    """Not even from a server that is excepted."""
    inside = f"http://{host}:{urlsplit(hub.endpoint).port}/w.bin"
    hub.inject(Redirect(inside), path="/w.bin", times=None)
    with pytest.raises(PolicyDenied, match="private, loopback or link-local"):
        await fetch(hub, tmp_path, hub.cdn_url("/w.bin"), may_be_private=only(hub.cdn))
    assert {request.origin for request in hub.requests} == {"cdn"}


LINK_LOCAL = "http://169.254.169.254/latest/meta-data/w.bin"
"""Where clouds answer any process of a machine with its credentials."""

MAPPED = "http://[::ffff:169.254.169.254]/latest/meta-data/w.bin"


@pytest.mark.parametrize("inside", [LINK_LOCAL, MAPPED])
async def test_no_redirect_leads_to_the_clouds_own_answers(
    hub: TestHub, tmp_path: Path, inside: str
) -> None:
    hub.inject(Redirect(inside), path="/w.bin", times=None)
    with pytest.raises(PolicyDenied, match=re.escape("169.254.169.254")):
        await fetch(hub, tmp_path, hub.cdn_url("/w.bin"), may_be_private=only(hub.cdn))
    assert {request.origin for request in hub.requests} == {"cdn"}


@pytest.mark.parametrize("inside", [LINK_LOCAL, "http://localhost:{port}/w.bin"])
async def test_asking_whether_a_file_changed_leads_no_further_in_either(
    hub: TestHub, inside: str
) -> None:
    port = urlsplit(hub.endpoint).port
    hub.inject(Redirect(inside.format(port=port)), path="/w.bin", method="HEAD", times=None)
    hosts = frozenset({"127.0.0.1"})
    policy = AnyScheme(insecure_hosts=hosts, hub_endpoint="https://hub.corp")
    origin = UrlOrigin(UrlSource(hub.cdn_url("/w.bin")), policy)
    with pytest.raises(PolicyDenied, match="private, loopback or link-local"):
        await origin.etag("w.bin")
    assert [(request.origin, request.method) for request in hub.requests] == [("cdn", "HEAD")]


class AnyScheme(UrlPolicy):
    """Allows plain HTTP everywhere, so that only the address is left to refuse."""

    def check_url(self, url: str) -> None:
        """All may be requested."""


def only(place: str) -> Callable[[str, int], bool]:
    """An exception for one host and port."""
    excepted = urlsplit(place)
    return lambda host, port: (host, port) == (excepted.hostname, excepted.port)


async def connect(hub: TestHub, resolver: AbstractResolver, *, excepted: bool = False) -> int:
    """The status of one request to a name that ``resolver`` looks up, at the hub's port."""
    url = f"http://evil.example:{urlsplit(hub.cdn).port}/w.bin"
    async with Network(
        user_agent="test",
        connect_seconds=0.2,
        answer_seconds=5.0,
        may_be_private=lambda host, _port: excepted and host == "evil.example",
        resolver=resolver,
    ) as network:
        answer = await network.request("GET", url, {}, source="s", public_only=True)
        answer.release()
        return answer.status


async def test_the_connection_goes_to_the_very_address_that_was_looked_at(hub: TestHub) -> None:
    hub.files["/w.bin"] = CONTENT
    # The fake's answer is what is connected to ...
    assert await connect(hub, Rebinding(["127.0.0.1"]), excepted=True) == 200
    assert len(hub.requests) == 1
    # ... and nothing that a second question would bring.
    for answers in (
        [["127.0.0.1"]],
        [["::ffff:127.0.0.1"]],
        [["93.184.216.34", "127.0.0.1"], ["127.0.0.1"]],
        [["93.184.216.34"], ["127.0.0.1"]],
    ):
        with pytest.raises((PolicyDenied, Fault)):
            await connect(hub, Rebinding(*answers))
    assert len(hub.requests) == 1


async def test_what_is_excepted_by_name_may_be_anywhere(hub: TestHub, tmp_path: Path) -> None:
    url = f"http://localhost:{urlsplit(hub.cdn).port}/w.bin"
    got = await fetch(hub, tmp_path, url, may_be_private=lambda host, _: host == "localhost")
    assert got == CONTENT.data


async def test_files_of_the_configured_hub_may_be_anywhere_and_lend_no_connection(
    hub: TestHub, tmp_path: Path
) -> None:
    file = cdn_file(hub, CONTENT)
    async with rig_at(tmp_path) as rig:
        assert (await rig.fetch(file)).path.read_bytes() == CONTENT.data
        with pytest.raises(PolicyDenied):
            await rig.fetch(replace(file, key="other", public_only=True))


async def test_a_name_behind_a_proxy_is_the_proxys_to_look_up(
    threaded_hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = urlsplit(threaded_hub.cdn).port or 0
    with Proxy({("far.invalid", 80): port}) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.place}")
        assert await fetch(threaded_hub, tmp_path, "http://far.invalid/w.bin") == CONTENT.data
        with pytest.raises(PolicyDenied):
            await fetch(threaded_hub, tmp_path / "2", "http://169.254.169.254/w.bin")
    assert {seen.target for seen in proxy.seen} == {"http://far.invalid/w.bin"}


class Rebinding(AbstractResolver):
    """Answers something else each time."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: int = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self._answers.pop(0)
        ]

    async def close(self) -> None:
        pass


async def test_a_name_that_is_bound_anew_leads_nowhere_new() -> None:
    public, mapped = "93.184.216.34", "::ffff:10.0.0.1"
    inner = Rebinding([public, "127.0.0.1", mapped], ["127.0.0.1"], [mapped], [])
    resolver = PublicResolver(lambda _host, _port: False, inner)
    assert [each["host"] for each in await resolver.resolve("evil", 443)] == [public]
    for _ in range(2):
        with pytest.raises(PrivateAddressError):
            await resolver.resolve("evil", 443)
    assert await resolver.resolve("evil", 443) == []
    await resolver.close()


def test_whom_the_policy_excepts() -> None:
    policy = UrlPolicy(
        insecure_hosts=frozenset({"plain"}),
        hub_endpoint="https://hub.corp",
        private_hosts=frozenset({"store.corp"}),
    )
    excepted = [("plain", 1), ("store.corp", 443), ("store.corp", 8443), ("hub.corp", 443)]
    assert all(policy.may_be_private(*place) for place in excepted)
    others = [("hub.corp", 8080), ("localhost", 443), ("corp", 443), ("", 0)]
    assert not any(policy.may_be_private(*place) for place in others)
    policy.allow_private(frozenset())
    assert not policy.may_be_private("store.corp", 443)


@pytest.mark.parametrize("excepted", [False, True])
def test_the_daemon_goes_by_its_settings(base: Path, excepted: bool) -> None:
    arguments = ("--private-host", "localhost") if excepted else ()
    environment = {"CRAFTCACHE_INSECURE_HOSTS": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
    with DaemonProcess(base, *arguments, **environment) as daemon, Api(daemon.socket_dir) as api:
        problem = api.warm("https://localhost:9/w.th").json()
        assert problem["code"] == (Unavailable if excepted else PolicyDenied).__name__, problem
        problem = api.warm("https://169.254.169.254/latest/w.th").json()
        assert problem["code"] == "PolicyDenied"
        assert not problem["retryable"]


@pytest.mark.parametrize("denied", ["https://models.example/*", "org/secret*", "*"])
def test_what_is_denied_is_not_fetched_whatever_is_allowed(base: Path, denied: str) -> None:
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    sources = {
        "https://models.example/*": "https://models.example/a.th",
        "org/secret*": "Org/Secret-model",
        "*": "org/any",
    }
    with (
        DaemonProcess(base, "--allow", "*", "--deny", denied, **environment) as daemon,
        Api(daemon.socket_dir) as api,
    ):
        problem = api.warm(sources[denied]).json()
    assert problem["code"] == "PolicyDenied"
    assert "deny" in problem["hint"]


@pytest.mark.parametrize("name", ["localhost", "cafe", "face.feed", "a.example", "1.2.3.4.5", ""])
def test_names_are_no_addresses(name: str) -> None:
    assert literal_address(name) is None
