"""Cached files are mapped on local file systems, and read on those that may fail under a map."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache.config import choose_map
from craftcache.doctor import storage
from craftcache.file_maps import MAP_CHOICES, may_map, remote_file_system
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.tools import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from craftcache import Client
    from tests.support.hub import Repo, TestHub

needs_bindfs = needs("bindfs", "fusermount")


def mapped_blobs(cache_dir: Path) -> list[str]:
    """The files of the cache that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if f"{cache_dir}/" in line or "/store/" in line]


def load(client: Client, cache_dir: Path) -> bool:
    """Load the export; returns whether it is mapped. Read or mapped, it is the same."""
    export = client.load("org/model")
    wanted = torch.load(EXPORT_FILES["state_dict.bin"], weights_only=True)
    assert isinstance(export.lm, dict)
    for name, tensor in wanted["best_state"].items():
        assert torch.equal(export.lm["best_state"][name], tensor)
    return bool(mapped_blobs(cache_dir))


@pytest.fixture
def over_fuse(base: Path) -> Iterator[Path]:
    """A base directory whose cache is on a FUSE file system, as a stand-in for a network's."""
    (base / "store").mkdir()
    (base / "cache").mkdir()
    mounted = subprocess.run(
        ["bindfs", base / "store", base / "cache"], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no FUSE here: {mounted.stderr.strip()}")
    yield base
    subprocess.run(["fusermount", "-u", "-z", base / "cache"], check=True)


@pytest.mark.parametrize(
    ("choice", "expected"), [("auto", True), ("always", True), ("never", False)]
)
def test_the_daemon_says_it_for_its_workers(
    base: Path, threaded_hub: TestHub, export_repo: Repo, choice: str, expected: bool
) -> None:
    with (
        DaemonProcess(base, "--map", choice, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        daemon.client() as client,
    ):
        assert load(client, daemon.cache_dir) is expected


@needs_bindfs
@pytest.mark.parametrize(("choice", "expected"), [("auto", False), ("always", True)])
def test_over_fuse_files_are_read_unless_it_is_said_otherwise(
    over_fuse: Path,
    threaded_hub: TestHub,
    export_repo: Repo,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    expected: bool,
) -> None:
    with DaemonProcess(over_fuse, "--map", choice, HF_ENDPOINT=threaded_hub.endpoint) as daemon:
        with daemon.client() as client:
            assert load(client, daemon.cache_dir) is expected
        daemon.kill()
        # Alone a worker goes by its own setting, and else by the file system.
        with daemon.client() as client:
            export = client.load("org/model")
            assert export.served_by == "cache"
            del export
            assert load(client, daemon.cache_dir) is False
        monkeypatch.setenv("CRAFTCACHE_MAP", choice)
        with daemon.client() as client:
            assert load(client, daemon.cache_dir) is expected


def test_a_workers_own_setting_comes_first(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRAFTCACHE_MAP", "never")
    with daemon.client() as client:
        assert load(client, daemon.cache_dir) is False


@needs_bindfs
def test_the_kind_of_a_file_system_is_told(over_fuse: Path) -> None:
    for directory, kind in (("store", None), ("cache", "fuse")):
        descriptor = os.open(over_fuse / directory, os.O_RDONLY)
        try:
            assert remote_file_system(descriptor) == kind
            mapped = [may_map(descriptor, choice) for choice in MAP_CHOICES]
            assert mapped == [kind is None, True, False]
        finally:
            os.close(descriptor)


@needs_bindfs
@pytest.mark.parametrize(
    ("choice", "directory", "state", "said"),
    [
        ("", "store", "ok", "mapped, and shared"),
        ("", "cache", "warning", "on fuse: tensors are read"),
        ("always", "cache", "warning", "SIGBUS"),
        ("always", "store", "ok", "mapped, and shared"),
        ("never", "cache", "ok", "map is never"),
    ],
)
def test_doctor_says_which_and_why(
    over_fuse: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    directory: str,
    state: str,
    said: str,
) -> None:
    monkeypatch.setenv("CRAFTCACHE_MAP", choice)
    [finding] = [each for each in storage.check(over_fuse / directory) if each.check == "maps"]
    assert finding.state == state
    assert said in finding.message


def test_a_choice_that_there_is_not_is_said_once_and_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CRAFTCACHE_MAP", "sometimes")
    assert choose_map() is None
    assert "map is 'sometimes', not one of auto, always, never" in caplog.text
