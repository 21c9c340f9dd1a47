"""``craftcached-gpu`` as a program."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from craftcached.gpu.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path


def ran(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "craftcached.gpu", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(
    importlib.util.find_spec("cuda") is not None, reason="cuda-bindings are installed"
)
def test_without_cuda_bindings_it_says_what_to_install(tmp_path: Path) -> None:
    done = ran("--socket-dir", str(tmp_path))
    assert done.returncode == 1
    assert "ended: cuda-bindings is not installed: pip install cuda-bindings" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    done = ran("--socket-dir", str(tmp_path), CRAFTCACHE_GPU_TTL="soon")
    assert done.returncode == 1
    assert "CRAFTCACHE_GPU_TTL must be a number of at least 0, not 'soon'" in done.stderr


def test_its_help_lists_its_own_settings_alone() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    assert "--gpu-max-bytes" in shown
    assert "--device" in shown
    assert "--cache-dir" not in shown
