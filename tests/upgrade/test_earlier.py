"""A cache and records that release 0.1.0 wrote, in the hands of this one."""

from __future__ import annotations

import sqlite3
import tarfile
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import hf_hub_download

from craftcache import Client
from craftcache.cache.directory import CacheDir
from tests.support import DATA
from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.hub import Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hub import TestHub

URL = "http://127.0.0.1:38489"
EXPORTS = {"org/model": 1.0, f"{URL}/m/": 2.0, "watch:my-run": 3.0, "watch:my-run@2": 4.0}
NAMED = f"{URL}/h/extra-a4952c29.th"
BLOBS = 9


@pytest.fixture
def earlier(base: Path) -> Path:
    """A base directory with the cache and state of 0.1.0; see the README beside the data."""
    with tarfile.open(DATA / "release-0.1.0" / "files.tar.gz") as tar:
        # The argument of that name came with Python 3.11.4.
        tar.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
        tar.extractall(base)
    return base


@pytest.fixture
def daemon(earlier: Path, threaded_hub: TestHub) -> Iterator[DaemonProcess]:
    """This release's daemon on it; its Hub knows nothing, and the URLs are gone."""
    threaded_hub.inject(Status(503), path="*", method=None, times=None)
    with DaemonProcess(
        earlier, "--insecure-host", "127.0.0.1", HF_ENDPOINT=threaded_hub.endpoint
    ) as running:
        yield running


def assert_right(client: Client, served_by: str, *sources: str) -> None:
    for source in sources:
        export = client.load(source)
        assert export.served_by == served_by
        for checkpoint in (export.lm, export.compression):
            state = checkpoint["best_state"]
            assert (state["w"] == EXPORTS[source]).all()
            assert (state["v"] == EXPORTS[source] + 0.5).all()
            assert (state["w"].shape, state["v"].shape) == ((16,), (16, 2))


def test_all_that_was_cached_is_served_without_asking_anybody(
    daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    with daemon.client() as client:
        assert_right(client, "daemon", *EXPORTS)
        assert (client.load_state_dict(NAMED)["best_state"]["w"] == 5.0).all()
        models = {model.source: model for model in client.models()}
    assert models["org/model"].is_pinned
    assert set(models) == {*EXPORTS, NAMED, "watch:my-run@1"}
    assert not [r for r in threaded_hub.requests if "away" not in r.path]
    with Api(daemon.socket_dir) as api:
        results = api.request("POST", "/verify").json()
        assert results["found"] == {"right": sum(len(m.files) for m in models.values())}
        assert api.get("/quarantine")["files"] == []
        assert api.request("DELETE", "/models/org%2Fmodel").json()["code"] == "PolicyDenied"


def test_the_records_are_taken_over(daemon: DaemonProcess) -> None:
    with Api(daemon.socket_dir) as api:
        (queued,) = api.get("/warm")["jobs"]
        watch = api.get("/watches/my-run")
    assert (queued["source"], queued["files"], queued["resident"]) == (
        *("org/away", ["state_dict.bin"], True),
    )
    assert (watch["directory"], watch["keep"], watch["held"]) == ("/runs/my-run/export", 2, True)
    assert watch["served"]["generation"] == 1
    assert daemon.terminate() == 0
    with sqlite3.connect(daemon.state_dir / "craftcached.sqlite") as records:
        assert records.execute("PRAGMA user_version").fetchone() == (1,)
        assert records.execute("SELECT source FROM pins").fetchall() == [("org/model",)]
        assert len(records.execute("SELECT key FROM uses").fetchall()) == 3
    records.close()


def test_a_worker_alone_loads_it_and_so_does_huggingface_hub(earlier: Path) -> None:
    cache = earlier / "cache"
    with Client(socket_dir=earlier / "none", cache_dir=cache, fallback="cache") as alone:
        assert_right(alone, "cache", *EXPORTS)
    own = hf_hub_download("org/model", "state_dict.bin", cache_dir=cache, local_files_only=True)
    assert own.split("/")[-2] == CacheDir(cache).hub_tree("org/model").commit_of("main")


def test_what_the_earlier_release_wrote_is_mended_too(
    earlier: Path, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    with Api(daemon.socket_dir) as api, daemon.client() as client:
        assert_right(client, "daemon", "org/model")
        pointer = client.resolve("org/model", "state_dict.bin")
        pointer.unlink()
        pointer.symlink_to("../../blobs/nothing")
        results = api.request("POST", "/verify", json={"sources": ["org/model"]}).json()["results"]
        (link,) = (result for result in results if result["part"] == "link")
        assert (link["outcome"], link["filename"]) == ("mended", "state_dict.bin")
        assert pointer.is_file()
