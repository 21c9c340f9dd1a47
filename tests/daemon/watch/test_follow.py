"""Following a watch, and loading what it serves, through a real daemon."""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache.digests import hash_file
from craftcache.errors import NotFound, Unavailable
from tests.support.checkpoints import saved
from tests.support.daemons import DaemonProcess
from tests.support.watching import content, write, write_pair

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache import Export, Generation
    from craftcache.daemon.administration import WatchReport
    from tests.support.hub import TestHub


def values(export: Export) -> set[float]:
    """All numbers of both parts."""
    parts = (export.lm, export.compression)
    return {float(x) for part in parts for x in part["best_state"]["x"].unique()}


def test_a_follower_hears_of_each_generation_and_loads_it(
    daemon: DaemonProcess, export: Path
) -> None:
    client = daemon.client()
    following = client.follow("run")
    for number in (1, 2):
        write_pair(export, number)
        generation = next(following)
        loaded = client.load("watch:run")
        assert (generation.name, generation.number, generation.path) == ("run", number, export)
        assert generation.sha256 == {part: info.sha256 for part, info in loaded.files.items()}
        assert (loaded.served_by, values(loaded)) == ("daemon", {float(number)})
    assert values(client.load("watch:run@1")) == {1.0}


def test_a_pair_of_a_gigabyte_is_served_whole(daemon: DaemonProcess, export: Path) -> None:
    client = daemon.client()
    following = client.follow("run")
    write_pair(export, 1)
    assert next(following).number == 1
    weight = torch.arange(2**28, dtype=torch.int32)  # no two pages of it are alike
    torch.save({"best_state": {"x": weight}}, export / "state_dict.bin")
    generation = next(following)
    assert generation.sha256["lm"] == hash_file(export / "state_dict.bin").sha256
    loaded = client.load(f"watch:run@{generation.number}")
    assert loaded.files["lm"].size > 2**30
    assert torch.equal(loaded.lm["best_state"]["x"], weight)


def test_who_comes_later_hears_of_the_newest_alone(daemon: DaemonProcess, export: Path) -> None:
    client = daemon.client()
    following = client.follow("run")
    for number in (1, 2):
        write_pair(export, number)
        next(following)
    assert next(client.follow("watch:run")).number == 2
    write_pair(export, 3)
    assert next(client.follow("run", after=2)).number == 3


def test_a_follower_survives_a_kill_and_a_stop_of_the_daemon(
    daemon: DaemonProcess, export: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = daemon.client()
    following = client.follow("run")
    write_pair(export, 1)
    assert next(following).number == 1
    daemon.kill()
    write_pair(export, 2)
    daemon.start()
    assert next(following).number == 2
    assert daemon.terminate() == 0
    write_pair(export, 3)
    daemon.start()
    with caplog.at_level(logging.WARNING):
        assert next(following).number == 3
    assert caplog.records == []


async def test_asynchronous_followers_hear_the_same_and_can_be_cancelled(
    daemon: DaemonProcess, export: Path
) -> None:
    heard: asyncio.Queue[Generation] = asyncio.Queue()

    async def follow() -> None:
        async for generation in client.follow("run"):
            heard.put_nowait(generation)

    async with daemon.async_client() as client:
        tasks = [asyncio.create_task(follow()) for _ in range(3)]
        for number in (1, 2):
            await asyncio.to_thread(write_pair, export, number)
            assert [(await heard.get()).number for _ in tasks] == [number] * 3
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)


def test_followers_hold_up_no_stop(daemon: DaemonProcess, export: Path) -> None:
    """A stop waits for running requests, and a follower's has no end of its own."""
    client = daemon.client()
    write_pair(export, 1)
    following = client.follow("run")
    next(following)

    async def stop_while_followed() -> None:
        async with daemon.async_client() as followed:
            waiting = asyncio.ensure_future(anext(aiter(followed.follow("run", after=1))))
            await asyncio.to_thread(client.status)
            async with asyncio.timeout(4):  # less than the drain takes for a request
                assert await asyncio.to_thread(daemon.terminate) == 0
            waiting.cancel()
            await asyncio.wait([waiting])

    asyncio.run(stop_while_followed())


