"""``craftcache ls`` with filters, and ``prune``."""

from __future__ import annotations

import os
import pty
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.checkpoints import saved
from tests.support.command import CRAFTCACHE, Node, running_node

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Has ``org/model``, ``org/large``, ``org/small`` and ``org/kept``, which is pinned."""
    with running_node() as running:
        for number, name in enumerate(("large", "small", "kept")):
            content = saved(
                {"best_state": {}, "number": number, "pad": "x" * (300_000 - number * 99_000)}
            )
            running.hub.repo(f"org/{name}").commit({"state_dict.bin": content})
            assert running.run("warm", f"org/{name}", "--file", "state_dict.bin").code == 0
        assert running.run("pin", "org/kept").code == 0
        yield running


def listed(node: Node, *arguments: str) -> list[str]:
    ran = node.run("ls", "--quiet", *arguments)
    assert ran.code == 0, ran.err
    return ran.out.split()


def test_ls_filters_and_sorts(node: Node) -> None:
    assert listed(node) == ["org/kept", "org/large", "org/model", "org/small"]
    assert listed(node, "--sort", "size") == ["org/model", "org/large", "org/small", "org/kept"]
    assert listed(node, "--filter", "size<250kB", "--filter", "pinned=no") == ["org/small"]
    assert listed(node, "--filter", "accessed>30d") == []
    assert listed(node, "--filter", "accessed<1h", "--filter", "source=org/l*") == ["org/large"]
    with node.daemon.client() as client:
        client.load_state_dict("org/small", "state_dict.bin")
        used = {model.source: model.last_used_at for model in client.models()}
    assert used["org/small"] == max(filter(None, used.values()))
    assert listed(node, "--sort", "accessed")[-1] == "org/small"
    wrong = node.run("ls", "--filter", "size=large")
    assert wrong.code == 2
    assert "'size=large' is no filter" in wrong.err


def test_ls_shows_the_last_use(node: Node) -> None:
    lines = node.run("ls").out.splitlines()
    assert "USED" in lines[0]
    assert all(" ago " in line for line in lines[1:])
    document = node.run("ls", "--json", "--filter", "source=org/model").json
    [model] = document["models"]
    assert model["last_used_at"] >= model["published_at"]


def test_without_the_daemon_ls_filters_by_what_the_cache_says(node: Node) -> None:
    ran = node.run("--socket-dir", "/nonexistent", "ls", "-q", "--filter", "size<250kB")
    assert ran.out.split() == ["org/kept", "org/small"]


def test_prune_says_what_it_would_do_and_does_it(node: Node) -> None:
    planned = node.run("prune", "--filter", "size<350kB", "--dry-run", "--json").json
    assert planned["removed"] == ["org/large", "org/small"] or planned["removed"] == [
        "org/small",
        "org/large",
    ]
    assert planned["kept"] == [{"source": "org/kept", "reason": "pinned"}]
    assert len(listed(node)) == 4
    pruned = node.run("prune", "--filter", "size<350kB", "--filter", "source=*small")
    assert pruned.code == 0, pruned.err
    assert pruned.out.splitlines()[0] == "org/small: removed"
    assert pruned.out.splitlines()[1].endswith(" kB freed")
    assert listed(node) == ["org/kept", "org/large", "org/model"]


def test_what_is_in_use_stays(node: Node) -> None:
    with node.daemon.client() as client:
        loaded = client.load_state_dict("org/model", "state_dict.bin")
        ran = node.run("prune", "--filter", "source=org/model", "--json").json
        assert ran["kept"] == [{"source": "org/model", "reason": "in use"}]
        assert loaded
    assert "org/model" in listed(node)


def test_on_a_terminal_it_asks_first(node: Node) -> None:
    assert "org/large" in listed(node)
    shown, code = on_terminal(node, b"n\n", "prune", "--filter", "source=org/large")
    assert "org/large: would be removed" in shown
    assert "Remove them?" in shown
    assert code == 1
    assert "org/large" in listed(node)
    shown, code = on_terminal(node, b"y\n", "prune", "--filter", "source=org/large")
    assert "org/large: removed" in shown
    assert code == 0
    assert "org/large" not in listed(node)
    shown, code = on_terminal(node, b"", "prune", "--yes", "--filter", "source=org/large")
    assert (shown.strip(), code) == ("0 bytes freed", 0)


def test_prune_needs_a_filter(node: Node) -> None:
    assert node.run("prune").code == 2


def on_terminal(node: Node, typed: bytes, *arguments: str) -> tuple[str, int]:
    """Run the command on a terminal of its own; what it showed, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [CRAFTCACHE, "--socket-dir", node.daemon.socket_dir, *arguments],
        env=os.environ | {"TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, typed)
    shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    return shown.decode(), process.wait()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: nobody has its other side open any more
        return b""
