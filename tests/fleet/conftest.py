"""Many nodes, each a real daemon, behind a real nginx with the example's rules."""

from __future__ import annotations

import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.fleet import node_at
from tests.support.hub import hub_in_thread
from tests.support.nginx_mirror import NginxMirror

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

TOKEN = "hf_s3cretTokenOfTheFleet"

NODES = 8


@pytest.fixture(scope="module")
def hub() -> Iterator[TestHub]:
    with hub_in_thread() as running:
        running.grant(TOKEN, "org/gated")
        yield running


@pytest.fixture(scope="module")
def mirror(hub: TestHub) -> Iterator[NginxMirror]:
    with NginxMirror(hub) as running:
        yield running


@pytest.fixture(scope="module")
def nodes(hub: TestHub, mirror: NginxMirror) -> Iterator[list[DaemonProcess]]:
    """Eight nodes, which start with nothing."""
    with tempfile.TemporaryDirectory(prefix="ccf-") as base, contextlib.ExitStack() as stack:
        made = [
            node_at(Path(base, str(number)), hub, mirror.url, token=TOKEN)
            for number in range(NODES)
        ]
        with ThreadPoolExecutor(NODES) as starters:
            list(starters.map(stack.enter_context, made))
        yield made


@pytest.fixture
def new_node(
    base: Path, hub: TestHub, mirror: NginxMirror
) -> Iterator[Callable[..., DaemonProcess]]:
    """Starts another node."""
    with contextlib.ExitStack() as stack:
        made = 0

        def start(*, patience: float = 30.0, token: str | None = TOKEN) -> DaemonProcess:
            nonlocal made
            made += 1
            node = node_at(base / str(made), hub, mirror.url, patience=patience, token=token)
            return stack.enter_context(node)

        yield start


@pytest.fixture
def inspected(base: Path) -> Path:
    """A base directory for a daemon that inspects for itself."""
    return base / "owner"