def test_an_unknown_watch_and_an_absent_daemon_are_said_at_once(
    daemon: DaemonProcess, export: Path
) -> None:
    client = daemon.client()
    with pytest.raises(NotFound, match="no such watch"):
        next(client.follow("other"))
    with pytest.raises(Unavailable, match="is absent"):
        client.load("watch:run")
    daemon.kill()
    with pytest.raises(Unavailable):
        next(client.follow("run"))


def test_a_directory_that_is_watched_loads_as_its_last_verified_generation(
    daemon: DaemonProcess, export: Path, base: Path
) -> None:
    client = daemon.client()
    write_pair(export, 1)
    next(client.follow("run"))
    write(export, "lm", content("lm", 2)[:-500])  # as a writer in the middle of its work leaves it
    loaded = client.load(export)
    assert (loaded.served_by, loaded.source, values(loaded)) == ("daemon", str(export), {1.0})
    assert client.load_state_dict(export, "state_dict.bin")["best_state"]["x"][0] == 1.0
    linked = base / "linked"
    linked.symlink_to(export)
    assert client.load(linked).served_by == "daemon"
    shutil.copytree(export, base / "copy")
    assert client.load(base / "copy", parts=("compression",)).served_by == "local"


def test_without_the_daemon_a_watch_loads_from_the_cache_and_its_directory_as_it_is(
    daemon: DaemonProcess, export: Path
) -> None:
    client = daemon.client()
    write_pair(export, 1)
    next(client.follow("run"))
    daemon.kill()
    write_pair(export, 2)
    assert (client.load("watch:run").served_by, values(client.load("watch:run"))) == (
        "cache",
        {1.0},
    )
    assert (client.load(export).served_by, values(client.load(export))) == ("local", {2.0})


def test_a_rollback_is_a_generation_to_followers(daemon: DaemonProcess, export: Path) -> None:
    from craftcache.daemon.admin import AdminClient

    client, admin = daemon.client(), AdminClient(daemon.socket_dir)
    following = client.follow("run")
    for number in (1, 2):
        write_pair(export, number)
        next(following)
    assert served_number(admin.roll_back_watch("run", None)) == 1
    assert next(following).number == 1
    assert values(client.load("watch:run")) == {1.0}
    assert served_number(admin.resume_watch("run")) == 2
    assert next(following).number == 2


def test_a_codec_that_a_pair_refers_to_is_warmed_with_it(
    base: Path, export: Path, config: Path, threaded_hub: TestHub
) -> None:
    codec = {"config.json": b"{}", "model.safetensors": b"tensors"}
    threaded_hub.repo("org/codec").commit(codec)
    write(export, "lm", content("lm", 1))
    write(export, "compression", saved({"pretrained": "org/codec", "exported": True}))
    endpoint = {"HF_ENDPOINT": threaded_hub.endpoint}
    with DaemonProcess(base, "--config", str(config), **endpoint) as daemon:
        client = daemon.client()
        next(client.follow("run"))
        assert client.load("watch:run").compression["pretrained"] == "org/codec"
        client.warm("org/codec", filenames=tuple(codec))  # joins the one under way
        (model,) = [each for each in client.models() if each.source == "org/codec"]
    assert {file.filename for file in model.files} == set(codec)
    gets = threaded_hub.matching("/org/codec/resolve/*", method="GET")
    assert len(gets) == len(codec)


def test_explain_says_that_a_directory_is_watched(daemon: DaemonProcess, export: Path) -> None:
    client = daemon.client()
    export.mkdir(parents=True)
    assert client.explain("watch:run").served_by is None
    write_pair(export, 1)
    next(client.follow("run"))
    explained = client.explain(export)
    assert (explained.kind, explained.served_by) == ("directory", "daemon")
    assert explained.revision == client.load("watch:run").revision
    assert client.status().watches == {"ready": 1}


def served_number(watch: WatchReport) -> int | None:
    return watch.served.generation if watch.served else None
