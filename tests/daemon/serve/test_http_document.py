"""``docs/http.md`` against the code that it describes, and its examples against a daemon."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx
import pytest
import torch

from craftcache.bundle import find_closure, write_bundle
from craftcache.cache.directory import CacheDir
from craftcache.daemon.gpu_services import gpu_socket
from craftcache.sources import parse
from craftcache.wire import Load
from craftcached import serve
from tests.support.checkpoints import saved
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.gpu.memfd import UUID
from tests.support.gpu.processes import GpuServiceProcess
from tests.support.hub import Status
from tests.support.sockets import RawWorker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tests.support.hub import Repo, TestHub

TEXT = (Path(__file__).parents[3] / "docs" / "http.md").read_text()

METHODS = {"add_get": "GET", "add_put": "PUT", "add_post": "POST", "add_delete": "DELETE"}

STREAM = "GET /v1/events"
BUNDLES = "POST /v1/bundles"
ROLLBACK = "POST /v1/watches/{name}/rollback"
METRICS = "GET /metrics"
GPUS = "POST /v1/gpus/verify"


@dataclass(frozen=True, slots=True)
class Example:
    """A command of the document.

    Attributes:
        route: The heading that it stands below.
        command: For a shell.
        answer: What is shown behind it; None where nothing is.
    """

    route: str
    command: str
    answer: Any


def sections() -> dict[str, str]:
    """What is said of each route, by method and path."""
    pieces = re.split(r"^### ((?:GET|PUT|POST|DELETE) \S+)$", TEXT, flags=re.MULTILINE)
    named = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    return {route: text.partition("\n## ")[0] for route, text in named.items()}


def examples() -> list[Example]:
    """All commands, in the order in which they stand."""
    block = re.compile(r"^```sh\n(.*?)^```\n(?:\n```json\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
    return [
        Example(route, command, json.loads(answer) if answer else None)
        for route, text in sections().items()
        for command, answer in block.findall(text)
    ]


# --- The routes --------------------------------------------------------------------------------


def routes_of(module: ModuleType) -> Iterator[tuple[str, str]]:
    """The method and path of each route that a module adds, and the code that handles it."""
    assert module.__file__ is not None
    nodes = list(ast.walk(ast.parse(Path(module.__file__).read_text())))
    handlers = {
        f"self.{node.name}": ast.unparse(node)
        for node in nodes
        if isinstance(node, ast.AsyncFunctionDef)
    }
    for node in nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value).endswith("router"):
            path = re.sub(r"\{(\w+):[^/]*\}", r"{\1}", text_of(node.args[0], module))
            yield f"{METHODS[node.func.attr]} {path}", handlers[ast.unparse(node.args[1])]


def text_of(node: ast.expr, module: ModuleType) -> str:
    """What a constant expression stands for."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return str(getattr(module, name))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left, module) + text_of(right, module)
    raise AssertionError(f"{ast.unparse(node)} is no path that can be read here")


def routes() -> dict[str, str]:
    """Those of the whole interface, with the code of each."""
    names = (module.name for module in pkgutil.iter_modules(serve.__path__, f"{serve.__name__}."))
    found = [each for name in names for each in routes_of(importlib.import_module(name))]
    assert len(found) == len(dict(found)) >= 20
    return dict(found)


def test_each_route_has_a_section_and_each_section_a_route() -> None:
    assert set(sections()) == set(routes())


def test_each_section_says_who_may_and_shows_how() -> None:
    shown = {example.route for example in examples()}
    for route, code in routes().items():
        is_checked = "_administered(" in code or "_administrators.check(" in code
        who = "For administrators." if is_checked else "For everybody"
        assert sections()[route].lstrip().startswith(who), route
        assert route in shown


def test_each_code_has_its_status() -> None:
    errors = importlib.import_module("craftcache.errors")
    rows = re.findall(r"^\| (`.*?`) \| (\d{3}) \|", TEXT, re.MULTILINE)
    documented = {name: int(status) for names, status in rows for name in re.findall(r"\w+", names)}
    assert len(documented) > 10
    assert documented == {name: getattr(errors, name).http_status for name in documented}


# --- The examples ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon to which the document's names apply.

    Attributes:
        daemon: The daemon.
        export: In the place of the directory that the document watches.
    """

    daemon: DaemonProcess
    export: Path

    @property
    def bundle(self) -> Path:
        """In the place of the bundle that the document imports."""
        return self.export.with_name("models.tar")

    @property
    def socket(self) -> Path:
        """The socket for people and tools."""
        return self.daemon.socket_dir / "craftcache.sock"

    def here(self, command: str) -> str:
        """A command of the document with this node's places; quiet writers are short ones."""
        for theirs, ours in (
            ("/run/craftcache/craftcache.sock", str(self.socket)),
            ("/runs/my-run/export", str(self.export)),
            ("/media/models.tar", str(self.bundle)),
            ('"settle": 10', '"settle": 0.2'),
        ):
            command = command.replace(theirs, ours)
        return command

    def run(self, example: Example) -> str:
        """What the example's command prints; fails unless the daemon grants the request."""
        command = self.here(example.command).rstrip() + " --silent --show-error --fail-with-body"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (example.route, done.stdout, done.stderr)
        return done.stdout

    def write_generation(self, value: float) -> None:
        """Write another pair into the watched directory, each file by rename."""
        for name in EXPORT_FILES:
            fresh = self.export / f".{name}"
            fresh.write_bytes(saved({"best_state": {"weight": torch.full((4,), value)}}))
            fresh.rename(self.export / name)


