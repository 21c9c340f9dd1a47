"""AudioCraft's own loaders with craftcache installed, against the same ones as they are.

On a machine with a CUDA device the models are loaded there; elsewhere on the CPU, where there is a
model in memory in the end, and the figures are of what is needed beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache.cache.directory import CacheDir
from craftcache.cache.publish import record_index
from craftcache.checkpoint.index import dump
from craftcache.checkpoint.reader import read_index
from tests.support.hub import OnDisk, hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]

IS_CUDA = torch.cuda.is_available() and not os.environ.get("CRAFTCACHE_TEST_DRY_RUN")
DEVICE = "cuda" if IS_CUDA else "cpu"

SIZES = ("org/small", "org/large")

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Sums of floats depend on how many threads share them."""

PROGRAM_SECONDS = 110.0
"""Time limit of each program; two of them run at once."""

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("audiocraft") is None, reason="AudioCraft is not installed"
    ),
    pytest.mark.timeout(2 * PROGRAM_SECONDS + 20),
]


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    """What the program says: of what it made, and of it as it is and with craftcache."""
    with tempfile.TemporaryDirectory(prefix="craftcache-musicgen-") as temporary:
        directory = Path(temporary)
        made = run("make", str(directory / "made"))
        offline = warmed(directory / "made", directory / "cache")
        with ThreadPoolExecutor(2) as pool:
            ways = ("theirs", "ours")
            theirs, ours = pool.map(lambda way: run(way, DEVICE, **offline), ways)
        yield {"made": made, "theirs": theirs, "ours": ours}


def warmed(made: Path, cache_dir: Path) -> dict[str, str]:
    """Fill ``cache_dir`` as a daemon would; the environment in which programs use it offline."""
    environment = {
        "CRAFTCACHE_SOCKET_DIR": str(cache_dir / "no daemon"),
        "CRAFTCACHE_CACHE_DIR": str(cache_dir),
        "HF_HUB_CACHE": str(cache_dir),
    }
    with hub_in_thread() as hub:
        for size in SIZES:
            files = (made / size).iterdir()
            hub.repo(size).commit({file.name: OnDisk(file) for file in files})
        program = "import craftcache, sys; [craftcache.load(name) for name in sys.argv[1:]]"
        run_python("-c", program, *SIZES, HF_ENDPOINT=hub.endpoint, **environment)
    cache = CacheDir(cache_dir)
    for blob in cache_dir.glob("models--*/blobs/*"):  # named by their sha256
        with blob.open("rb") as file:
            cache.write_index(blob.name, dump(read_index(file.fileno())))
        record_index(cache, blob.name)
    return {**environment, "HF_HUB_OFFLINE": "1"}


def run(*arguments: str, **environment: str) -> Any:
    """Run the program; what it found."""
    return json.loads(run_python("-m", "tests.gpu.musicgen", *arguments, **environment))


def run_python(*arguments: str, **environment: str) -> str:
    """Run Python, with nothing of craftcache's in the environment but this; its last line."""
    others = {name: value for name, value in os.environ.items() if "CRAFTCACHE_" not in name}
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            cwd=ROOT,
            env={**others, **ONE_THREAD, **environment},
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"{arguments} took too long: {(expired.stderr or b'')[-1200:]!r}")
    assert done.returncode == 0, f"{arguments}: {done.stderr[-1200:]}"
    return done.stdout.rpartition("\n")[0].rpartition("\n")[2]


@pytest.mark.parametrize("size", SIZES)
def test_all_tensors_are_those_that_audiocraft_loads(found: dict[str, Any], size: str) -> None:
    ours, theirs = (found[way]["tensors"][size] for way in ("ours", "theirs"))
    assert list(ours) == list(theirs)
    assert len(ours) > 50
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    layer = ours["lm.transformer.layers.0.linear1.weight"]
    dtype = "float16" if IS_CUDA else "float32"
    assert layer.startswith(f"(torch.{dtype}, device(type='{DEVICE}'")


def test_samples_are_the_same_bit_for_bit(found: dict[str, Any]) -> None:
    ours, theirs = found["ours"]["samples"], found["theirs"]["samples"]
    assert ours == theirs
    assert ours["device"] == DEVICE
    assert ours["finite"]
    assert ours["different"] > 1000


def test_no_copy_of_the_model_is_made_in_memory(
    found: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    """Beside what is to be there in the end: on the CPU that is the model in its own dtype."""
    lm_bytes = found["made"]["lm_bytes"]
    beside = {}
    for way in ("theirs", "ours"):
        record_property(f"{way} grown", found[way]["grown"])
        beside[way] = found[way]["grown"]["RssAnon"] - found[way]["on_cpu"]["lm"]
        record_property(f"{way} beside the model", beside[way])
    record_property("language model's checkpoint", lm_bytes)
    assert found["ours"]["on_cpu"] == found["theirs"]["on_cpu"]
    assert beside["theirs"] > 0.75 * lm_bytes
    assert beside["ours"] < 0.25 * lm_bytes
