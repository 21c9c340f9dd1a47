"""Exports that AudioCraft itself made, where they can be downloaded, and a node that is warm."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import DaemonProcess

from .environment import ENVIRONMENTS, PROGRAMS
from .origin import DEMUCS, Origin, origin_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .environment import Upstream

MODELS = {
    "org/lut": "MusicGen",
    "org/reference": "MusicGen",
    "org/text": "MusicGen",
    "org/melody": "MusicGen",
    "org/sound": "AudioGen",
    "org/magnet": "MAGNeT",
}
"""The exports, one of each kind, with the class of AudioCraft's that loads it."""

DIFFUSION = "facebook/multiband-diffusion"
"""No pair but files, of which the one for MusicGen is here: AudioCraft knows it by its name."""

SET_UP_SECONDS = 300.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first of these tests also has the exports made and warmed for all others."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(SET_UP_SECONDS))


@pytest.fixture(scope="session", params=ENVIRONMENTS)
def upstream(request: pytest.FixtureRequest) -> Upstream:
    """Each of the environments that have AudioCraft; without one its tests are skipped."""
    environment = ENVIRONMENTS[request.param]
    if not environment.is_installed:
        pytest.skip(f"no {environment.directory.name}: make audiocraft")
    return environment


@pytest.fixture(scope="session")
def repositories(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds, by their ids, MODELS, DIFFUSION and what they need of the Hub."""
    directory = tmp_path_factory.mktemp("repositories")
    home = tmp_path_factory.mktemp("maker")
    checkpoints = home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(DEMUCS, checkpoints)
    upstream.run(
        *(PROGRAMS / "exports.py", upstream.configurations, directory),
        home=home,
        TORCH_HOME=str(home),
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",  # export_lm loads what a training wrote
        HF_HUB_OFFLINE="1",
    )
    return directory


@pytest.fixture(scope="session")
def origin(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    """Where all of ``repositories``, and demucs, can be downloaded."""
    with origin_of(repositories, tmp_path_factory.mktemp("origin")) as running:
        yield running


@pytest.fixture(scope="session")
def warm_node(origin: Origin) -> Iterator[DaemonProcess]:
    """A daemon in whose cache MODELS and DIFFUSION were warmed, and nothing else was."""
    with (
        tempfile.TemporaryDirectory(prefix="cc-") as base,
        DaemonProcess(Path(base), **origin.environment) as daemon,
        daemon.client() as client,
    ):
        client.warm(list(MODELS))
        client.warm([DIFFUSION], filenames=["mbd_musicgen_32khz.th"])
        yield daemon
