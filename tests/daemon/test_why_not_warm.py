"""A reader of the status alone can tell why a model is not warm, and what to do."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from craftcache.errors import CraftcacheError
from tests.support.api import Api
from tests.support.daemons import EXPORT_FILES, DaemonProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from craftcache.wire import DaemonStatus, NotWarm
    from tests.support.hub import Repo, TestHub

MODEL = "org/model"


@pytest.fixture
def warm(base: Path, threaded_hub: TestHub, export_repo: Repo) -> Iterator[DaemonProcess]:
    with DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon:
        with daemon.client() as client:
            client.warm(MODEL)
        assert [model.source for model in status_of(daemon).recent] == [MODEL]
        yield daemon


def status_of(daemon: DaemonProcess) -> DaemonStatus:
    with daemon.client() as client:
        return client.status()


def why(daemon: DaemonProcess, source: str = MODEL) -> NotWarm:
    """What the status says of a source, which it must not call warm."""
    status = status_of(daemon)
    assert source not in [model.source for model in status.recent]
    [found] = [each for each in status.not_warm if each.source == source]
    assert found.hint
    return found


def test_a_model_that_lacks_a_file_is_not_called_warm(
    warm: DaemonProcess, threaded_hub: TestHub
) -> None:
    blob = next(warm.cache_dir.glob("models--*/snapshots/*/state_dict.bin")).resolve()
    blob.unlink()
    found = why(warm)
    assert (found.code, found.message) == (
        "Damaged",
        "state_dict.bin is missing from the cache, or cut off",
    )
    with warm.client() as client:
        client.warm(MODEL)
    assert [model.source for model in status_of(warm).recent] == [MODEL]


@pytest.mark.parametrize("what", ["the cache", "the model"])
def test_a_model_that_other_hands_removed_is_told_of(warm: DaemonProcess, what: str) -> None:
    if what == "the cache":
        shutil.rmtree(warm.cache_dir)
    else:
        [manifest] = (warm.cache_dir / ".craftcache" / "manifests").iterdir()
        manifest.unlink()
    assert why(warm).code == "Lost"
    emptied = [each for each in status_of(warm).problems if "emptied or removed" in each]
    assert len(emptied) == (what == "the cache")
    with warm.client() as client:
        client.warm(MODEL)
    status = status_of(warm)
    assert (status.not_warm, [model.source for model in status.recent]) == ((), [MODEL])
    assert not any("emptied or removed" in each for each in status.problems)


def test_what_an_administrator_removes_is_no_loss(warm: DaemonProcess) -> None:
    with Api(warm.socket_dir) as api:
        assert api.request("DELETE", "/models/org%2Fmodel").is_success
    assert why(warm).code == "Removed"


def test_a_warm_that_the_cache_directory_prevents_says_so(warm: DaemonProcess) -> None:
    shutil.rmtree(warm.cache_dir)
    warm.cache_dir.write_text("in the way")
    only = Client(socket_dir=warm.socket_dir, cache_dir=warm.cache_dir, fallback="none")
    with only as client, pytest.raises(CraftcacheError, match="cannot be used"):
        client.warm(MODEL)
    found = why(warm)
    assert found.code == "CraftcacheError"
    assert str(warm.cache_dir) in found.message
    assert "Traceback" not in warm.log


def test_a_watch_without_anything_to_serve_says_what_it_waits_for(base: Path) -> None:
    (base / "partial").mkdir()
    shutil.copy(EXPORT_FILES["state_dict.bin"], base / "partial")
    config = base / "config.toml"
    config.write_text(
        "".join(
            f'[[watches]]\nname = "{name}"\ndirectory = "{base / name}"\nsettle = 0.1\n'
            for name in ("partial", "absent")
        )
    )
    with DaemonProcess(base, "--config", str(config)) as daemon:
        partial, absent = why(daemon, "watch:partial"), why(daemon, "watch:absent")
        assert (partial.code, partial.message) == (
            "Partial",
            "waits for compression_state_dict.bin",
        )
        assert (absent.code, absent.message) == ("Absent", "the directory is not there yet")
        assert str(base / "absent") in absent.hint
