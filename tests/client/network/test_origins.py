"""What origins answer and are told: redirects, codings, tokens, and nobody's secrets."""

from __future__ import annotations

import codecs
import gzip
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from craftcache.errors import AccessDenied, CraftcacheError, IntegrityError, Unavailable
from craftcache.network.content_encoding import check_uncompressed
from craftcache.network.locations import redirect_target
from craftcache.network.token import authorization, find_token, read_token
from craftcached.settings_reading import load_settings
from tests.client.network.askers import ASKERS, CONTENT, FILE, PATH, REPO
from tests.support.hub import Data, Redirect, Status, WithHeaders

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.client.network.conftest import World

TOKEN = "hf_s3cretOfTheDaemon"

BYTES = ("daemon-bytes", "worker-bytes")
HUB = ("metadata", "listing")


@pytest.fixture
def ask(asker: str, world: World, tmp_path: Path) -> Callable[..., object]:
    """Ask with nothing between."""
    host, call = ASKERS[asker]
    base = world.hub.endpoint if host == "hub.test" else world.hub.cdn

    def asking(token: str | None = None) -> object:
        return call(base, tmp_path / "staging", token)

    return asking


# -- .netrc ------------------------------------------------------------------------------------


@pytest.fixture
def netrc(isolated_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with a password for loopback, and one for all the world."""
    path = isolated_environment / ".netrc"
    path.write_text(
        "machine 127.0.0.1 login me password s3cret\ndefault login me password s3cret\n"
    )
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))


@pytest.mark.usefixtures("netrc")
def test_netrc_goes_to_nobody(world: World, ask: Callable[..., object]) -> None:
    assert ask()
    assert world.hub.requests
    assert [request.authorization for request in world.hub.requests if request.authorization] == []


@pytest.mark.usefixtures("netrc")
def test_netrc_beside_a_token_breaks_nothing_and_only_the_token_is_sent(
    world: World, asker: str, ask: Callable[..., object]
) -> None:
    world.hub.grant(TOKEN, REPO)
    assert ask(TOKEN)
    sent = {request.authorization for request in world.hub.requests}
    assert sent == ({f"Bearer {TOKEN}"} if asker != "validator" else {None})


# -- redirects ---------------------------------------------------------------------------------


@pytest.mark.parametrize("asker", [*BYTES, "validator"])
@pytest.mark.parametrize(
    "location",
    [
        b"/a b/%s.bin",
        "/käse/%s.bin".encode(),
        b"  /plain/%s.bin \t",
        b"/already%%20encoded/%s.bin",
        b'/"quoted"<angle>/%s.bin',
        b"/with/../steps/%s.bin",
        b"/fragment/%s.bin#part",
        b"//{host}/network path/%s.bin",
        b"http://{host}/all of it/%s.bin",
    ],
)
def test_a_location_is_followed_however_it_is_written(
    world: World, ask: Callable[..., object], location: bytes
) -> None:
    host = world.hub.cdn.partition("//")[2].encode()
    raw = location.replace(b"{host}", host) % b"there"
    given = raw.decode("utf-8", "surrogateescape")

    world.hub.inject(Redirect(given), path=PATH, method=None, times=None)
    expected = redirect_target(world.hub.cdn + PATH, raw, source="")
    assert expected.isascii()
    target = expected.removeprefix(world.hub.cdn)

    world.hub.files[unquote(target)] = Data(CONTENT)
    assert ask()
    assert {r.path for r in world.hub.requests} == {PATH, unquote(target)}


@pytest.mark.parametrize(
    ("base", "location", "target"),
    [
        ("https://a/b/c?d", b"e f", "https://a/b/e%20f"),
        ("https://a/b", "/é".encode(), "https://a/%C3%A9"),
        ("https://a/b", b"/\xe9", "https://a/%E9"),
        ("https://a/b", b"/x%2Fy%zz?sig=a%2Bb+c&d=/e", "https://a/x%2Fy%zz?sig=a%2Bb+c&d=/e"),
        ("https://a/b", b"?x=1", "https://a/b?x=1"),
        ("https://a/b", b"/\r\tx", "https://a/%0D%09x"),
        ("https://a/b", b"http://[::1]:8/x", "http://[::1]:8/x"),
    ],
)
def test_where_a_location_leads(base: str, location: bytes, target: str) -> None:
    assert redirect_target(base, location, source="s") == target


@pytest.mark.parametrize("asker", [*BYTES, "validator"])
@pytest.mark.parametrize(
    "location", ["http://[", "http://127.0.0.1:x/", "ftp://127.0.0.1/x", "https://", "file:///etc"]
)
def test_a_location_that_leads_nowhere_is_the_publishers_to_mend(
    world: World, ask: Callable[..., object], location: str
) -> None:
    world.hub.inject(Redirect(location), path=PATH, method=None, times=None)
    with pytest.raises(Unavailable, match="redirects to") as raised:
        ask()
    assert not raised.value.retryable


@pytest.mark.parametrize("asker", BYTES)
def test_a_token_stays_where_it_belongs_when_a_redirect_leads_away(
    world: World, ask: Callable[..., object]
) -> None:

    there = world.hub.endpoint + PATH  # another port is another origin
    world.hub.inject(Redirect(there), path=PATH, origin="cdn", times=None)
    world.hub.inject(
        Redirect(world.hub.cdn + "/back"), path=PATH, origin="hub", times=None, method=None
    )
    world.hub.files["/back"] = Data(CONTENT)
    assert ask(TOKEN)
    assert {r.authorization for r in world.hub.matching(origin="hub")} == {None}
    assert {r.authorization for r in world.hub.matching("/back")} == {f"Bearer {TOKEN}"}


def test_a_hub_behind_a_cache_that_rewrites_paths_is_understood(
    world: World, tmp_path: Path
) -> None:
    """Redirects within the Hub's own origin are followed; the one that names the digest is it."""

    once = f"/{REPO}/resolve/main/{FILE}"
    moved = f"/{REPO}/resolve/{'0' * 40}/{FILE}"
    world.hub.inject(
        Redirect(once + "?again"),
        WithHeaders({"X-Repo-Commit": "a" * 40}),
        path=once,
        method="HEAD",
    )
    assert moved != once
    assert ASKERS["metadata"][1](world.hub.endpoint, tmp_path, None) == len(CONTENT)


# -- codings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("asker", BYTES)
@pytest.mark.parametrize(
    "value", ["aws-chunked", "identity", "", "Identity, AWS-Chunked", " , ", "none", "binary"]
)
def test_an_encoding_that_is_none_changes_nothing(
    world: World, ask: Callable[..., object], value: str
) -> None:
    world.hub.inject(WithHeaders({"Content-Encoding": value}), path=PATH, times=None)
    assert ask() == CONTENT


@pytest.mark.parametrize("asker", BYTES)
@pytest.mark.parametrize("value", ["gzip", "GZIP", "aws-chunked, gzip", "br", "zstd", "x-unknown"])
def test_a_compressed_body_is_refused_in_words(
    world: World, ask: Callable[..., object], value: str
) -> None:
    world.hub.files[PATH] = Data(gzip.compress(CONTENT))
    world.hub.inject(WithHeaders({"Content-Encoding": value}), path=PATH, times=None)
    with pytest.raises(IntegrityError, match="compressed") as raised:
        ask()
    assert raised.value.source == "source"


def test_several_headers_say_together_what_a_body_is() -> None:
    check_uncompressed(["identity", "aws-chunked"], url="https://a/", source="s")
    with pytest.raises(IntegrityError, match="gzip"):
        check_uncompressed(["identity", "aws-chunked", "gzip"], url="https://a/", source="s")


# -- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("asker", HUB)
def test_an_invalid_token_is_said_to_be_invalid(world: World, ask: Callable[..., object]) -> None:
    with pytest.raises(AccessDenied, match="token is invalid or expired") as raised:
        ask("hf_outdated")
    assert "hf_outdated" not in str(raised.value)


@pytest.mark.parametrize("asker", BYTES)
def test_a_token_that_expired_between_metadata_and_bytes_is_said_to_be_invalid(
    world: World, ask: Callable[..., object]
) -> None:
    world.hub.inject(Status(401), path=PATH, times=None)
    with pytest.raises(AccessDenied, match="token is invalid or expired") as raised:
        ask("hf_outdated")
    assert "hf_outdated" not in str(raised.value)


@pytest.mark.parametrize("asker", HUB)
def test_a_token_that_no_header_can_carry_is_named_and_not_shown(
    world: World, ask: Callable[..., object]
) -> None:
    for token in ("hf_schl\u00fcssel", "hf_two words", "hf_\udcff", "hf_\x00x"):
        with pytest.raises(AccessDenied, match="token is invalid") as raised:
            ask(token)
        assert token not in str(raised.value)
    assert world.hub.requests == []


WRITTEN: dict[str, bytes] = {
    "plain": TOKEN.encode(),
    "newline": f"{TOKEN}\n".encode(),
    "windows": f"{TOKEN}\r\n".encode(),
    "space": f"  {TOKEN}\t\n\n".encode(),
    "utf-8 mark": codecs.BOM_UTF8 + f"{TOKEN}\n".encode(),
    "utf-16": codecs.BOM_UTF16_LE + f"{TOKEN}\r\n".encode("utf-16-le"),
    "utf-16 big": codecs.BOM_UTF16_BE + f"{TOKEN}\r\n".encode("utf-16-be"),
    "quotes": f'"{TOKEN}"\n'.encode(),
    "no-break space": f"\u00a0{TOKEN}\u200b".encode(),
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN.keys())
def test_a_token_in_a_file_is_read_as_it_was_meant(
    written: bytes, tmp_path: Path, isolated_environment: Path
) -> None:
    path = tmp_path / "hf-token"
    path.write_bytes(written)
    assert read_token(path) == TOKEN
    settings = load_settings(
        {}, environment={"CREDENTIALS_DIRECTORY": str(tmp_path), "HOME": str(tmp_path)}
    )
    assert settings.hub_token == TOKEN
    assert authorization(settings.hub_token) == {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("written", [w for k, w in WRITTEN.items() if not k.startswith("utf-16")])
def test_a_token_in_the_environment_is_read_as_it_was_meant(
    written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", written.decode())
    assert find_token() == TOKEN


ASK_AS_NOBODY = """
import os
from huggingface_hub import get_token  # imported while this user may read the libraries
from craftcache.network.token import find_token
os.setgroups([])
os.setuid(65534)
print(find_token())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_token_that_this_user_may_not_read_is_none(tmp_path: Path) -> None:
    """As where HOME is another user's."""
    (tmp_path / "token").write_text(TOKEN)
    tmp_path.chmod(0o700)
    asked = subprocess.run(
        [sys.executable, "-c", ASK_AS_NOBODY],
        env=os.environ | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout == "None\n", asked.stderr


def test_an_empty_token_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hf-token"
    path.write_bytes(codecs.BOM_UTF8 + b"\n")
    assert read_token(path) is None
    monkeypatch.setenv("HF_TOKEN", " \n")
    assert find_token() is None
    assert authorization(None) == {}


# -- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("asker", [*BYTES, "validator"])
@pytest.mark.parametrize("failing", [None, Status(500), Status(403), Status(404)])
def test_a_signature_is_logged_by_nobody_and_in_no_error(
    world: World,
    asker: str,
    tmp_path: Path,
    failing: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also not by the HTTP libraries, at the level at which programs are usually run."""

    caplog.set_level(logging.INFO)
    world.hub.inject(Redirect("/signed.bin?sig=s3cret#s3cret"), path=PATH, method=None, times=None)
    world.hub.files["/signed.bin"] = Data(CONTENT)
    if failing is not None:
        world.hub.inject(failing, path="/signed.bin", method=None, times=None)
    shown = ""
    try:
        ASKERS[asker][1](world.hub.cdn, tmp_path / "staging", None)
    except CraftcacheError as error:
        shown = str(error) + repr(error.to_problem())
    assert world.hub.count(None, "/signed.bin")
    assert "s3cret" not in shown + caplog.text
