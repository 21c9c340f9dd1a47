"""The command line, each time as a process of its own, against a real daemon and hub."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache import CraftcacheError, Unavailable
from craftcache.admin import AdminClient
from craftcache.cli import main
from craftcache.version import VERSION
from daemons import EXPORT, EXPORT_FILES, DaemonProcess
from hub import Gate, OnDisk, RateLimited, Stall, TestHub, hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

CRAFTCACHE = Path(sys.executable).with_name("craftcache")
SIZE = sum(path.stat().st_size for path in EXPORT_FILES.values())


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def problem(self) -> Any:
        return json.loads(self.err)


@dataclass(frozen=True)
class Node:
    """A daemon that has ``org/model`` warm, and the hub that it came from."""

    hub: TestHub
    daemon: DaemonProcess

    def run(self, *arguments: str, **environment: str) -> Ran:
        """Run the command with this node's directories."""
        return run(
            *("--socket-dir", str(self.daemon.socket_dir)),
            *("--cache-dir", str(self.daemon.cache_dir)),
            *arguments,
            HF_ENDPOINT=self.hub.endpoint,
            **environment,
        )


def run(*arguments: str, **environment: str) -> Ran:
    done = subprocess.run(
        [CRAFTCACHE, *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@contextmanager
def running_node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="cc-") as base, hub_in_thread() as hub:
        hub.repo("org/model").commit(EXPORT_FILES)
        arguments = ("--insecure-host", "127.0.0.1")
        with DaemonProcess(Path(base), *arguments, HF_ENDPOINT=hub.endpoint) as daemon:
            with daemon.client() as client:
                client.warm("org/model")
            yield Node(hub, daemon)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Shared by all tests here, so each uses repositories of its own for what it changes."""
    with running_node() as running:
        yield running


@pytest.fixture
def commit(node: Node) -> str:
    """The revision of ``org/model``."""
    with node.daemon.client() as client:
        return next(m.revision for m in client.models() if m.source == "org/model")


# -- the command as such -----------------------------------------------------------------------


def test_help_and_version() -> None:
    listed = run("--help")
    assert listed.code == 0
    commands = re.findall(r"^  ([a-z]+)  +[A-Z]", listed.out, re.MULTILINE)
    assert commands == sorted(main.commands)
    assert "..." not in listed.out.partition("Commands:")[2]
    assert run("--version").out == f"craftcache {VERSION}\n"


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, craftcache.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not {"torch", "rich", "httpx", "huggingface_hub", "aiohttp"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("warm",),
        ("warm", "--frobnicate", "org/model"),
        ("warm", "--detach", "--check", "org/model"),
        ("warm", "--check", "--timeout", "1", "org/model"),
        ("warm", "--timeout", "0", "org/model"),
        ("load", "org/model", "--part", "drums"),
        ("run",),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert ran.err.startswith("Usage: ")
    assert ran.out == ""


# -- warm --------------------------------------------------------------------------------------


def test_warm_says_what_came_and_prints_plain_lines(node: Node) -> None:
    commit = node.hub.repo("org/plain").commit(EXPORT_FILES)
    ran = node.run("warm", "org/plain")
    assert ran.code == 0
    assert ran.out.startswith(f"org/plain: warm at {commit[:12]}, ")
    assert ran.out.endswith(" by daemon\n")
    lines = ran.err.splitlines()
    assert "org/plain: done" in lines
    assert all(line.startswith("org/plain") for line in lines)
    assert "\x1b" not in ran.err


def test_warm_shows_bars_on_a_terminal(node: Node) -> None:
    node.hub.repo("org/bars").commit({"state_dict.bin": EXPORT_FILES["state_dict.bin"]})
    shown = run_on_terminal(node, "warm", "--file", "state_dict.bin", "org/bars")
    assert "org/bars state_dict.bin" in shown
    assert "MB" in shown
    assert "\x1b[" in shown


def test_warm_again_fetches_nothing(node: Node) -> None:
    ran = node.run("warm", "org/model", "--json")
    assert ran.code == 0
    assert ran.err == ""
    [result] = ran.json["results"]
    assert result["source"] == "org/model"
    assert (result["bytes_fetched"], result["bytes_reused"]) == (0, SIZE)
    assert result["served_by"] == "daemon"


def test_warm_tries_every_source_and_lists_failures_last(node: Node) -> None:
    ran = node.run("warm", "org/absent", "org/model", "no such id")
    assert ran.code == 1
    assert ran.out.startswith("org/model: warm at ")
    assert ran.err.splitlines()[-4::2] == [
        "craftcache: org/absent: no such repository, or a private one that needs a token",
        "craftcache: no such id: malformed Hub id",
    ]


def test_warm_in_json_gives_results_and_problems(node: Node) -> None:
    ran = node.run("warm", "--json", "org/model", "org/absent")
    assert ran.code == 1
    assert [result["source"] for result in ran.json["results"]] == ["org/model"]
    assert (ran.problem["code"], ran.problem["source"]) == ("NotFound", "org/absent")


def test_warm_of_named_files_fetches_no_others(node: Node) -> None:
    node.hub.repo("org/one").commit({**EXPORT_FILES, "config.json": b"{}"})
    ran = node.run("warm", "--json", "--file", "compression_state_dict.bin", "org/one")
    assert ran.code == 0
    listed = node.run("show", "org/one", "--json").json
    assert [file["filename"] for file in listed["files"]] == ["compression_state_dict.bin"]
    assert node.hub.count("GET", "/org/one/*/state_dict.bin") == 0


def test_warm_gives_up_after_its_timeout_with_75(node: Node) -> None:
    gate = Gate()
    node.hub.repo("org/slow").commit(EXPORT_FILES)
    node.hub.inject(Stall(gate), path="/org/slow/*", method="HEAD", times=None)
    ran = node.run("warm", "--timeout", "0.2", "org/slow")
    gate.open()
    assert ran.code == 75
    assert ran.err.splitlines()[-2:] == [
        "craftcache: org/slow: not warm after 0.2 s",
        "Try again, or leave it to the daemon with --detach",
    ]


def test_what_a_retry_may_mend_exits_with_75(node: Node) -> None:
    node.hub.repo("org/busy").commit(EXPORT_FILES)
    rule = node.hub.inject(RateLimited(), path="/org/busy/*", method="HEAD", times=None)
    ran = node.run("warm", "--json", "org/busy")
    rule.cancel()
    assert ran.problem["retryable"]
    assert ran.code == 75
    mixed = node.run("warm", "org/absent", "org/model")
    assert mixed.code == 1


def test_warm_detached_is_done_by_the_daemon(node: Node) -> None:
    gate = Gate()
    node.hub.repo("org/later").commit(EXPORT_FILES)
    node.hub.inject(Stall(gate), path="/org/later/*", method="HEAD", times=None)
    ran = node.run("warm", "--detach", "org/later")
    assert (ran.code, ran.out, ran.err) == (0, "org/later: queued\n", "")
    gate.reached.wait_blocking()  # by the daemon alone: the command has ended
    gate.open()
    with node.daemon.client() as client:
        assert client.load("org/later").served_by == "daemon"
    assert node.hub.count("GET", "/lfs/org/later/*/state_dict.bin") == 0  # org/model has the bytes


def test_a_detached_warm_of_a_malformed_source_queues_nothing(node: Node) -> None:
    before = node.run("status", "--json").json["queued"]
    ran = node.run("warm", "--detach", "--json", "org/model2", "no such id")
    assert ran.code == 1
    assert ran.problem["code"] == "InvalidSource"
    assert node.run("status", "--json").json["queued"] == before


def test_check_answers_by_the_exit_code(node: Node) -> None:
    warm = node.run("warm", "--check", "org/model")
    assert (warm.code, warm.out) == (0, "org/model: warm\n")
    mixed = node.run("warm", "--check", "--json", "org/model", "org/never")
    assert mixed.code == 1
    assert mixed.json["results"] == [
        {"source": "org/model", "warm": True},
        {"source": "org/never", "warm": False},
    ]
    assert node.run("warm", "--check", "--file", "config.json", "org/model").code == 1
    assert node.hub.count(None, "/org/never/*") == 0


# -- load --------------------------------------------------------------------------------------


def test_load_prints_what_was_loaded_and_from_where(node: Node, commit: str) -> None:
    ran = node.run("load", "org/model")
    assert ran.code == 0, ran.err
    first, header, lm, compression = ran.out.splitlines()
    assert first.startswith(f"org/model at {commit[:12]}: loaded onto cpu, served by daemon, ")
    assert header.split() == ["PART", "TENSORS", "PARAMETERS", "BYTES", "DTYPE", "SHA256"]
    assert lm.split()[:6] == ["lm", "37", "659,648", "1.3", "MB", "float16"]
    assert compression.split()[:6] == ["compression", "116", "197,596", "790.4", "kB", "float32"]


def test_load_of_one_part_in_json(node: Node, commit: str) -> None:
    loaded = node.run("load", "--json", "--part", "lm", "--device", "meta", "org/model").json
    assert (loaded["served_by"], loaded["revision"], loaded["device"]) == ("daemon", commit, "meta")
    assert list(loaded["parts"]) == ["lm"]
    file, contents = loaded["parts"]["lm"]["file"], loaded["parts"]["lm"]["contents"]
    assert file["filename"] == "state_dict.bin"
    assert file["size"] == EXPORT_FILES["state_dict.bin"].stat().st_size
    assert (contents["tensors"], contents["dtypes"]) == (37, ["float16"])
    assert loaded["seconds"]["total"] >= loaded["seconds"]["resolve"] > 0


def test_load_of_a_local_directory() -> None:
    ran = run("load", str(EXPORT))
    assert ran.code == 0
    assert "served by local" in ran.out


def test_an_unknown_device_is_refused_before_any_byte(node: Node) -> None:
    node.hub.repo("org/cold").commit(EXPORT_FILES)
    ran = node.run("load", "--json", "--device", "abacus", "org/cold")
    assert ran.code == 1
    assert ran.problem["code"] == "UnknownDevice"
    assert node.hub.count(None, "/org/cold/*") == 0


def test_load_without_the_daemon_says_why(node: Node, tmp_path: Path) -> None:
    ran = run(
        *("--socket-dir", str(tmp_path), "--cache-dir", str(node.daemon.cache_dir)),
        *("load", "org/model"),
    )
    assert ran.code == 0
    assert "served by cache" in ran.out
    assert "not by the daemon: " in ran.out


@pytest.mark.parametrize("command", [("warm",), ("load", "--part", "lm")])
@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_a_signed_url_keeps_its_secret(
    node: Node, command: tuple[str, ...], json_option: tuple[str, ...]
) -> None:
    node.hub.files["/signed.bin"] = OnDisk(EXPORT_FILES["state_dict.bin"])
    url = node.hub.cdn_url("/signed.bin")
    ran = node.run(*command, *json_option, f"{url}?sig=s3cret")
    assert ran.code == 0, ran.err
    assert f"{url}?..." in ran.out
    assert "s3cret" not in ran.out + ran.err


# -- what is cached ----------------------------------------------------------------------------


def test_ls_and_show(node: Node, commit: str) -> None:
    header, *lines = node.run("ls").out.splitlines()
    assert header.split() == ["SOURCE", "REVISION", "FILES", "SIZE", "RESIDENT", "PINNED"]
    [row] = [line.split() for line in lines if line.startswith("org/model ")]
    assert row[:5] == ["org/model", commit[:12], "2", "2.2", "MB"]
    assert row[-1] == "no"
    listed = node.run("ls", "--json").json["models"]
    [model] = [model for model in listed if model["source"] == "org/model"]
    assert (model["revision"], model["size"]) == (commit, SIZE)
    shown = node.run("show", "org/model")
    assert f"revision: {commit}" in shown.out
    assert all(file["sha256"] in shown.out for file in model["files"])
    assert node.run("show", "--json", "org/model").json == model


def test_show_of_what_is_not_cached(node: Node) -> None:
    ran = node.run("show", "org/never")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "craftcache: org/never: not in the cache\ncraftcache warm org/never\n"


def test_explain(node: Node, commit: str) -> None:
    cached = node.run("explain", "--json", "org/model").json
    assert (cached["kind"], cached["served_by"], cached["revision"]) == ("hub", "daemon", commit)
    ran = node.run("explain", "org/never")
    assert ran.code == 0
    assert ran.out.startswith("1. ")
    assert "revision:  not known yet" in ran.out
    assert node.hub.count(None, "/org/never/*") == 0


def test_status(node: Node) -> None:
    report = node.run("status", "--json").json
    assert report["pid"] == node.daemon.pid
    assert report["cache_dir"] == str(node.daemon.cache_dir)
    assert re.search(rf"^pid: +{node.daemon.pid}$", node.run("status").out, re.MULTILINE)


def test_rm_frees_what_no_other_model_needs(node: Node) -> None:
    own = io.BytesIO()
    torch.save({"best_state": {"weight": torch.arange(1000)}}, own)
    node.hub.repo("org/gone").commit({**EXPORT_FILES, "state_dict.bin": own.getvalue()})
    assert node.run("warm", "org/gone").code == 0
    removed = node.run("rm", "--json", "org/gone")
    assert removed.code == 0, removed.err
    assert removed.json == {"source": "org/gone", "freed_bytes": len(own.getvalue())}
    again = node.run("rm", "org/gone")
    assert again.code == 1
    assert again.err.startswith("craftcache: org/gone: not in the cache\n")
    assert node.run("warm", "--check", "org/model").code == 0


@pytest.mark.parametrize("command", [("status",), ("rm", "org/model"), ("warm", "--detach", "a/b")])
def test_without_a_daemon_what_needs_one_exits_with_75(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    ran = run("--socket-dir", str(tmp_path), command[0], "--json", *command[1:])
    assert ran.code == 75
    assert ran.problem["code"] == "Unavailable"
    assert "craftcached" in ran.problem["hint"]


# -- what unmodified programs need -------------------------------------------------------------


def test_env_survives_a_shell(tmp_path: Path) -> None:
    cache = tmp_path / "it's a $HOME of models"
    printed = run("--cache-dir", str(cache), "env").out
    script = f"eval {shlex.quote(printed)}; env -0"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    variables = dict(line.partition("=")[::2] for line in done.stdout.split("\0"))
    assert variables["AUDIOCRAFT_CACHE_DIR"] == variables["HF_HUB_CACHE"] == str(cache)
    assert "TORCH_HOME" not in variables, "nothing fills one"
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_env_online(tmp_path: Path) -> None:
    variables = run("--cache-dir", str(tmp_path), "env", "--json", "--online").json
    assert variables["HF_HUB_CACHE"] == str(tmp_path)
    assert "HF_HUB_OFFLINE" not in variables


def test_unmodified_huggingface_hub_finds_the_files_under_run(node: Node) -> None:
    script = (
        "import os, huggingface_hub as h; print(h.hf_hub_download('org/model', 'state_dict.bin', "
        "cache_dir=os.environ['AUDIOCRAFT_CACHE_DIR']))"
    )
    before = len(node.hub.requests)
    ran = node.run("run", "--", sys.executable, "-c", script)
    assert ran.code == 0, ran.err
    assert Path(ran.out.strip()).read_bytes() == EXPORT_FILES["state_dict.bin"].read_bytes()
    assert len(node.hub.requests) == before


def test_run_passes_on_options_and_the_exit_code() -> None:
    ran = run("run", "sh", "-c", "echo $0; exit 9", "--json")
    assert (ran.code, ran.out) == (9, "--json\n")
    absent = run("run", "--", "no-such-command")
    assert absent.code == 127
    assert absent.err == "craftcache: no-such-command: No such file or directory\n"


# -- the administrators' interface -------------------------------------------------------------


def test_admin_without_any_socket_directory() -> None:
    with pytest.raises(Unavailable, match="no socket directory"):
        AdminClient(None).remove("org/model")


def test_admin_meets_something_else_on_the_socket(base: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    with (
        answering(base / "craftcache.sock", answer),
        pytest.raises(Unavailable, match="without JSON"),
    ):
        AdminClient(base).remove("org/model")


def test_admin_meets_an_older_daemon(base: Path) -> None:
    body = b'{"title": "Not Found", "status": 404}'
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body)
    with (
        answering(base / "craftcache.sock", head + body),
        pytest.raises(CraftcacheError, match="answers 404 Not Found") as caught,
    ):
        AdminClient(base).remove("org/model")
    assert not caught.value.retryable


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """A server that gives one connection one answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def run_on_terminal(node: Node, *arguments: str) -> str:
    """Run the command on a terminal of its own; returns all that it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [CRAFTCACHE, "--socket-dir", node.daemon.socket_dir, *arguments],
        env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: nobody has its other side open any more
        return b""
