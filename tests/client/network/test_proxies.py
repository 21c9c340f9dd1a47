"""One set of proxy rules, for metadata and bytes, for the daemon and for a worker alone."""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64encode
from typing import TYPE_CHECKING

import pytest

from craftcache.digests import Promise
from craftcache.errors import Unavailable
from craftcache.network.proxies import ProxyRules
from craftcached.fetch.faults import Fault
from craftcached.fetch.types import RemoteFile
from craftcached.fetch.xet import Xet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.client.network.conftest import World

Ask = "Callable[..., object]"

SCHEMES = ("http", "https")


@pytest.fixture(autouse=True)
def trusted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is asked here believes the servers' certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(world.certificate.path))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["{}_proxy", "{}_PROXY", "all_proxy", "ALL_PROXY"])
def test_every_variable_counts_for_all_that_is_sent(
    world: World,
    ask: Callable[..., object],
    name: str,
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variable = name.format(scheme.upper() if name.isupper() or "PROXY" in name else scheme)
    with world.proxy() as proxy:
        monkeypatch.setenv(variable, f"http://{proxy.place}")
        assert ask(scheme)
    assert {seen.method == "CONNECT" for seen in proxy.seen} == {scheme == "https"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_proxy_is_spoken_to_by_tls_where_it_wants_that(
    world: World, ask: Callable[..., object], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.tls_proxy() as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", f"https://{proxy.place}")
        assert ask(scheme)
    assert proxy.seen


def test_a_tls_proxy_that_is_not_believed_is_an_error_and_nothing_goes_past_it(
    world: World, ask: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with world.tls_proxy() as proxy:
        monkeypatch.setenv("http_proxy", f"https://{proxy.place}")
        with pytest.raises(Unavailable, match="certificate") as raised:
            ask("http")
    assert not raised.value.retryable
    assert (proxy.seen, world.hub.requests) == ([], [])


@pytest.mark.parametrize("written", ["{}", "//{}", "http://{}", "HTTP://{}/", "  http://{}\n"])
def test_a_proxy_may_be_written_without_a_scheme(
    world: World, ask: Callable[..., object], written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.proxy() as proxy:
        monkeypatch.setenv("https_proxy", written.format(proxy.place))
        assert ask("https")
    assert proxy.seen


@pytest.mark.parametrize(
    "written",
    [
        "socks5://me:s3cret@127.0.0.1:1080",
        "socks5h://127.0.0.1:1080",
        "socks4a://127.0.0.1:1080",
        "ftp://127.0.0.1",
        "http://:3128",
        "http://me:s3cret@127.0.0.1:port",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://a b:1",
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_aloud_and_nothing_goes_past_it(
    world: World, ask: Callable[..., object], written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", written)
    with pytest.raises(Unavailable, match="the proxy in ALL_PROXY") as raised:
        ask("http")
    assert not raised.value.retryable
    assert "s3cret" not in str(raised.value)
    assert world.hub.requests == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_a_proxy_is_told_user_and_password_and_the_origin_is_not(
    world: World,
    ask: Callable[..., object],
    scheme: str,
    is_tls: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = f"Basic {b64encode(b'me:p@ss/w0rd').decode()}"
    with (world.tls_proxy if is_tls else world.proxy)(authorization=wanted) as proxy:
        kind = "https" if is_tls else "http"
        monkeypatch.setenv("all_proxy", f"{kind}://me:p%40ss%2Fw0rd@{proxy.place}")
        assert ask(scheme)
    assert proxy.seen
    assert [
        r for r in world.hub.requests if "proxy-authorization" in map(str.lower, r.headers)
    ] == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_proxy_that_wants_another_password_is_said_to(
    world: World, ask: Callable[..., object], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.proxy(authorization="Basic another") as proxy:
        monkeypatch.setenv("all_proxy", f"http://me:s3cret@{proxy.place}")
        with pytest.raises(Unavailable, match="407: user or password") as raised:
            ask(scheme)
        assert f"http://{proxy.place}" in raised.value.message
    assert raised.value.hint is not None
    assert "all_proxy" in raised.value.hint
    assert not raised.value.retryable
    assert "s3cret" not in str(raised.value)
    assert world.hub.requests == []


def test_a_proxy_that_is_not_there_is_named_and_not_passed_by(
    world: World, ask: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.proxy() as proxy:
        place = proxy.place
    monkeypatch.setenv("http_proxy", f"http://me:s3cret@{place}")
    with pytest.raises(Unavailable, match=f"through the proxy http://{place}") as raised:
        ask("http")
    assert "s3cret" not in str(raised.value)
    assert world.hub.requests == []


@pytest.mark.parametrize(
    ("listed", "is_direct"),
    [
        ("*", True),
        ("localhost", True),
        ("LocalHost.", True),
        (".localhost", True),
        ("other, localhost:{port}", True),
        ("localhost:1", False),
        ("127.0.0.0/8", False),
        ("ocalhost", False),
    ],
)
def test_no_proxy_counts_for_all_that_is_sent(
    world: World,
    asker: str,
    tmp_path: Path,
    listed: str,
    is_direct: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.client.network.askers import ASKERS

    host, call = ASKERS[asker]
    port = world.routes[host, 80]
    world.routes["localhost", port] = port
    with world.proxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.place}")
        monkeypatch.setenv("no_proxy", listed.format(port=port))
        assert call(f"http://localhost:{port}", tmp_path / "staging", None)
    assert (proxy.seen == []) is is_direct


@pytest.mark.parametrize(
    ("listed", "url", "is_direct"),
    [
        ("example.com", "https://example.com/", True),
        ("example.com", "https://a.b.example.com/", True),
        ("example.com", "https://notexample.com/", False),
        (".example.com", "https://example.com/", True),
        ("*.example.com", "https://a.example.com/", True),
        ("EXAMPLE.com", "https://Example.COM./", True),
        ("a b\texample.com", "https://example.com/", True),
        ("example.com:443", "https://example.com/", True),
        ("example.com:443", "https://example.com:8443/", False),
        ("example.com:80", "http://example.com/", True),
        ("10.1.2.3", "http://10.1.2.3:81/", True),
        ("10.1.2.3:81", "http://10.1.2.3:81/", True),
        ("10.1.2.3:81", "http://10.1.2.3:82/", False),
        ("1.2.3", "http://0.1.2.3/", False),
        ("10.0.0.0/8", "http://10.200.1.1/", True),
        ("10.0.0.0/8", "http://11.0.0.1/", False),
        ("10.1.2.3/8", "http://10.200.1.1/", True),
        ("10.0.0.0/8:81", "http://10.0.0.1:81/", True),
        ("10.0.0.0/8", "http://[::ffff:10.0.0.1]/", True),
        ("::ffff:10.0.0.0/104", "http://10.0.0.1/", True),
        ("10.0.0.0/8", "http://ten.example.com/", False),
        ("::1", "http://[::1]:8080/", True),
        ("[::1]", "http://[::1]:8080/", True),
        ("[::1]:8080", "http://[::1]:8080/", True),
        ("[::1]:8080", "http://[::1]:8081/", False),
        ("fd00::/8", "http://[fd12::3]/", True),
        ("fd00::/8", "http://[fe80::3]/", False),
        ("0:0:0:0:0:0:0:1", "http://[::1]/", True),
        ("*", "http://anything/", True),
        ("", "http://anything/", False),
        (",, ,", "http://anything/", False),
        ("10.0.0.0/99", "http://10.0.0.1/", False),
    ],
)
def test_what_no_proxy_means(listed: str, url: str, is_direct: bool) -> None:
    rules = ProxyRules({"all_proxy": "http://proxy:3128", "NO_PROXY": listed})
    assert (rules.proxy_for(url) is None) is is_direct


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({"http_proxy": "a:1", "HTTP_PROXY": "b:1"}, "http://x/", "http://a:1"),
        ({"http_proxy": "a:1"}, "https://x/", None),
        ({"https_proxy": "a:1", "all_proxy": "b:1"}, "https://x/", "http://a:1"),
        ({"https_proxy": "a:1", "all_proxy": "b:1"}, "http://x/", "http://b:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "b:1"}, "https://x/", None),
        ({"all_proxy": "", "ALL_PROXY": "b:1"}, "https://x/", None),
        ({"HTTP_PROXY": "a:1", "REQUEST_METHOD": "GET"}, "http://x/", None),
        ({"http_proxy": "a:1", "REQUEST_METHOD": "GET"}, "http://x/", "http://a:1"),
        ({"http_proxy": "proxy"}, "http://x/", "http://proxy:1080"),
        ({"http_proxy": "http://proxy"}, "http://x/", "http://proxy:80"),
        ({"http_proxy": "https://proxy"}, "http://x/", "https://proxy:443"),
        ({"http_proxy": "[::1]:3128"}, "http://x/", "http://[::1]:3128"),
        ({"http_proxy": "http://a:1/path?x#y"}, "http://x/", "http://a:1"),
        ({"http_proxy": "a:1", "no_proxy": "", "NO_PROXY": "x"}, "http://x/", "http://a:1"),
        ({}, "http://x/", None),
    ],
)
def test_which_variable_counts(environment: dict[str, str], url: str, proxy: str | None) -> None:
    found = ProxyRules(environment).proxy_for(url)
    assert (found and found.url) == proxy


def test_a_password_is_shown_by_no_representation() -> None:
    rules = ProxyRules({"http_proxy": "http://me:s3cret@proxy:1"})
    proxy = rules.proxy_for("http://x/")
    assert proxy is not None
    assert "s3cret" not in repr(proxy) + proxy.url
    assert proxy.spelled == "http://me:s3cret@proxy:1"


def test_the_xet_client_is_given_the_same_rules_and_no_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    report = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    command = (sys.executable, "-c", report, str(tmp_path / "environment"))
    file = RemoteFile("source", "http://x/", Promise(), "k")
    asyncio.run(Xet(command, 10, ProxyRules()).fetch(file, tmp_path / "x", 1, lambda _: None))
    seen = json.loads((tmp_path / "environment").read_text())
    assert {n: v for n, v in seen.items() if n.lower().endswith("_proxy")} == {
        "http_proxy": "http://proxy:3128",
        "HTTP_PROXY": "http://proxy:3128",
        "https_proxy": "http://proxy:3128",
        "HTTPS_PROXY": "http://proxy:3128",
        "no_proxy": "localhost",
        "NO_PROXY": "localhost",
    }
    assert seen["NETRC"] == "/dev/null"


def test_the_xet_client_is_not_started_past_a_proxy_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1080")
    command = (sys.executable, "-c", "open(__import__('sys').argv[1], 'w')", str(tmp_path / "ran"))
    file = RemoteFile("source", "http://x/", Promise(), "k")
    with pytest.raises(Fault, match="socks5"):
        asyncio.run(Xet(command, 10, ProxyRules()).fetch(file, tmp_path / "x", 1, lambda _: None))
    assert not (tmp_path / "ran").exists()
