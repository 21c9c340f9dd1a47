"""A reader of the status alone can tell why a model is not warm, and what to do."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from craftcache.errors import CraftcacheError
from tests.support.api import Api
from tests.support.command import Ran, run
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import Status

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


def ran(daemon: DaemonProcess, *arguments: str, **environment: str) -> Ran:
    """The command, with a daemon's directories."""
    places = ("--socket-dir", str(daemon.socket_dir), "--cache-dir", str(daemon.cache_dir))
    return run(*places, *arguments, **environment)


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


@pytest.mark.parametrize("what", ["emptied", "removed"])
def test_what_was_removed_while_no_daemon_ran_is_told_at_its_start(
    warm: DaemonProcess, what: str
) -> None:
    warm.terminate()
    told = warm.log
    shutil.rmtree(warm.cache_dir)
    if what == "emptied":
        warm.cache_dir.mkdir()
    warm.start()
    said = f"1 model that craftcache had in {warm.cache_dir} and did not remove is gone"
    assert said in warm.log.removeprefix(told)
    assert f"{said}: see whether" in ran(warm, "status").out
    assert [each for each in status_of(warm).problems if said in each]
    assert why(warm).code == "Lost"
    assert f"{MODEL}  " in ran(warm, "status").out.partition("NOT WARM")[2]
    with warm.client() as client:
        client.warm(MODEL)
    assert said not in ran(warm, "status").out
    warm.terminate()
    told = warm.log
    warm.start()
    assert "is gone" not in warm.log.removeprefix(told)


def test_what_was_removed_by_request_is_not_missed_after_a_restart(warm: DaemonProcess) -> None:
    assert ran(warm, "rm", MODEL).code == 0
    warm.terminate()
    warm.start()
    assert why(warm).code == "Removed"
    assert not [each for each in status_of(warm).problems if "is gone" in each]


def test_what_nobody_wants_any_more_is_taken_off_the_list(warm: DaemonProcess) -> None:
    assert ran(warm, "warm", "org/none").code == 1
    assert ran(warm, "rm", MODEL).out == f"{MODEL}: removed, 2.2 MB freed\n"
    assert {each.source for each in status_of(warm).not_warm} == {"org/none", MODEL}
    assert "craftcache rm SOURCE takes it off this list" in ran(warm, "status").out
    for source in ("org/none", MODEL):
        taken = ran(warm, "rm", source)
        assert (taken.code, taken.out) == (
            0,
            f"{source}: was not cached, and is listed as not warm no more\n",
        )
    assert status_of(warm).not_warm_count == 0
    again = ran(warm, "rm", "--json", "org/none")
    assert (again.code, again.problem["code"]) == (1, "NotFound")


def test_all_that_is_not_warm_is_listed_on_request(warm: DaemonProcess) -> None:
    sources = [f"org/none-{number:02}" for number in range(20)]
    assert ran(warm, "warm", *sources).code == 1
    shown = ran(warm, "status").out
    assert "NOT WARM (16 of 20; craftcache status --all lists all)" in shown
    assert sum(f"{source}  " in shown for source in sources) == 16
    everything = ran(warm, "status", "--all").out
    assert "NOT WARM (20)" in everything
    assert all(f"{source}  " in everything for source in sources)
    listed = ran(warm, "status", "--all", "--json").json["not_warm"]
    assert {each["source"] for each in listed} == set(sources)
    live = ran(warm, "top", "--count", "1", COLUMNS="200").out
    assert f"{listed[0]['source']} " in live
    assert "NotFound: no such repository" in live


def test_what_could_not_be_refreshed_is_told_until_it_is(
    warm: DaemonProcess, threaded_hub: TestHub
) -> None:
    away = threaded_hub.inject(Status(404), path="*org/model*", method=None, times=None)
    assert ran(warm, "warm", MODEL).code != 0
    assert [each for each in status_of(warm).problems if "could not be refreshed" in each]
    away.cancel()
    assert ran(warm, "warm", MODEL).code == 0
    assert not [each for each in status_of(warm).problems if "could not be refreshed" in each]


def test_a_disk_with_less_than_min_free_is_told_of(
    base: Path, threaded_hub: TestHub, export_repo: Repo
) -> None:
    with DaemonProcess(base, "--min-free", "100%", HF_ENDPOINT=threaded_hub.endpoint) as daemon:
        [problem] = status_of(daemon).problems
        assert re.search(
            r"has \S+ .B left, and min_free keeps \S+ .B: what is not here is", problem
        )
        refused = ran(daemon, "warm", MODEL)
    assert refused.code == 1
    assert re.search(r"2\.2 MB more do not fit: \S+ .B are free on the disk, of which", refused.err)


def test_what_was_evicted_is_said_without_the_words_of_the_wire(warm: DaemonProcess) -> None:
    assert ran(warm, "evict", "--bytes", "1").code == 0
    found = why(warm)
    assert (found.code, found.message) == (
        "Evicted",
        "it was removed to make room, as an administrator asked",
    )
    assert f"removed {MODEL} to make room, as an administrator asked: 2.2 MB freed" in warm.log


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
        kept = ran(daemon, "rm", "watch:partial")
        assert (kept.code, "craftcache watch rm partial" in kept.err) == (1, True)
