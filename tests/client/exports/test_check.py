"""Checking an export: what is wrong with it is said, all at once."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache.errors import NotFound
from craftcache.exports import check_export
from tests.support.daemons import EXPORT
from tests.support.pickles import Op, archive

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A real export, to be spoilt."""
    shutil.copytree(EXPORT, tmp_path / "export")
    return tmp_path / "export"


def test_a_real_export_is_good_and_summed_up(export: Path) -> None:
    checked = check_export(export)
    assert checked.is_good
    assert checked.parts["lm"].settings["transformer_lm.num_layers"] == 2
    assert checked.parts["compression"].contents.tensors == 116
    size = (export / "compression_state_dict.bin").stat().st_size
    assert checked.parts["compression"].size == size


def test_a_missing_file_and_an_unsafe_one_are_both_named(export: Path) -> None:
    (export / "state_dict.bin").unlink()
    evil = archive(Op.whole(Op.call("os.system", Op.value("true"))))
    (export / "compression_state_dict.bin").write_bytes(evil)
    missing, unsafe = check_export(export).problems
    assert missing == "state_dict.bin is missing"
    assert "system" in unsafe


@pytest.mark.parametrize(
    ("package", "problem"),
    [
        ({"xp.cfg": "a: 1"}, "no state dict under 'best_state'"),
        ({"best_state": {"x": torch.ones(2)}}, "no configuration in YAML under 'xp.cfg'"),
        ({"best_state": {"x": torch.ones(2)}, "xp.cfg": "a: ["}, "'xp.cfg' is not YAML"),
        ({"best_state": {"x": torch.ones(2)}, "xp.cfg": "a"}, "'xp.cfg' is no mapping"),
        ({"best_state": {"x": 3}, "xp.cfg": "a: 1"}, "more than tensors"),
        ([1, 2], "no state dict"),
    ],
)
def test_wrong_keys_are_problems(export: Path, package: object, problem: str) -> None:
    torch.save(package, export / "state_dict.bin")
    assert any(problem in found for found in check_export(export).problems)


def test_a_truncated_file_is_a_problem(export: Path) -> None:
    data = (export / "state_dict.bin").read_bytes()
    (export / "state_dict.bin").write_bytes(data[: len(data) // 2])
    (problem,) = check_export(export).problems
    assert problem.startswith("state_dict.bin: it is a truncated zip archive")


def test_the_first_releases_exports_are_good(export: Path) -> None:
    package = torch.load(export / "state_dict.bin", weights_only=True)
    del package["version"], package["exported"]
    torch.save(package, export / "state_dict.bin")
    checked = check_export(export)
    assert checked.is_good
    assert checked.parts["lm"].version is None
    assert "first release" in checked.notes[0]


def test_a_reference_is_looked_up_on_the_hub(
    export: Path, threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    threaded_hub.repo("org/codec").commit({"config.json": b"{}"})

    def check(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        package = {"pretrained": name, "exported": True, "version": "1.3.0"}
        torch.save(package, export / "compression_state_dict.bin")
        checked = check_export(export)
        return checked.problems, checked.notes

    assert check("org/codec")[0] == ()
    assert "is on the Hub" in check("org/codec")[1][-1]
    assert "the codec org/missing cannot be had" in check("org/missing")[0][0]
    assert "the codec //pretrained/org/codec cannot be had" in check("//pretrained/org/codec")[0][0]
    assert check("dac_44khz")[0] == ()
    assert "of this machine" in check(str(export / "state_dict.bin"))[1][-1]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    problems, notes = check("org/codec")
    assert problems == ()
    assert "is not known" in notes[-1]


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        check_export(tmp_path / "nothing")
