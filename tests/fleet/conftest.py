"""Many nodes, each a real daemon, behind a real nginx with the example's rules.

Where that is allowed, hub and mirror are in a network of their own, and each node in another; else
all are on this machine's loopback.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fleet import node_at
from tests.support.hub import hub_in_thread
from tests.support.networks import ADDRESS, Networks
from tests.support.nginx_mirror import NginxMirror

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

TOKEN = "hf_s3cretTokenOfTheFleet"

NODES = 8


@pytest.fixture(scope="module")
def networks() -> Iterator[Networks | OSError]:
    """Networks for hub, mirror and nodes, or why there are none."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(Networks())
        except OSError as error:
            yield error
        else:
            yield made


@pytest.fixture(scope="module")
def within(networks: Networks | OSError) -> Callable[[], tuple[str, ...]]:
    """Makes a command that runs another in a new node's network, where there are such."""
    return networks.node if isinstance(networks, Networks) else lambda: ()


@pytest.fixture(scope="module")
def hub(networks: Networks | OSError) -> Iterator[TestHub]:
    host = ADDRESS if isinstance(networks, Networks) else "127.0.0.1"
    with hub_in_thread(host) as running:
        running.grant(TOKEN, "org/gated")
        yield running


@pytest.fixture(scope="module")
def mirror(hub: TestHub) -> Iterator[NginxMirror]:
    with NginxMirror(hub) as running:
        yield running


@pytest.fixture(scope="module")
def nodes(
    hub: TestHub, mirror: NginxMirror, within: Callable[[], tuple[str, ...]]
) -> Iterator[list[DaemonProcess]]:
    """Eight nodes, which start with nothing and wait long for a mirror that was there."""
    with tempfile.TemporaryDirectory(prefix="ccf-") as base, contextlib.ExitStack() as stack:
        made = [
            node_at(
                Path(base, str(number)), hub, mirror.url, token=TOKEN, within=within(), grace=600.0
            )
            for number in range(NODES)
        ]
        with ThreadPoolExecutor(NODES) as starters:
            list(starters.map(stack.enter_context, made))
        yield made


@pytest.fixture
def new_node(
    base: Path, hub: TestHub, mirror: NginxMirror, within: Callable[[], tuple[str, ...]]
) -> Iterator[Callable[..., DaemonProcess]]:
    """Starts another node, with further mirrors beside the one."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def start(*others: str, token: str | None = TOKEN, **options: Any) -> DaemonProcess:
            urls = (mirror.url, *others)
            node = node_at(
                base / str(next(numbers)), hub, *urls, token=token, within=within(), **options
            )
            return stack.enter_context(node)

        yield start


@pytest.fixture
def inspected(base: Path) -> Path:
    """A base directory for a daemon that inspects for itself."""
    return base / "owner"
