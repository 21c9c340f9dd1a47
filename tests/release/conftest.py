"""What ``make dist`` makes, once for all of these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

BUILD_SECONDS = 900.0
"""The first of these tests that wants a package or an image also builds it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each of these tests the time to build what it wants."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS))


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the wheel, the source distribution, man pages and completions."""
    directory = tmp_path_factory.mktemp("dist")
    build(directory, "python", "documents")
    return directory


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    """The wheel."""
    (built,) = dist.glob("craftcache-*.whl")
    return built


def build(directory: Path, *kinds: str) -> None:
    """What ``make dist`` runs."""
    program = ROOT / "packaging" / "dist.py"
    command = (sys.executable, os.fspath(program), "--into", os.fspath(directory), *kinds)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
