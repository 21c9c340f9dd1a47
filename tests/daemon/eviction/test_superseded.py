"""A revision that a newer one took the place of: counted, the first to go, and still of use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from huggingface_hub import hf_hub_download
from hypothesis import given
from hypothesis import strategies as st

from craftcached.eviction.policy import Blob, EvictionCandidate, plan_eviction
from tests.support.checkpoints import saved

if TYPE_CHECKING:
    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

LM, CODEC = "state_dict.bin", "compression_state_dict.bin"


def version(number: int) -> dict[str, bytes]:
    return {LM: saved({"best_state": torch.full((1024,), number)}), CODEC: saved({"codec": 0})}


@pytest.fixture
def revisions(api: Api, export_repo: Repo) -> tuple[str, str]:
    """The commits of org/model that were warmed one after the other."""
    commits = []
    for number in (1, 2):
        commits.append(export_repo.commit(version(number)))
        assert api.warm("org/model").is_success
    first, second = commits
    return first, second


def models(api: Api) -> dict[str, bool]:
    """Whether each model that is cached is superseded."""
    return {model["source"]: model["superseded"] for model in api.get("/models")["models"]}


def test_it_counts_and_goes_first(
    api: Api, daemon: DaemonProcess, revisions: tuple[str, str]
) -> None:
    first, second = revisions
    assert models(api) == {"org/model": False, f"org/model@{first}": True}
    shared = len(version(1)[CODEC])
    assert api.get("/status")["bytes"] == 2 * len(version(1)[LM]) + shared
    evicted = api.request("POST", "/evict", json={"bytes": 1}).json()
    assert evicted["removed"] == [f"org/model@{first}"]
    assert evicted["freed_bytes"] == len(version(1)[LM])
    assert f"org/model@{first}" not in {each["source"] for each in api.get("/status")["not_warm"]}
    with daemon.client() as client:
        assert client.load("org/model").revision == second
    assert not (daemon.cache_dir / "models--org--model" / "snapshots" / first).exists()


def test_whoever_asks_for_it_by_name_has_it_and_it_stays(
    api: Api, daemon: DaemonProcess, revisions: tuple[str, str], threaded_hub: TestHub
) -> None:
    first, _ = revisions
    asked = len(threaded_hub.requests)
    with daemon.client() as client:
        loaded = client.load(f"org/model@{first}")
    assert (loaded.revision, loaded.lm["best_state"][0]) == (first, 1)
    assert len(threaded_hub.requests) == asked
    assert models(api) == {"org/model": False, f"org/model@{first}": False}


def test_programs_that_name_it_find_it(daemon: DaemonProcess, revisions: tuple[str, str]) -> None:
    for commit in revisions:
        hf_hub_download(
            "org/model", LM, revision=commit, cache_dir=daemon.cache_dir, local_files_only=True
        )


def test_it_goes_with_its_model(api: Api, revisions: tuple[str, str]) -> None:
    freed = api.delete("org/model").json()["freed_bytes"]
    assert freed == 2 * len(version(1)[LM]) + len(version(1)[CODEC])
    assert models(api) == {}


@pytest.mark.parametrize("filename", [LM, CODEC])
def test_what_is_wrong_with_it_is_not_fetched_anew(
    api: Api,
    daemon: DaemonProcess,
    revisions: tuple[str, str],
    threaded_hub: TestHub,
    filename: str,
) -> None:
    first, second = revisions
    pointer = daemon.cache_dir / "models--org--model" / "snapshots" / first / filename
    blob = pointer.resolve()
    blob.chmod(0o644)
    blob.write_bytes(b"rot" + blob.read_bytes()[3:])
    asked = threaded_hub.count("GET", "*")
    results = api.request("POST", "/verify").json()["results"]
    outcomes = {each["source"]: each["outcome"] for each in results if each["filename"] == filename}
    if filename == CODEC:  # which the current revision has as well, and brings
        assert outcomes == {"org/model": "mended", f"org/model@{first}": "mended"}
        assert models(api) == {"org/model": False, f"org/model@{first}": True}
        return
    assert outcomes == {"org/model": "right", f"org/model@{first}": "wrong"}
    assert models(api) == {"org/model": False}
    assert threaded_hub.count("GET", "*") == asked
    with daemon.client() as client:
        assert client.load("org/model").revision == second


def test_it_is_current_again_where_the_hub_goes_back(
    api: Api, export_repo: Repo, revisions: tuple[str, str]
) -> None:
    first, second = revisions
    export_repo.tag("main", first)
    assert api.warm("org/model").is_success
    assert models(api) == {"org/model": False, f"org/model@{second}": True}


def test_files_that_the_current_one_lacks_then_stay_counted(
    api: Api, daemon: DaemonProcess, export_repo: Repo
) -> None:
    first = export_repo.commit({**version(1), "README.md": b"of the first"})
    with daemon.client() as client:
        client.warm("org/model", filenames=(LM, CODEC, "README.md"))
        second = export_repo.commit({**version(2), "README.md": None})
        assert api.warm("org/model").is_success
        export_repo.tag("main", first)
        assert api.warm("org/model").is_success
    superseded = {f"org/model@{commit}": True for commit in (first, second)}
    assert models(api) == {"org/model": False} | superseded
    assert api.delete("org/model").is_success
    assert models(api) == {}
    assert not (daemon.cache_dir / "models--org--model").exists()


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 9)), max_size=8),
    st.integers(1, 40),
)
def test_none_that_is_current_goes_while_a_superseded_one_could(
    drawn: list[tuple[bool, int, int]], wanted: int
) -> None:
    candidates = [
        EvictionCandidate(
            str(number),
            f"org/{number}",
            frozenset({Blob(1, number, size, in_use=False)}),
            last_use,
            is_superseded=is_superseded,
        )
        for number, (is_superseded, last_use, size) in enumerate(drawn)
    ]
    plan = plan_eviction(candidates, wanted)
    if any(not victim.is_superseded for victim in plan.victims):
        assert {c.key for c in candidates if c.is_superseded} <= {v.key for v in plan.victims}
