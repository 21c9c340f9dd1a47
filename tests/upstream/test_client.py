"""The client itself, in AudioCraft's environments."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import craftcache

from .environment import ENVIRONMENTS, PROGRAMS

if TYPE_CHECKING:
    from tests.support.daemons import DaemonProcess

    from .environment import Upstream
    from .origin import Origin

SOURCE = "org/lut"

NOT_IMPORTED = {Path("cli/__main__.py"), Path("audiocraft/startup/sitecustomize.py")}
"""Modules of the client that are programs."""

PINNED = ENVIRONMENTS["pinned"]


@pytest.fixture(scope="module")
def found(
    upstream: Upstream,
    repositories: Path,
    warm_node: DaemonProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """See the program; there is no network."""
    return dict(
        upstream.run_offline(
            *(PROGRAMS / "loads.py", repositories, SOURCE),
            home=tmp_path_factory.mktemp("loads"),
            node=warm_node,
            CRAFTCACHE_SOCKET_DIR=str(warm_node.socket_dir),
        )
    )


def test_every_module_can_be_imported(found: dict[str, Any]) -> None:
    here = Path(craftcache.__file__).parent
    paths = {path.relative_to(here) for path in here.rglob("*.py")} - NOT_IMPORTED
    names = {".".join(("craftcache", *path.with_suffix("").parts)) for path in paths}
    assert {name.removesuffix(".__init__") for name in names} == {"craftcache", *found["modules"]}


@pytest.mark.parametrize("client", ["default client", "Client", "AsyncClient"])
def test_the_daemon_serves_it(found: dict[str, Any], client: str) -> None:
    assert found["load"][client] == ["daemon", []]


def test_each_file_is_what_torch_would_load(found: dict[str, Any]) -> None:
    assert found["load_state_dict"] == []


def test_a_module_is_filled(found: dict[str, Any]) -> None:
    assert found["load_into"]["tensors"] > 10
    assert found["load_into"]["wrong"] == []


def test_the_cache_is_used_without_the_daemon(found: dict[str, Any]) -> None:
    assert found["without_daemon"] == ["cache", True, []]


@pytest.mark.parametrize("kind", ["export", "zip", "legacy", "omegaconf"])
def test_files_that_no_daemon_looked_at_are_what_torch_would_load(
    found: dict[str, Any], kind: str
) -> None:
    assert found["local_files"][kind] == []


def test_nothing_that_a_file_asks_for_is_run(found: dict[str, Any]) -> None:
    assert "UnsafeCheckpoint" in found["refusals"]["hostile"]
    assert "posix.mkdir" in found["refusals"]["hostile"]
    assert not found["refusals"]["executed"]


def test_what_only_a_newer_torch_could_load_is_refused_with_its_version(
    found: dict[str, Any],
) -> None:
    refusal = found["refusals"]["sparse"]
    if tuple(map(int, found["torch"].split(".")[:2])) >= (2, 6):
        assert refusal == ""
    else:
        assert "sparse" in refusal
        assert "torch 2.6 or newer" in refusal


def test_errors_keep_their_notes(found: dict[str, Any]) -> None:
    assert found["errors_survive"] == "['and another']"


def test_an_export_is_fetched_where_there_is_neither_daemon_nor_cache(
    upstream: Upstream, origin: Origin, tmp_path: Path
) -> None:
    fetch = (
        "import json, sys, craftcache;"
        "client = craftcache.Client(socket_dir=sys.argv[1], cache_dir=sys.argv[2]);"
        "export = client.load(sys.argv[3]);"
        "again = client.load(sys.argv[3]);"
        "print(json.dumps([export.served_by, again.served_by, len(export.lm['best_state'])]))"
    )
    (tmp_path / "run").mkdir()
    arguments = (tmp_path / "run", tmp_path / "cache", SOURCE)
    first, second, tensors = upstream.run(
        *("-c", fetch, *arguments),
        home=tmp_path,
        CRAFTCACHE_INSECURE_HOSTS="127.0.0.1",
        **origin.environment,
    )
    assert (first, second) == ("origin", "cache")
    assert tensors > 10


@pytest.fixture
def pinned() -> Upstream:
    """The environment with AudioCraft's own pins."""
    if not PINNED.is_installed:
        pytest.skip(f"no {PINNED.directory.name}: make audiocraft")
    return PINNED


def test_installing_it_beside_audiocrafts_own_pins_changes_none_of_them(pinned: Upstream) -> None:
    before, after = (
        set((pinned.directory / name).read_text().splitlines())
        for name in ("before.txt", "after.txt")
    )
    assert "torch==2.1.0" in before
    assert before - after == set()
    assert any(line.startswith("craftcache ") for line in after - before)


@pytest.mark.parametrize("command", [("-m", "craftcached"), ("-m", "craftcached", "--version")])
def test_the_daemon_says_in_one_line_what_it_needs(
    pinned: Upstream, command: tuple[str, ...]
) -> None:
    done = subprocess.run([pinned.python, *command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "needs Python 3.11 or newer, and this is 3.10." in line
