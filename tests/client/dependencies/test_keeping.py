"""What is needed stays as long as a model needs it, and goes with the last one that does."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.cache.manifest import manifest_key
from craftcache.daemon.administration import Eviction, KeptModel
from craftcache.dependencies import Dependency
from craftcache.sources import HubSource, WatchSource
from craftcache.wire import Warm, WarmOptions
from craftcached.database import Database, WarmJob
from craftcached.eviction.policy import Blob, plan_eviction
from craftcached.eviction.policy import EvictionCandidate as Candidate
from craftcached.watch.generations import Generations
from tests.support.api import Api
from tests.support.dependencies import PAIR, REFERRING, T5_FILES, WORDS, host_codec, host_t5, listed
from tests.support.hub import Gate, Stall, matching
from tests.support.published import Keeping, keeping, source

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.cache.manifest import Manifest
    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

T5_SIZE = sum(map(len, T5_FILES.values()))
PAIR_SIZE = sum(map(len, PAIR.values()))


@pytest.fixture
def two(api: Api, threaded_hub: TestHub) -> Api:
    """Two models that need t5-base are warm, and one of them needs a codec as well."""
    host_t5(threaded_hub)
    host_codec(threaded_hub)
    threaded_hub.repo("org/one").commit(PAIR)
    threaded_hub.repo("org/two").commit(REFERRING)
    assert api.warm("org/one", "org/two").status_code == 200
    return api


def test_its_superseded_revision_goes_with_it(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    encoder = host_t5(threaded_hub)
    threaded_hub.repo("org/model").commit(PAIR)
    assert api.warm("org/model").status_code == 200
    old = encoder.resolve("main")
    encoder.commit({"config.json": T5_FILES["config.json"] + b" "})
    assert api.warm("org/model").status_code == 200
    assert set(listed(api)) == {"org/model", "t5-base", f"t5-base@{old}"}
    api.delete("org/model")
    assert listed(api) == {}
    assert not (daemon.cache_dir / "models--t5-base").exists()


def test_it_goes_with_the_last_model_that_needs_it(two: Api, daemon: DaemonProcess) -> None:
    assert two.delete("org/two").status_code == 200
    assert set(listed(two)) == {"org/one", "t5-base"}
    freed = two.delete("org/one").json()["freed_bytes"]
    assert freed == PAIR_SIZE + T5_SIZE
    assert listed(two) == {}
    assert not (daemon.cache_dir / "models--t5-base").exists()


def test_what_comes_for_a_model_that_is_removed_meanwhile_goes_too(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    host_t5(threaded_hub)
    threaded_hub.repo("org/model").commit(PAIR)
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="*t5-base*", method=None)
    with ThreadPoolExecutor() as threads:
        warming = threads.submit(api.warm, "org/model")
        threaded_hub.wait_for_request_blocking(matching("*t5-base*"))
        with Api(daemon.socket_dir) as other:
            assert other.delete("org/model").status_code == 200
        gate.open()
        assert warming.result().status_code == 200
    assert threaded_hub.count("GET", "*/model.safetensors") > 0
    assert listed(api) == {}


@pytest.mark.parametrize("how", ["warm", "resolve", "rm and warm"])
def test_it_stays_once_somebody_asked_for_it_by_name(
    two: Api, daemon: DaemonProcess, how: str
) -> None:
    with daemon.client() as client:
        match how:
            case "warm":
                client.warm("t5-base", filenames=("config.json",))
            case "resolve":
                client.resolve("t5-base", "config.json")
            case _:
                two.delete("t5-base")
                client.warm("t5-base", filenames=("config.json",))
                client.warm("org/one")
    for model in ("org/one", "org/two"):
        two.delete(model)
    assert set(listed(two)) == {"t5-base"}
    assert listed(two)["t5-base"]["needed_only"] is False


def test_what_a_pinned_model_needs_is_pinned_with_it(two: Api) -> None:
    two.request("PUT", "/pins/org/one")
    refused = two.delete("t5-base")
    assert (refused.status_code, refused.json()["code"]) == (403, "PolicyDenied")
    assert refused.json()["detail"] == "org/one is pinned, and needs it"
    evicted = two.request("POST", "/evict", json={"bytes": 10**12}).json()
    assert set(evicted["removed"]) == {"org/two", "facebook/encodec_32khz"}
    kept = {model["source"]: model["reason"] for model in evicted["kept"]}
    assert kept == {"org/one": "pinned", "t5-base": "needed by org/one"}
    two.request("DELETE", "/pins/org/one")
    assert two.delete("t5-base").status_code == 200


def test_a_pinned_need_outlives_the_model(two: Api) -> None:
    two.request("PUT", "/pins/t5-base")
    for model in ("org/one", "org/two"):
        two.delete(model)
    assert set(listed(two)) == {"t5-base"}


def test_what_is_gone_is_missing_until_the_next_warm(
    two: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    two.delete("t5-base")
    assert [need["is_cached"] for need in listed(two)["org/one"]["needs"]] == [False]
    two.warm("org/one")
    assert [need["is_cached"] for need in listed(two)["org/one"]["needs"]] == [True]
    blob = next((daemon.cache_dir / "models--t5-base/blobs").iterdir())
    blob.unlink()
    assert [need["is_cached"] for need in listed(two)["org/one"]["needs"]] == [False]


def test_a_revision_that_needs_it_no_more_lets_it_go(
    api: Api, daemon: DaemonProcess, threaded_hub: TestHub
) -> None:
    host_t5(threaded_hub)
    repo = threaded_hub.repo("org/model")
    first = repo.commit(PAIR)
    api.warm("org/model")
    assert api.request("PUT", "/pins/t5-base").status_code == 200  # it would go with the warm
    repo.commit(WORDS)
    api.warm("org/model")
    assert listed(api)["org/model"]["needs"] == []
    assert api.request("DELETE", "/pins/t5-base").status_code < 300
    evicted = api.request("POST", "/evict", json={"bytes": T5_SIZE}).json()
    assert evicted["removed"][:2] == [f"org/model@{first}", "t5-base"]


async def needing(parts: Keeping, name: str, *needs: str) -> Manifest:
    """A model, used now, that needs others, which must be there."""
    manifest = await parts.publish(name, file=name.encode() * 100)
    needed = tuple(Dependency(str(source(each)), "a test") for each in needs)
    manifest = replace(manifest, needs=needed)
    parts.store.cache.write_manifest(source(name), manifest)
    return manifest


async def needed_only(parts: Keeping, name: str) -> Manifest:
    manifest = await parts.publish(name, file=name.encode() * 100)
    manifest = replace(manifest, needed_only=True)
    parts.store.cache.write_manifest(source(name), manifest)
    return manifest


def shown(name: str) -> str:
    return f"https://example.org/{name}"


@pytest.mark.parametrize("dry_run", [True, False])
async def test_it_is_not_evicted_before_the_model(tmp_path: Path, dry_run: bool) -> None:
    async with keeping(tmp_path) as parts:
        await needed_only(parts, "encoder")
        await needing(parts, "old", "encoder")
        await needing(parts, "new", "encoder")
        eviction = await parts.evictor.evict(1, dry_run=dry_run)
        assert eviction == Eviction((shown("old"),), 300, 0, ())
        eviction = await parts.evictor.evict(301, dry_run=dry_run)
        if dry_run:
            assert eviction.removed == (shown("old"), shown("new"), shown("encoder"))
        else:
            assert eviction.removed == (shown("new"), shown("encoder"))
            assert eviction.freed_bytes == 300 + 700
            assert await parts.names() == set()


async def test_what_was_asked_for_by_name_goes_when_its_turn_comes(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        await parts.publish("encoder", file=b"encoder" * 100)
        await needing(parts, "model", "encoder")
        await parts.publish("latest", file=b"latest" * 100)
        first = await parts.evictor.evict(1, dry_run=False)
        assert first.removed == (shown("model"),)
        second = await parts.evictor.evict(1, dry_run=False)
        assert second.removed == (shown("encoder"),)


async def test_a_pinned_model_keeps_it_and_says_so(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        await needed_only(parts, "encoder")
        await needing(parts, "model", "encoder")
        await parts.pins.pin(source("model"), lock=False)
        eviction = await parts.evictor.evict(1, dry_run=False)
        assert (eviction.removed, eviction.freed_bytes) == ((), 0)
        assert set(eviction.kept) == {
            KeptModel(shown("model"), "pinned"),
            KeptModel(shown("encoder"), f"needed by {shown('model')}"),
        }


async def test_what_is_pinned_or_held_stays_whoever_removes_the_model(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        for name in ("pinned", "held", "free"):
            await needed_only(parts, name)
        model = await needing(parts, "model", "pinned", "held", "free")
        parts.store.cache.write_manifest(WatchSource("run"), replace(model, source="watch:run"))
        await parts.store.remove(manifest_key(source("model")))
        await parts.pins.pin(source("pinned"), lock=False)
        await parts.holds.hold(source("held"), 1000, 60)
        assert await parts.names() == {"pinned", "held", "free", "watch:run"}
        await Generations(parts.store, "run", ()).remove_all()
        assert await parts.names() == {"pinned", "held"}


async def test_models_that_need_each_other_can_go(tmp_path: Path) -> None:
    async with keeping(tmp_path) as parts:
        await needing(parts, "a", "b")
        await needing(parts, "b", "a")
        eviction = await parts.evictor.evict(10**6, dry_run=False)
        assert set(eviction.removed) == {shown("a"), shown("b")}


@st.composite
def caches(draw: st.DrawFn) -> list[Candidate]:
    """Models, each with a blob of its own, of which some need some that come after them."""
    count = draw(st.integers(0, 7))
    later = [[str(other) for other in range(number + 1, count)] for number in range(count)]
    return [
        Candidate(
            key=str(number),
            source=f"org/{number}",
            blobs=frozenset({Blob(1, number, draw(st.integers(1, 9)), draw(st.booleans()))}),
            last_use=draw(st.integers(0, 3)),
            is_kept=draw(st.booleans()),
            needs=draw(st.frozensets(st.sampled_from(later[number])))
            if later[number]
            else frozenset(),
            is_needed_only=draw(st.booleans()),
        )
        for number in range(count)
    ]


@given(caches(), st.integers(-5, 70))
def test_no_plan_takes_what_a_staying_model_needs(models: list[Candidate], wanted: int) -> None:
    plan = plan_eviction(models, wanted)
    staying = [model for model in models if model not in plan.victims]
    needed = frozenset().union(*(model.needs for model in staying))
    assert not {model.key for model in plan.victims} & needed
    order = {model.key: place for place, model in enumerate(plan.victims)}
    for model in plan.victims:
        assert all(order[model.key] < order[need] for need in model.needs & order.keys())


@given(caches(), st.integers(-5, 70))
def test_every_plan_takes_what_only_its_victims_needed(
    models: list[Candidate], wanted: int
) -> None:
    plan = plan_eviction(models, wanted)
    victims = set(plan.victims)
    behind = frozenset().union(*(model.needs for model in victims))
    needed = frozenset().union(*(model.needs for model in models if model not in victims))
    for model in models:
        in_use = any(blob.in_use for blob in model.blobs)
        is_orphan = model.is_needed_only and model.key in behind - needed
        if is_orphan and not model.is_kept and not in_use:
            assert model in victims


async def test_warms_that_an_earlier_release_promised_are_kept(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "craftcached.sqlite") as records:
        records.execute(
            "CREATE TABLE warm_jobs (id INTEGER PRIMARY KEY, source TEXT NOT NULL, "
            "filenames TEXT NOT NULL, resident INTEGER NOT NULL, "
            "UNIQUE (source, filenames, resident))"
        )
        records.execute("INSERT INTO warm_jobs VALUES (7, 'org/model', '[]', 1)")
    records.close()
    source = HubSource("org/model")
    jobs = [WarmJob(7, Warm(source, WarmOptions(resident=True)))]
    async with Database(tmp_path) as upgraded:
        assert await upgraded.warm_jobs() == jobs
        jobs.append(await upgraded.add_warm_job(Warm(source, WarmOptions(pair_only=True))))
    async with Database(tmp_path) as again:
        assert await again.warm_jobs() == jobs
