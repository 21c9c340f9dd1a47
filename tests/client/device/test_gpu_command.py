"""The command for a machine with a GPU, run dry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.__main__ import Steps
from tests.gpu.verdict import verdict
from tests.gpu.wheels import unpack_wheels

ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(300)
def test_it_runs_dry_and_prints_one_document() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    document = json.loads(ran.stdout)
    assert (ran.returncode, ran.stderr) == (0, ""), document
    assert document["dry_run"]
    assert document["tests"]["passed"] > 10
    for step in ("tests", "audiocraft"):
        assert document[step]["outcome"] == "exit 0"
        assert not document[step]["failed"]
    assert document["verdict"]["wrong_tensors"] == 0
    assert document["verdict"]["compared_tensors"] > 500
    assert "skipped" not in document["bench"]
    loaders = {timing["loader"] for timing in document["bench"]["timings"]}
    assert loaders == {
        "craftcache",
        "craftcache load_into float16",
        "craftcache load_into float32",
        "craftcache past the page cache",
        "link",
        "safetensors",
        "torch.load",
        "torch.load(mmap=True).to",
    }
    assert document["verdict"]["models"] == {}  # such figures mean nothing


def timings(**seconds: float) -> dict[str, Any]:
    return {
        "timings": [
            {
                "model": "m",
                "state": "hot",
                "loader": loader.replace("_", " ", 1),
                "seconds": value,
                "gigabytes_per_second": 2 / value,
            }
            for loader, value in seconds.items()
        ]
    }


@pytest.mark.parametrize(
    ("ours", "enough"), [(0.05, [True, True, True]), (0.1, [False, False, False])]
)
def test_what_is_enough_is_what_was_asked_for(ours: float, enough: list[bool]) -> None:
    bench = timings(craftcache=ours, link=0.04)
    bench["timings"].append({**bench["timings"][0], "loader": "torch.load", "seconds": 0.5})
    told = verdict(bench)["models"]["m"]
    names = ("of_link", "gigabytes_per_second", "times_torch_load")
    assert [told[name]["is_enough"] for name in names] == enough
    assert told["load_into_times_load"] == {"value": None, "is_enough": None}


def test_without_figures_nothing_is_said() -> None:
    nothing = {"wrong_tensors": 0, "compared_tensors": 0, "models": {}, "sharing": []}
    assert verdict({}) == nothing


def test_sharing_is_held_to_its_targets() -> None:
    fast = {"model": "6.5 GB", "shared": True, "second_seconds": 0.02, "copies": 1.002}
    slow = {"model": "6.5 GB", "shared": True, "second_seconds": 0.06, "copies": 1.5}
    told = verdict({"sharing": [fast, slow]})["sharing"]
    assert [each["second_seconds"]["is_enough"] for each in told] == [True, False]
    assert [each["copies"]["is_enough"] for each in told] == [True, False]
    assert verdict({"sharing": [fast]}, dry_run=True)["sharing"] == []


def test_what_lies_in_wheels_is_there_to_import(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "NAME = 'carried here'")
    environment = unpack_wheels(tmp_path / "unpacked", wheels)
    program = "import carried, craftcache, tests.gpu; print(carried.NAME)"
    assert Steps(environment, tmp_path, 60).run("import", ["-c", program], 60) == (
        "exit 0",
        "carried here\n",
    )


def test_a_step_that_hangs_is_cut_off_and_what_it_said_is_kept(tmp_path: Path) -> None:
    program = "import threading; print('begun', flush=True); threading.Event().wait()"
    outcome, printed = Steps(dict(os.environ), tmp_path, 60).run("hang", ["-c", program], 3)
    assert outcome == "cut off"
    assert printed in ("begun\n", "")  # where Python had not even started
