"""Repositories in Xet storage: the daemon has their files brought from there, or by HTTP."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache import AsyncClient
from craftcached.app import Daemon
from craftcached.settings_reading import load_settings
from tests.support.checkpoints import saved
from tests.support.daemons import DaemonProcess
from tests.support.hub import Data, WithHeaders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.hub import TestHub

CHECKPOINT = saved({"best_state": {"weight": torch.arange(500_000, dtype=torch.float32)}})
"""Larger than what the first request of a download brings."""

READ_ORDER = "import json, sys; order = json.loads(sys.stdin.readline()); "
FAILS = (sys.executable, "-c", READ_ORDER + "sys.exit(3)")


def copies(path: Path) -> Sequence[str]:
    """A process that brings the bytes of ``path`` as the Xet client would."""
    copy = f"open(order['path'], 'wb').write(open({str(path)!r}, 'rb').read())"
    return (sys.executable, "-c", READ_ORDER + copy)


def in_xet(hub: TestHub) -> None:
    """``org/xet`` of the hub, which says that its file is in Xet storage."""
    hub.repo("org/xet").commit({"state_dict.bin": Data(CHECKPOINT)})
    hub.inject(WithHeaders({"X-Xet-Hash": "a" * 64}), method="GET", origin="hub", times=None)


@pytest.mark.parametrize("works", [True, False], ids=["brings it", "fails"])
async def test_a_file_comes_from_xet_storage_or_by_http(
    base: Path, hub: TestHub, works: bool
) -> None:
    in_xet(hub)
    stored = base / "stored"
    stored.write_bytes(CHECKPOINT)
    settings = load_settings(
        {name: base / name for name in ("cache_dir", "socket_dir", "state_dir")}
        | {"hub_endpoint": hub.endpoint}
    )
    async with (
        Daemon(settings, xet=copies(stored) if works else FAILS),
        AsyncClient(
            socket_dir=settings.socket_dir, cache_dir=settings.cache_dir, fallback="none"
        ) as client,
    ):
        checkpoint = await client.load_state_dict("org/xet", "state_dict.bin")
    assert checkpoint["best_state"]["weight"][-1] == 499_999
    sent = hub.bytes_sent("*/state_dict.bin", origin="cdn")
    assert (sent < len(CHECKPOINT)) is works


def test_the_daemon_asks_huggingface_hubs_client(base: Path, threaded_hub: TestHub) -> None:
    in_xet(threaded_hub)
    with (
        DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint, HF_HUB_DISABLE_XET="") as daemon,
        daemon.client() as client,
    ):
        assert client.load_state_dict("org/xet", "state_dict.bin")["best_state"]
    assert threaded_hub.count("HEAD", "*/state_dict.bin", origin="hub") == 2, "its process too"
