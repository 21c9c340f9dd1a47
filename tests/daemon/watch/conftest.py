"""Fixtures of the tests with whole daemons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import DaemonProcess
from tests.support.watching import SETTLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def export(base: Path) -> Path:
    """A directory that is watched and not there yet."""
    return base / "runs" / "a" / "export"


@pytest.fixture
def config(base: Path, export: Path) -> Path:
    """Settings with a watch ``run`` of ``export``."""
    return settings(base, export, SETTLE)


@pytest.fixture
def daemon(base: Path, config: Path) -> Iterator[DaemonProcess]:
    """A daemon in a process of its own that watches ``export`` as ``run``."""
    with DaemonProcess(base, "--config", str(config)) as running:
        yield running


@pytest.fixture
def patient_daemon(base: Path, export: Path) -> Iterator[DaemonProcess]:
    """Likewise, with a settle time that no writer exceeds on a busy machine."""
    with DaemonProcess(base, "--config", str(settings(base, export, 0.5))) as running:
        yield running


def settings(base: Path, export: Path, settle: float) -> Path:
    """A configuration file with a watch."""
    path = base / "config.toml"
    path.write_text(
        f'[[watches]]\nname = "run"\ndirectory = "{export}"\nsettle = {settle}\nkeep = 3\n'
    )
    return path
