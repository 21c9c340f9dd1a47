"""The whole promise, end to end: warm, load from a worker, survive without the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from craftcache import Client
from tests.support.daemons import EXPORT, EXPORT_FILES

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub


def assert_same(loaded: object, expected: object) -> None:
    """Equal in nesting, key order, types, dtypes, shapes, strides and values."""
    assert type(loaded) is type(expected)
    if isinstance(expected, dict):
        assert isinstance(loaded, dict)
        assert list(loaded) == list(expected)
        for key, value in expected.items():
            assert_same(loaded[key], value)
    elif isinstance(expected, torch.Tensor):
        assert isinstance(loaded, torch.Tensor)
        assert loaded.dtype == expected.dtype
        assert loaded.stride() == expected.stride()
        assert torch.equal(loaded, expected)
    else:
        assert loaded == expected


def assert_is_the_export(export: object) -> None:
    for part, filename in (("lm", "state_dict.bin"), ("compression", "compression_state_dict.bin")):
        expected = torch.load(EXPORT / filename, weights_only=True)
        assert_same(getattr(export, part), expected)


def test_load_through_the_daemon_equals_torch_load(
    daemon: DaemonProcess, export_repo: Repo
) -> None:
    with daemon.client() as client:
        client.warm(["org/model"])
        export = client.load("org/model")
    assert export.served_by == "daemon"
    assert export.fallback_reason is None
    assert export.revision == export_repo.resolve("main")
    assert_is_the_export(export)


def test_with_the_daemon_killed_it_loads_from_the_cache(
    daemon: DaemonProcess, threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    with daemon.client() as client:
        client.warm(["org/model"])
        daemon.kill()
        before = len(threaded_hub.requests)
        export = client.load("org/model")
    assert export.served_by == "cache"
    assert "refused" in (export.fallback_reason or "")
    assert len(threaded_hub.requests) == before
    assert_is_the_export(export)


def test_without_daemon_and_cache_it_loads_from_the_origin(
    base: Path, threaded_hub: TestHub, export_repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    client = Client(socket_dir=base / "nothing", cache_dir=base / "cache")
    export = client.load("org/model")
    assert export.served_by == "origin"
    assert_is_the_export(export)
    again = client.load("org/model")
    assert again.served_by == "cache"
    for filename in EXPORT_FILES:
        assert threaded_hub.count("GET", f"*/{filename}", origin="cdn") == 1
