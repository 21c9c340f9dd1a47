"""``craftcache-warm@``: what batch systems start and wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .conftest import MODEL_FILES

if TYPE_CHECKING:
    from .conftest import Node


def instance(node: Node, source: str) -> str:
    """The unit that warms ``source``."""
    escape = ("systemd-escape", "--template=craftcache-warm@.service", source)
    return node.machine.run(*escape).stdout.strip()


def test_two_starts_at_once_fetch_once_and_both_wait(node: Node) -> None:
    unit = instance(node, "org/model")
    starts = [node.machine.start("systemctl", "start", unit) for _ in range(2)]
    outputs = [start.communicate()[0] for start in starts]
    assert ([start.returncode for start in starts], outputs) == ([0, 0], ["", ""])
    assert "org/model: warm at " in node.machine.journal(unit)
    assert node.machine.property(unit, "Result") == "success"
    for name, content in MODEL_FILES.items():
        assert node.hub.bytes_sent(f"*/{name}", origin="cdn") == len(content)
    with node.client() as client:
        assert {model.source for model in client.models()} >= {"org/model"}


def test_a_pinned_revision_survives_the_instance_name(node: Node) -> None:
    repo = node.hub.repo("org/dashed-name.v2")
    commit = repo.commit({"state_dict.bin": b"x"})
    unit = instance(node, f"org/dashed-name.v2@{commit}")
    failed = node.machine.run("systemctl", "start", unit, check=False)
    assert failed.returncode == 1
    assert f"org/dashed-name.v2@{commit}: " in node.machine.journal(unit)


def test_a_failure_reaches_whoever_waits_with_its_reason_in_the_journal(node: Node) -> None:
    unit = instance(node, "org/nothing")
    failed = node.machine.run("systemctl", "start", unit, check=False)
    assert failed.returncode == 1
    assert node.machine.property(unit, "Result") == "exit-code"
    assert "org/nothing: no such repository" in node.machine.journal(unit)
