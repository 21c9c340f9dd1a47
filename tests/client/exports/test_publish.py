"""Publishing an export on a Hub, by the command that users run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import EXPORT
from tests.support.upload_hub import UploadHub, upload_hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with upload_hub() as running:
        yield running


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A real export beside what is nobody else's business."""
    shutil.copytree(EXPORT, tmp_path / "export")
    (tmp_path / "export" / "README.md").write_text("# A model\n")
    (tmp_path / "export" / "secrets.env").write_text("TOKEN=1\n")
    return tmp_path / "export"


def publish(hub: UploadHub, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "craftcache.cli", "publish", *arguments],
        env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_test"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_pair_is_published_and_the_answer_pins_its_commit(hub: UploadHub, export: Path) -> None:
    done = publish(hub, str(export), "org/model", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    repo_id, _, commit = answer["source"].partition("@")
    assert (repo_id, len(commit)) == ("org/model", 40)
    files = hub.repos["org/model"]
    assert set(files) == {"state_dict.bin", "compression_state_dict.bin", "README.md"}
    assert files["state_dict.bin"] == (export / "state_dict.bin").read_bytes()


def test_what_is_no_export_is_refused_before_anything_is_sent(hub: UploadHub, export: Path) -> None:
    (export / "state_dict.bin").unlink()
    done = publish(hub, str(export), "org/model")
    assert (done.returncode, done.stdout) == (1, "")
    assert "state_dict.bin is missing" in done.stderr
    assert hub.repos == {}


def test_a_token_that_may_not_write_is_said(hub: UploadHub, export: Path) -> None:
    hub.is_denied = True
    done = publish(hub, str(export), "org/model")
    assert done.returncode == 1
    assert "does not let this user write there" in done.stderr


@pytest.mark.parametrize("repo_id", ["model", "org/model@v1", "https://example.org/model"])
def test_what_is_no_repository_is_refused(hub: UploadHub, export: Path, repo_id: str) -> None:
    done = publish(hub, str(export), repo_id)
    assert done.returncode == 1
    assert "no repository's id" in done.stderr