@pytest.fixture
def node(inspected: Path, threaded_hub: TestHub, export_repo: Repo) -> Iterator[Node]:
    """A daemon whose Hub has the document's model, and is away for the other one.

    A file that turned out wrong stands in its quarantine.
    """
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    threaded_hub.repo("facebook/musicgen-small").commit(EXPORT_FILES)
    threaded_hub.inject(Status(503), path="*medium*", origin="hub", method=None, times=None)
    with ExitStack() as stack:
        daemon = DaemonProcess(
            inspected, "--insecure-host", "127.0.0.1", HF_ENDPOINT=threaded_hub.endpoint
        )
        node = Node(stack.enter_context(daemon), inspected / "export")
        stack.enter_context(GpuServiceProcess(daemon.socket_dir))
        node.export.mkdir()
        quarantine = inspected / "cache" / ".craftcache" / "quarantine"
        quarantine.mkdir()
        (quarantine / "61c78a39-1795765201.tmp").write_bytes(b"no checkpoint")
        node.write_generation(1.0)
        yield node


def test_the_examples_do_what_they_show(node: Node) -> None:
    (stream,) = (example for example in examples() if example.route == STREAM)
    command = ["bash", "-c", f"exec {node.here(stream.command).rstrip()} --silent --verbose"]
    # curl tells of an answer's head at once on its standard error alone.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as listening:
        assert listening.stdout is not None
        assert listening.stderr is not None
        try:
            assert any(line.startswith("< HTTP/1.1 200 ") for line in listening.stderr)
            answers = run_all(node, listening.stdout)
        finally:
            listening.kill()
    for example, answer in answers:
        if example.answer is not None:
            assert_shown(example.answer, json.loads(answer), example.route)
    (metrics,) = (answer for example, answer in answers if example.route == METRICS)
    check_metrics(metrics)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(node.socket))) as client:
        counted = client.get("http://craftcache/metrics").text
    granted = re.findall(r'responses_total{method="(\w+)",path="(.*?)",status="20\d"}', counted)
    assert {f"{method} {path}" for method, path in granted} == set(routes()) - {STREAM}


def run_all(node: Node, events: IO[str]) -> list[tuple[Example, str]]:
    """Run all examples but the stream's, in order; what each printed."""
    answers = []
    for example in examples():
        if example.route == STREAM:
            continue
        if example.route == BUNDLES:
            cache = CacheDir(node.daemon.cache_dir)
            closure = find_closure(cache, ["facebook/musicgen-small"])
            write_bundle(node.bundle, closure, cache)
        if example.route == GPUS:
            with RawWorker(node.daemon.socket_dir / gpu_socket(UUID)) as worker:
                worker.greet()
                worker.ask(Load(parse("facebook/musicgen-small"))).close()
        if example.route == ROLLBACK:
            node.write_generation(2.0)
            wait_generation(events, 2)
        answers.append((example, node.run(example)))
        if example.route == "PUT /v1/watches/{name}":
            wait_generation(events, 1)
    return answers


def wait_generation(events: IO[str], number: int) -> None:
    """Read events until that generation is served; each has the keys that the document lists."""
    listed = dict(re.findall(r"^\| `([\w-]+)` \| (`.*?`) \|", sections()[STREAM], re.MULTILINE))
    for line in events:
        event = json.loads(line)
        keys = set(re.findall(r"`(\w+)`", listed[event["event"]]))
        assert set(event) == {"seq", "event", "at"} | keys
        if event.get("generation") == number:
            return
    raise AssertionError("the stream ended")


def assert_shown(shown: Any, real: Any, route: str) -> None:
    """What is shown has the keys and types of the real thing, and none of its keys is unsaid."""
    match shown, real:
        case dict(), dict():
            assert set(shown) <= set(real), route
            for key in real:
                assert f'"{key}"' in TEXT or f"`{key}`" in TEXT, (route, key)
            for key, value in shown.items():
                assert_shown(value, real[key], f"{route} {key}")
        case [first, *_], [_, *_]:
            for each in real:
                assert_shown(first, each, route)
        case _:
            numbers = isinstance(shown, int | float) and isinstance(real, int | float)
            assert numbers or type(shown) is type(real), (route, shown, real)


def check_metrics(text: str) -> None:
    """Each metric of ours is in the table, with its type, and the other way round."""
    real = dict(re.findall(r"^# TYPE (craftcache_\w+) (\w+)$", text, re.MULTILINE))
    rows = re.findall(r"^\| `(craftcache_\w+)` \| (\w+) \|", TEXT, re.MULTILINE)
    assert dict(rows) == real
