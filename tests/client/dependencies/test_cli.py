"""What a model needs, on the command line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import Node
from tests.support.daemons import DaemonProcess
from tests.support.dependencies import CODEC as OWN_CODEC
from tests.support.dependencies import PAIR, T5_FILES, WORDS, export, host_t5, lm, seen_before, t5
from tests.support.hub import hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node whose Hub has models that need something; nothing is warm."""
    with tempfile.TemporaryDirectory(prefix="cc-") as base, hub_in_thread() as hub:
        seen_before(Path(base) / "cache")
        host_t5(hub)
        for name in ("org/model", "org/alone", "org/queued"):
            hub.repo(name).commit(PAIR)
        hub.repo("org/words").commit(WORDS)
        hub.repo("org/lacking").commit(export(lm(description=t5("t5-large")), OWN_CODEC))
        with DaemonProcess(Path(base), HF_ENDPOINT=hub.endpoint) as daemon:
            yield Node(hub, daemon)


def test_warm_shows_the_progress_of_each_under_its_own_name(node: Node) -> None:
    ran = node.run("warm", "org/model")
    assert ran.code == 0
    lines = ran.err.splitlines()
    assert lines.index("org/model: done") < lines.index("t5-base: done")
    assert any(line.startswith("t5-base model.safetensors: fetching") for line in lines)
    assert node.run("warm", "--check", "org/model").out == "org/model: warm\n"


def test_show_is_a_tree_of_what_there_is(node: Node) -> None:
    node.run("warm", "org/model")
    shown = node.run("show", "org/model").out
    tree = shown.partition("\norg/model\n")[2].splitlines()
    assert tree[0].startswith("├── compression_state_dict.bin  ")
    at = tree.index("└── needs t5-base: cached")
    assert tree[at + 1] == "    ├── the text encoder that state_dict.bin names"
    assert [line.split()[1] for line in tree[at + 2 :]] == sorted(T5_FILES)
    document = node.run("show", "--json", "org/model").json
    assert document["needs"] == [
        {
            "source": "t5-base",
            "why": "the text encoder that state_dict.bin names",
            "is_cached": True,
        }
    ]
    assert (document["unmet"], document["needed_only"]) == ([], False)
    needed = next(line for line in node.run("ls").out.splitlines() if line.startswith("t5-base"))
    assert needed.split()[-1] == "needed"


def test_the_pair_alone_is_not_warm_enough_for_check(node: Node) -> None:
    node.run("warm", "org/model")
    node.run("rm", "t5-base")
    assert node.run("warm", "--pair-only", "org/alone").code == 0
    checked = node.run("warm", "--check", "org/alone")
    assert (checked.code, checked.out) == (1, "org/alone: not warm, lacks t5-base\n")
    assert node.run("warm", "--check", "--pair-only", "org/alone").code == 0
    assert "needs t5-base: missing; craftcache warm org/alone" in node.run("show", "org/alone").out


def test_what_cannot_be_warmed_is_said_with_what_to_do(node: Node) -> None:
    ran = node.run("warm", "org/words")
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == (
        "org/words needs spaCy's en_core_web_sm, which cannot be warmed. "
        "Install it where the model runs: python -m spacy download en_core_web_sm"
    )
    [result] = node.run("warm", "--json", "org/words").json["results"]
    assert [unmet["what"] for unmet in result["unmet"]] == ["spaCy's en_core_web_sm"]
    tree = node.run("show", "org/words").out.splitlines()
    assert tree[-3] == "└── needs spaCy's en_core_web_sm: cannot be warmed"
    assert tree[-1].startswith("    └── Install it where the model runs")


def test_a_failure_says_how_to_do_without(node: Node) -> None:
    ran = node.run("warm", "org/lacking")
    assert (ran.code, ran.out) == (1, "")
    message, hint = ran.err.splitlines()[-2:]
    assert message.startswith("craftcache: org/lacking: t5-large is missing, the text encoder that")
    assert hint.endswith("Or leave it out with --pair-only")
    assert node.run("warm", "--pair-only", "org/lacking").code == 0


def test_a_queued_warm_may_be_of_the_pair_alone(node: Node) -> None:
    asked = node.hub.count(None, "*t5-large*")
    assert node.run("warm", "--detach", "--pair-only", "org/lacking").code == 0
    with node.daemon.client() as client:
        client.warm("org/lacking", pair_only=True)
    assert node.hub.count(None, "*t5-large*") == asked


def test_explain_names_what_an_unmodified_program_would_miss(node: Node) -> None:
    node.run("warm", "--pair-only", "org/lacking")
    explained = node.run("explain", "org/lacking").out
    assert "what it needs is not all cached: t5-large" in explained
