"""Many nodes, each a real daemon, behind a real nginx with the example's rules."""

from __future__ import annotations

import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import DaemonProcess
from tests.support.hub import hub_in_thread
from tests.support.nginx_mirror import SLICE_BYTES, NginxMirror

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def node_at(
    base: Path,
    hub: TestHub,
    mirror: NginxMirror,
    *,
    patience: float = 30.0,
    token: str | None = TOKEN,
    more: str = "",
) -> DaemonProcess:
    """A daemon with that mirror; not started."""
    config = base / "config" / "craftcache" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        f"""\
{more}
[[mirrors]]
of = "hub"
url = "{mirror.url}"
insecure = true
slice_bytes = {SLICE_BYTES}
patience = {patience}
"""
    )
    environment = {"HF_ENDPOINT": hub.endpoint, "XDG_CONFIG_HOME": str(base / "config")}
    if token is not None:
        environment["HF_TOKEN"] = token
    return DaemonProcess(base, **environment)


@pytest.fixture(scope="module")
def nodes(hub: TestHub, mirror: NginxMirror) -> Iterator[list[DaemonProcess]]:
    """Eight nodes, which start with nothing."""
    with tempfile.TemporaryDirectory(prefix="ccf-") as base, contextlib.ExitStack() as stack:
        made = [node_at(Path(base, str(number)), hub, mirror) for number in range(NODES)]
        with ThreadPoolExecutor(NODES) as starters:
            list(starters.map(stack.enter_context, made))
        yield made


@pytest.fixture
def new_node(
    base: Path, hub: TestHub, mirror: NginxMirror
) -> Iterator[Callable[..., DaemonProcess]]:
    """Starts another node; see node_at."""
    with contextlib.ExitStack() as stack:
        made = 0

        def start(**given: object) -> DaemonProcess:
            nonlocal made
            made += 1
            return stack.enter_context(node_at(base / str(made), hub, mirror, **given))  # type: ignore[arg-type]

        yield start
