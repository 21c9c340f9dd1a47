"""A need that torch.hub fetches from a URL: found by torch.hub, and verified like any source."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from craftcache import IntegrityError, NotACheckpoint
from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.dependencies import MELODY
from tests.support.hub import Data
from tests.upstream.origin import DEMUCS, DEMUCS_PATH, Origin, origin_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


DEMUCS_URL = f"https://dl.fbaipublicfiles.com{DEMUCS_PATH}"


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    """A Hub, and the host of demucs over TLS, behind a proxy."""
    repositories = tmp_path / "repositories"
    repositories.mkdir()
    with origin_of(repositories, tmp_path) as running:
        running.hub.repo("org/melody").commit(MELODY)
        yield running


@pytest.fixture
def melody(seen: Path, origin: Origin) -> Iterator[DaemonProcess]:
    """A daemon that has warmed what needs demucs."""
    with DaemonProcess(seen, **origin.environment) as daemon:
        yield daemon


def torch_checkpoint(daemon: DaemonProcess) -> Path:
    return daemon.cache_dir / ".craftcache/torch/hub/checkpoints" / DEMUCS.name


def test_torch_hub_finds_what_is_known_by_its_hash(
    melody: DaemonProcess, origin: Origin, tmp_path: Path
) -> None:
    with melody.client() as client, Api(melody.socket_dir) as api:
        client.warm("org/melody")
        link = torch_checkpoint(melody)
        assert link.read_bytes() == DEMUCS.read_bytes()
        moved = tmp_path / "mounted elsewhere"
        shutil.copytree(melody.cache_dir / ".craftcache", moved, symlinks=True)
        assert (moved / "torch/hub/checkpoints" / DEMUCS.name).read_bytes() == link.read_bytes()
        asked = origin.hub.count("GET", DEMUCS_PATH)
        client.warm("org/melody")
        assert origin.hub.count(None, DEMUCS_PATH) == asked
        api.delete("org/melody")
        assert not link.is_symlink()
        assert api.get("/models") == {"models": []}


def test_what_is_needed_is_verified_like_any_source(melody: DaemonProcess, origin: Origin) -> None:
    origin.hub.files[DEMUCS_PATH] = Data(b"something else")
    with melody.client() as client, pytest.raises(IntegrityError, match=DEMUCS.name):
        client.warm("org/melody")
    assert not torch_checkpoint(melody).is_symlink()


def test_what_is_needed_is_inspected_when_it_is_asked_for_by_name(
    melody: DaemonProcess,
) -> None:
    with melody.client() as client:
        client.warm("org/melody")
        with pytest.raises(NotACheckpoint):
            client.load_state_dict(DEMUCS_URL)
        with pytest.raises(NotACheckpoint):
            client.warm(DEMUCS_URL)
        assert torch_checkpoint(melody).exists()
