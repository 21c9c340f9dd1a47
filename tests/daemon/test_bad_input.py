"""What bad input gets: one error, the same however one asks, and nothing left behind."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest
from click.testing import CliRunner

from craftcache import Client
from craftcache.cli.app import main
from craftcache.errors import CraftcacheError, from_problem
from tests.support.api import Api
from tests.support.checkpoints import saved
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import Data, FlipBit, Redirect, Status, TestHub, Truncate, hub_in_thread

GOOD = saved({"best_state": {}})
HOSTS = "127.0.0.1"


class RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("false",)


UNSAFE = saved({"best_state": RunsCode()})


@dataclass(frozen=True)
class Bad:
    """A request that must fail.

    Attributes:
        source: To warm.
        code: Of the error.
        says: A word of its message.
        files: Of the source; none for all.
        shown: The source as the error names it, where that is not as it was given.
        retryable: Whether the error says that the same request may succeed later; None where
            that is for each side to judge.
    """

    source: str
    code: str
    says: str = ""
    files: tuple[str, ...] = ()
    shown: str | None = None
    retryable: bool | None = False


Case: TypeAlias = Callable[[TestHub], Bad]


def no_repository(_: TestHub) -> Bad:
    return Bad("org/none", "NotFound", "no such repository")


def no_revision(hub: TestHub) -> Bad:
    hub.repo("org/revision").commit(EXPORT_FILES)
    return Bad("org/revision@none", "NotFound", "none")


def no_file(hub: TestHub) -> Bad:
    hub.repo("org/nofile").commit({"README.md": b"#"})
    return Bad("org/nofile", "NotFound", "state_dict.bin")


def half_an_export(hub: TestHub) -> Bad:
    hub.repo("org/half").commit({"state_dict.bin": GOOD})
    return Bad("org/half", "NotFound", "compression_state_dict.bin")


def gated(hub: TestHub) -> Bad:
    hub.repo("org/gated", gated=True).commit(EXPORT_FILES)
    return Bad("org/gated", "AccessDenied", "gated")


def private(hub: TestHub) -> Bad:
    hub.repo("org/private", private=True).commit(EXPORT_FILES)
    return Bad("org/private", "NotFound", "private")


def malformed(_: TestHub) -> Bad:
    return Bad("a/b/c", "InvalidSource", "Hub id")


def malformed_revision(_: TestHub) -> Bad:
    return Bad("org/name@../x", "InvalidSource", "revision")


def climbing_filename(_: TestHub) -> Bad:
    return Bad("org/revision", "InvalidSource", "../x", files=("../x",))


def absolute_filename(_: TestHub) -> Bad:
    return Bad("org/revision", "InvalidSource", "/etc/passwd", files=("/etc/passwd",))


def unknown_scheme(_: TestHub) -> Bad:
    return Bad("ftp://host/model.th", "InvalidSource", "scheme")


def url_without_host(_: TestHub) -> Bad:
    return Bad("https:///model.th", "InvalidSource", "host")


def plain_http(_: TestHub) -> Bad:
    return Bad("http://127.0.0.2:1/model.th", "PolicyDenied", "https://")


def redirect_to_plain_http(hub: TestHub) -> Bad:
    hub.inject(Redirect("http://127.0.0.2:1/model.th"), path="/there.th", times=None)
    return Bad(hub.cdn_url("/there.th"), "PolicyDenied", "https://")


def flipped_lfs_bit(hub: TestHub) -> Bad:
    hub.repo("org/flipped").commit(EXPORT_FILES)
    hub.inject(FlipBit(5000), path="*org/flipped*/state_dict.bin", origin="cdn", times=None)
    return Bad("org/flipped", "IntegrityError", "sha256")


def flipped_small_bit(hub: TestHub) -> Bad:
    files = {"state_dict.bin": GOOD, "compression_state_dict.bin": saved({})}
    hub.repo("org/small").commit(files, lfs=())
    hub.inject(FlipBit(500), path="/org/small/*/state_dict.bin", origin="hub", times=None)
    return Bad("org/small", "IntegrityError", "git-sha1")


def truncated_lfs(hub: TestHub) -> Bad:
    hub.repo("org/short").commit(EXPORT_FILES)
    hub.inject(Truncate(5000), path="*org/short*/state_dict.bin", origin="cdn", times=None)
    return Bad("org/short", "IntegrityError", "1336949", retryable=None)


def wrong_url_digest(hub: TestHub) -> Bad:
    hub.files["/digest.th"] = Data(GOOD)
    url = hub.cdn_url("/digest.th")
    return Bad(f"{url}#sha256={'0' * 64}", "IntegrityError", "sha256", shown=url)


def wrong_torch_hub_name(hub: TestHub) -> Bad:
    hub.files["/name-01234567.th"] = Data(GOOD)
    return Bad(hub.cdn_url("/name-01234567.th"), "IntegrityError", "01234567")


def no_such_url(hub: TestHub) -> Bad:
    return Bad(hub.cdn_url("/nothing.th"), "NotFound", "404")


def forbidden_url(hub: TestHub) -> Bad:
    hub.inject(Status(403), path="/secret.th", times=None)
    return Bad(hub.cdn_url("/secret.th"), "AccessDenied", "403")


def signed_url(hub: TestHub) -> Bad:
    url = hub.cdn_url("/signed.th")
    return Bad(f"{url}?sig=s3cret", "NotFound", "404", shown=f"{url}?...")


def no_checkpoint(hub: TestHub) -> Bad:
    hub.files["/page.th"] = Data(b"<!doctype html><title>Not here</title>")
    return Bad(hub.cdn_url("/page.th"), "NotACheckpoint")


def truncated_checkpoint(hub: TestHub) -> Bad:
    hub.files["/short.th"] = Data(EXPORT_FILES["state_dict.bin"].read_bytes()[:-1000])
    return Bad(hub.cdn_url("/short.th"), "NotACheckpoint")


def unsafe_pickle(hub: TestHub) -> Bad:
    hub.files["/unsafe.th"] = Data(UNSAFE)
    return Bad(hub.cdn_url("/unsafe.th"), "UnsafeCheckpoint", "system")


def unsafe_pickle_of_a_pair(hub: TestHub) -> Bad:
    files = {"state_dict.bin": GOOD, "compression_state_dict.bin": UNSAFE}
    hub.repo("org/unsafe").commit(files)
    return Bad("org/unsafe", "UnsafeCheckpoint", "system")


def refusing_hub(hub: TestHub) -> Bad:
    hub.inject(Status(503), path="/org/down/*", method="HEAD", times=None)
    return Bad("org/down", "Unavailable", "503", retryable=True)


CASES: list[Case] = [
    no_repository,
    no_revision,
    no_file,
    half_an_export,
    gated,
    private,
    malformed,
    malformed_revision,
    climbing_filename,
    absolute_filename,
    unknown_scheme,
    url_without_host,
    plain_http,
    redirect_to_plain_http,
    flipped_lfs_bit,
    flipped_small_bit,
    truncated_lfs,
    wrong_url_digest,
    wrong_torch_hub_name,
    no_such_url,
    forbidden_url,
    signed_url,
    no_checkpoint,
    truncated_checkpoint,
    unsafe_pickle,
    unsafe_pickle_of_a_pair,
    refusing_hub,
]


@dataclass(frozen=True)
class Node:
    """A machine with a daemon that has no token, and its Hub."""

    hub: TestHub
    daemon: DaemonProcess
    base: Path


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with (
        hub_in_thread() as hub,
        tempfile.TemporaryDirectory(prefix="cc-") as base,
        DaemonProcess(
            Path(base), "--insecure-host", HOSTS, HF_ENDPOINT=hub.endpoint, HF_TOKEN=""
        ) as daemon,
    ):
        yield Node(hub, daemon, Path(base))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.__name__)
def bad(request: pytest.FixtureRequest, node: Node) -> Bad:
    case: Case = request.param
    return case(node.hub)


Ask: TypeAlias = Callable[[Node, Bad], CraftcacheError]


def by_http(node: Node, bad: Bad) -> CraftcacheError:
    with Api(node.daemon.socket_dir) as api:
        response = api.warm(bad.source, files=bad.files)
    error = from_problem(response.json())
    assert response.status_code == error.http_status
    return error


def by_http_stream(node: Node, bad: Bad) -> CraftcacheError:
    with Api(node.daemon.socket_dir) as api, api.warming(bad.source, files=bad.files) as lines:
        *_, last = lines
    assert last["event"] == "problem"
    return from_problem(last)


def by_the_client(node: Node, bad: Bad) -> CraftcacheError:
    with node.daemon.client() as client:
        return raised_by(client, bad)


def without_the_daemon(node: Node, bad: Bad) -> CraftcacheError:
    with Client(socket_dir=node.base / "nothing", cache_dir=node.base / "own") as client:
        return raised_by(client, bad)


def raised_by(client: Client, bad: Bad) -> CraftcacheError:
    with pytest.raises(CraftcacheError) as raised:
        client.warm(bad.source, filenames=bad.files)
    return raised.value


def by_the_command_line(node: Node, bad: Bad) -> CraftcacheError:
    arguments = ["--socket-dir", str(node.daemon.socket_dir), "warm", "--json", bad.source]
    for name in bad.files:
        arguments += ["--file", name]
    result = CliRunner().invoke(main, arguments)
    error = from_problem(json.loads(result.stderr.splitlines()[-1]))
    assert result.exit_code == (75 if error.retryable else 1)
    return error


WAYS: list[Ask] = [
    by_http,
    by_http_stream,
    by_the_client,
    without_the_daemon,
    by_the_command_line,
]


@pytest.mark.parametrize("ask", WAYS, ids=lambda ask: ask.__name__)
def test_bad_input_gets_one_error_however_one_asks(
    node: Node, bad: Bad, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", node.hub.endpoint)
    monkeypatch.setenv("CRAFTCACHE_INSECURE_HOSTS", HOSTS)
    error = ask(node, bad)
    assert error.code == bad.code, str(error)
    assert error.source == (bad.shown or bad.source)
    assert bad.says in error.message
    assert error.hint
    assert bad.retryable in (None, error.retryable)
    assert "s3cret" not in str(error)
    for cache_dir in (node.daemon.cache_dir, node.base / "own"):
        assert left_behind(cache_dir) == []
    assert "s3cret" not in node.daemon.log


def left_behind(cache_dir: Path) -> list[str]:
    """What bears a final name, and what lies in staging but is no part to be resumed."""
    resumable = cache_dir / ".craftcache/staging/fetch"
    return [
        str(path.relative_to(cache_dir))
        for path in cache_dir.rglob("*")
        if not path.is_dir()
        and path.suffix not in (".lock", ".TAG")
        and path.name != "format.json"
        and path.parent.name != "index"
        and path.parent != resumable
    ]


def test_exit_codes_of_the_program_itself(node: Node) -> None:
    import subprocess
    import sys

    def run(*arguments: str) -> int:
        command = [sys.executable, "-m", "craftcache.cli", "--socket-dir"]
        command += [str(node.daemon.socket_dir), *arguments]
        return subprocess.run(command, capture_output=True, check=False).returncode

    node.hub.inject(Status(503), path="/org/away/*", method="HEAD", times=None)
    assert run("warm") == 2
    assert run("warm", "--no-such-option", "org/none") == 2
    assert run("warm", "org/none") == 1
    assert run("warm", "org/away") == 75
