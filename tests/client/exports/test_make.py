"""Making an export: the content of AudioCraft's functions, written as a pair."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from craftcache.errors import InvalidSource, NotFound, UnsafeCheckpoint
from craftcache.exports import check_export, make_export
from craftcached.watch.snapshot import Target, look
from tests.support.checkpoints import assert_same
from tests.support.exports import CONFIG, model, training_checkpoint
from tests.support.pickles import Op, archive

if TYPE_CHECKING:
    from pathlib import Path


def loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("fsdp", [False, True], ids=["plain", "fsdp"])
def test_a_training_checkpoint_becomes_an_export(tmp_path: Path, fsdp: bool) -> None:
    lm = training_checkpoint(tmp_path / "checkpoint.th", fsdp=fsdp)
    make_export(lm, "facebook/encodec_32khz", tmp_path / "out")
    package = loaded(tmp_path / "out" / "state_dict.bin")
    assert list(package) == ["best_state", "xp.cfg", "version", "exported"]
    assert_same(package["best_state"], model(1.0))
    assert OmegaConf.create(package["xp.cfg"]) == OmegaConf.create(CONFIG)
    assert package["exported"] is True
    reference = loaded(tmp_path / "out" / "compression_state_dict.bin")
    assert reference == {
        "pretrained": "facebook/encodec_32khz",
        "exported": True,
        "version": package["version"],
    }


def test_a_codec_is_exported_or_copied(tmp_path: Path) -> None:
    trained = training_checkpoint(tmp_path / "codec.th")
    make_export(trained, str(trained), tmp_path / "one")
    exported = tmp_path / "one" / "compression_state_dict.bin"
    make_export(trained, str(exported), tmp_path / "two")
    first, second = loaded(exported), loaded(tmp_path / "two" / "compression_state_dict.bin")
    assert_same(first, second)
    assert_same(first["best_state"], model(1.0))


def test_a_configuration_without_omegaconf_needs_none(tmp_path: Path) -> None:
    lm = training_checkpoint(tmp_path / "checkpoint.th", config=CONFIG)
    script = (
        "import sys; sys.modules['omegaconf'] = None\n"
        "from pathlib import Path\n"
        "from craftcache.exports import make_export\n"
        "make_export(Path(sys.argv[1]), 'dac_44khz', Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", script, str(lm), str(tmp_path / "out")], check=True)
    text = loaded(tmp_path / "out" / "state_dict.bin")["xp.cfg"]
    assert yaml.safe_load(text) == CONFIG


def test_both_files_appear_at_once(tmp_path: Path) -> None:
    """The directory is another one afterwards: nobody sees one file of each pair."""
    lm = training_checkpoint(tmp_path / "checkpoint.th")
    out = tmp_path / "out"
    make_export(lm, "dac_44khz", out)
    before = look(Target.of(str(out)))
    with (out / "state_dict.bin").open("rb") as held:
        first = held.read()
        make_export(lm, "dac_24khz", out)
        held.seek(0)
        assert held.read() == first
    after = look(Target.of(str(out)))
    assert before.directory != after.directory
    assert after.is_complete
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.th", "out"]


def test_what_is_no_export_is_not_replaced(tmp_path: Path) -> None:
    lm = training_checkpoint(tmp_path / "checkpoint.th")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(InvalidSource, match=r"notes\.txt"):
        make_export(lm, "dac_44khz", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["notes.txt"]


def test_what_fails_leaves_the_old_pair(tmp_path: Path) -> None:
    lm, out = training_checkpoint(tmp_path / "checkpoint.th"), tmp_path / "out"
    make_export(lm, "dac_44khz", out)
    before = look(Target.of(str(out)))
    evil = tmp_path / "evil.th"
    evil.write_bytes(archive(Op.whole(Op.call("os.system", Op.value("true")))))
    torch.save({"xp.cfg": "a: 1"}, tmp_path / "empty.th")
    with pytest.raises(UnsafeCheckpoint, match="system"):
        make_export(evil, "dac_44khz", out)
    with pytest.raises(InvalidSource, match="no best state"):
        make_export(tmp_path / "empty.th", "dac_44khz", out)
    with pytest.raises(NotFound):
        make_export(tmp_path / "missing.th", "dac_44khz", out)
    with pytest.raises(NotFound, match="no such checkpoint"):
        make_export(lm, "./missing.th", out)
    assert look(Target.of(str(out))) == before


def test_what_is_made_is_a_good_export(tmp_path: Path) -> None:
    lm = training_checkpoint(tmp_path / "checkpoint.th")
    make_export(lm, str(lm), tmp_path / "out")
    checked = check_export(tmp_path / "out")
    assert (checked.problems, checked.notes) == ((), ())
    assert checked.parts["lm"].settings["transformer_lm.dim"] == 16
    assert checked.parts["lm"].settings["conditioners"] == "description"
    assert checked.parts["lm"].contents.parameters == 36
