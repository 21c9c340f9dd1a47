"""The demonstration: that it holds, that it can fail, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from craftcache.demo.sample import Codec, LanguageModel, write_sample
from craftcache.demo.worker import digest
from craftcached.demo.hub import Hub, HubStatistics
from craftcached.demo.origin import Origin
from craftcached.demo.processes import DaemonProcess
from craftcached.demo.steps import Demonstration
from tests.support.daemons import EXPORT, EXPORT_FILES
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.hub import Repo, TestHub

CRAFTCACHE = Path(sys.executable).with_name("craftcache")
MARK = "MARK_OF_THIS_TEST"


class Run:
    """``craftcache demo`` in a process of its own, with a temporary directory of its own."""

    def __init__(self, base: Path, *arguments: str, **environment: str) -> None:
        self.temporary = base / "tmp"
        self.temporary.mkdir()
        self._mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [CRAFTCACHE, "demo", *arguments],
            env=os.environ | environment | {"TMPDIR": str(self.temporary), MARK: self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> tuple[int, str, str]:
        """Its exit code and all that it said."""
        out, err = self.process.communicate()
        return self.process.returncode, out, err

    def remains(self) -> list[str]:
        """The processes and files that are left of it."""
        marked = f"{MARK}={self._mark}".encode()
        processes = [
            str(path) for path in Path("/proc").glob("[0-9]*/environ") if marked in _read(path)
        ]
        return processes + [str(path) for path in self.temporary.iterdir()]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # ended meanwhile, or not ours
        return b""


# -- the whole of it ---------------------------------------------------------------------------


def test_every_promise_is_kept_and_nothing_is_left(base: Path) -> None:
    run = Run(base, "--json", "--workers", "3")
    code, out, err = run.finish()
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["kept"] is True
    warm, at_once, kill, alone = report["steps"]
    assert warm["bytes_fetched"] > 50_000_000
    assert warm["served_by"] == at_once["served_by"] == "daemon"
    assert at_once["bytes_fetched"] == alone["bytes_fetched"] == 0
    assert alone["served_by"] == "cache"
    assert all(step["broken"] == [] for step in (warm, at_once, kill, alone))
    assert run.remains() == []


def test_a_real_source_as_a_table(base: Path, threaded_hub: TestHub, export_repo: Repo) -> None:
    run = Run(base, "--workers", "1", "org/model", HF_ENDPOINT=threaded_hub.endpoint)
    code, out, err = run.finish()
    assert code == 0, err
    assert out.endswith("Every promise was kept.\n")
    assert all(step in out for step in ("warm", "load in 1 worker ", "kill", "load without"))
    size = sum(path.stat().st_size for path in EXPORT_FILES.values())
    assert threaded_hub.bytes_sent(origin="cdn") == size
    assert run.remains() == []


def test_a_source_that_does_not_exist_fails(base: Path, threaded_hub: TestHub) -> None:
    run = Run(base, "org/absent", HF_ENDPOINT=threaded_hub.endpoint)
    code, out, err = run.finish()
    assert code == 1
    assert "A promise was broken." in out
    assert "craftcache: org/absent: no such repository" in err
    assert run.remains() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_in_the_middle_it_leaves_nothing(
    base: Path, threaded_hub: TestHub, export_repo: Repo, number: signal.Signals
) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate, after=1000), times=None)
    run = Run(base, "org/model", HF_ENDPOINT=threaded_hub.endpoint)
    gate.reached.wait_blocking()
    for _ in range(2):  # as somebody in a hurry does
        run.process.send_signal(number)
    code, _, err = run.finish()
    gate.open()
    assert code == 1
    assert err.endswith("craftcache: interrupted\n")
    assert "Traceback" not in err
    assert run.remains() == []


def test_without_the_daemon_installed_it_says_how_to() -> None:
    script = (
        "import sys; sys.modules['aiohttp'] = None; import craftcache.cli as c; c.main(['demo'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'craftcache[daemon,torch]'\n")


# -- that it can fail --------------------------------------------------------------------------


async def test_broken_promises_are_found(base: Path) -> None:
    sample = base / "sample"
    sample.mkdir()
    for name, path in EXPORT_FILES.items():
        (sample / name).write_bytes(path.read_bytes())
    async with Hub("demo/wrong", sample) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint}
        async with DaemonProcess(base, environment) as daemon:
            origin = Origin("demo/wrong", hub, size=1, digest="0" * 64)
            places = {
                "CRAFTCACHE_CACHE_DIR": str(daemon.cache_dir),
                "CRAFTCACHE_SOCKET_DIR": str(base / "elsewhere"),
            }
            demo = Demonstration(origin, daemon, environment | places, workers=1)
            warm, at_once, kill, alone = [step async for step in demo.steps(lambda _: None)]
    assert len(warm.broken) == 2
    assert at_once.broken == ("served by daemon alone", "every worker gets the same tensors")
    assert kill.broken == ()
    assert alone.broken == ("every worker gets the same tensors",)


# -- the sample --------------------------------------------------------------------------------


def test_the_sample_has_the_keys_of_a_real_export(tmp_path: Path) -> None:
    lm = torch.load(EXPORT / "state_dict.bin", weights_only=True)
    codec = torch.load(EXPORT / "compression_state_dict.bin", weights_only=True)
    assert [key for key, _ in LanguageModel(layers=2).shapes()] == list(lm["best_state"])
    assert [key for key, _ in Codec().shapes()] == list(codec["best_state"])
    size = write_sample(tmp_path)
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    for name, real in {"state_dict.bin": lm, "compression_state_dict.bin": codec}.items():
        sample = torch.load(tmp_path / name, weights_only=True)
        assert [(key, type(value)) for key, value in sample.items()] == [
            (key, type(value)) for key, value in real.items()
        ]
        assert _dtypes(sample) == _dtypes(real)


def test_the_shapes_of_the_sample_are_those_of_a_real_export() -> None:
    lm = torch.load(EXPORT / "state_dict.bin", weights_only=True)["best_state"]
    codec = torch.load(EXPORT / "compression_state_dict.bin", weights_only=True)["best_state"]
    narrow = LanguageModel(dim=64, layers=2, card=1024, bins=128, bin_dim=16)
    assert dict(narrow.shapes()) == {key: tuple(value.shape) for key, value in lm.items()}
    thin = Codec(filters=2, dimension=16, card=1024)
    assert dict(thin.shapes()) == {key: tuple(value.shape) for key, value in codec.items()}


def test_the_sample_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_sample(tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def _dtypes(export: dict[str, Any]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in export["best_state"].values()}


def test_the_digest_sees_values_names_dtypes_and_shapes() -> None:
    weight = torch.arange(6, dtype=torch.float32)
    digests = [
        digest({"a": weight}),
        digest({"b": weight}),
        digest({"a": weight + 1}),
        digest({"a": weight.view(2, 3)}),
        digest({"a": weight.view(torch.int32)}),
        digest({"a": weight, "b": torch.empty(0)}),
    ]
    assert len(set(digests)) == len(digests)
    assert (
        digest({"a": torch.stack([weight, weight], 1)[:, 0]}) == digests[0]
    )  # strides do not count


# -- the hub -----------------------------------------------------------------------------------


@pytest.fixture
async def small_hub(tmp_path: Path) -> AsyncIterator[Hub]:
    """A hub with one file of 1000 bytes."""
    (tmp_path / "state_dict.bin").write_bytes(bytes(range(250)) * 4)
    async with Hub("demo/small", tmp_path) as hub:
        yield hub


async def test_the_unmodified_library_downloads_from_the_hub(
    small_hub: Hub, tmp_path: Path
) -> None:
    def download(repo_id: str, filename: str, revision: str = "main") -> str:
        return hf_hub_download(
            repo_id,
            filename,
            revision=revision,
            cache_dir=tmp_path / "cache",
            endpoint=small_hub.endpoint,
        )

    path = Path(await asyncio.to_thread(download, "demo/small", "state_dict.bin"))
    assert path.read_bytes() == bytes(range(250)) * 4
    assert path.parent.name == small_hub.commit
    assert small_hub.statistics() == HubStatistics(requests=2, bytes_sent=1000)
    for error, missing in (
        (RepositoryNotFoundError, ("demo/other", "state_dict.bin")),
        (EntryNotFoundError, ("demo/small", "other.bin")),
        (RevisionNotFoundError, ("demo/small", "state_dict.bin", "other")),
    ):
        with pytest.raises(error):
            await asyncio.to_thread(download, *missing)


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "part"),
    [
        (None, 200, None, slice(0, 1000)),
        ("bytes=10-19", 206, "bytes 10-19/1000", slice(10, 20)),
        ("bytes=990-", 206, "bytes 990-999/1000", slice(990, 1000)),
        ("bytes=-5", 206, "bytes 995-999/1000", slice(995, 1000)),
        ("bytes=0-", 206, "bytes 0-999/1000", slice(0, 1000)),
        ("bytes=0-5000", 206, "bytes 0-999/1000", slice(0, 1000)),
        ("bytes=1000-", 416, "bytes */1000", slice(0, 0)),
        ("furlongs=1-2", 416, "bytes */1000", slice(0, 0)),
    ],
)
async def test_the_hub_serves_ranges(
    small_hub: Hub, wanted: str | None, status: int, content_range: str | None, part: slice
) -> None:
    url = f"{small_hub.endpoint}/demo/small/resolve/main/state_dict.bin"
    headers = {"Range": wanted} if wanted else {}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        body = await response.read()
    assert (response.status, response.headers.get("Content-Range")) == (status, content_range)
    assert body == (bytes(range(250)) * 4)[part]
    assert small_hub.statistics().bytes_sent == len(body)
