"""AudioCraft with its loaders patched: the same models, sooner."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import DIFFUSION, MODELS
from .environment import PROGRAMS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import DaemonProcess

    from .environment import Upstream

NAMES = tuple(f"{kind}:{name}" for name, kind in MODELS.items())

PATCHED = {
    "audiocraft.models.audiogen.load_compression_model",
    "audiocraft.models.audiogen.load_lm_model",
    "audiocraft.models.builders.get_conditioner_provider",
    "audiocraft.models.lm.get_init_fn",
    "audiocraft.models.loaders._get_state_dict",
    "audiocraft.models.loaders.builders",
    "audiocraft.models.loaders.load_compression_model",
    "audiocraft.models.loaders.load_diffusion_models",
    "audiocraft.models.loaders.load_lm_model",
    "audiocraft.models.loaders.load_lm_model_magnet",
    "audiocraft.models.magnet.load_compression_model",
    "audiocraft.models.magnet.load_lm_model_magnet",
    "audiocraft.models.multibanddiffusion.load_compression_model",
    "audiocraft.models.multibanddiffusion.load_diffusion_models",
    "audiocraft.models.musicgen.load_compression_model",
    "audiocraft.models.musicgen.load_lm_model",
}


@pytest.fixture(scope="module")
def differences(
    upstream: Upstream, warm_node: DaemonProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """What the patch changes in each model, with no network."""
    found: dict[str, list[str]] = upstream.run_offline(
        PROGRAMS / "compare.py",
        *NAMES,
        home=tmp_path_factory.mktemp("compare"),
        node=warm_node,
        CRAFTCACHE_SOCKET_DIR=str(warm_node.socket_dir),
    )
    return found


@pytest.mark.parametrize("model", MODELS)
def test_models_and_samples_are_the_same_bit_for_bit(
    differences: dict[str, list[str]], model: str
) -> None:
    assert differences[model] == []


@pytest.fixture(scope="module")
def patching(
    upstream: Upstream, warm_node: DaemonProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """See the program."""
    found: dict[str, Any] = upstream.run_offline(
        PROGRAMS / "patch.py",
        "org/lut",
        home=tmp_path_factory.mktemp("patch"),
        node=warm_node,
        CRAFTCACHE_SOCKET_DIR=str(warm_node.socket_dir),
    )
    return found


def test_an_unknown_version_is_refused_and_nothing_is_changed(patching: dict[str, Any]) -> None:
    refusal = patching["refusal"]
    assert "AudioCraft 9.9 is not known, only 1.3.0" in refusal["error"]
    assert refusal["changed"] == []
    assert not refusal["installed"]


def test_uninstall_puts_everything_back(patching: dict[str, Any]) -> None:
    restoring = patching["restoring"]
    assert restoring["installed"]
    assert set(restoring["changed"]) == PATCHED
    assert restoring["changed again"] == []
    assert restoring["left"] == []
    assert restoring["uninstalled"]


def test_models_that_others_build_meanwhile_are_initialised_as_ever(
    patching: dict[str, Any],
) -> None:
    builds = patching["other_builds"]
    assert builds["tensors"] > 10
    assert builds["here"]
    assert builds["as the loaders, but not by one"]
    assert builds["in another thread"]


def test_what_no_checkpoint_overwrites_is_initialised(patching: dict[str, Any]) -> None:
    found = patching["not_overwritten"]
    assert found["overwritten"]
    assert found["drawn alike"] == found["constant"]
    assert len(found["deviations"]) > len(found["constant"])
    for ours, theirs, mean, count in found["deviations"].values():
        assert ours == pytest.approx(theirs, rel=5 / math.sqrt(count))  # of two samples
        assert abs(mean) <= max(ours, 1)


def test_weights_of_the_models_own_dtype_lie_in_the_nodes_files(
    patching: dict[str, Any], warm_node: DaemonProcess
) -> None:
    files = patching["where_weights_lie"]["compression"]
    assert len(files) > 10
    assert all(file.startswith(str(warm_node.cache_dir)) for file in files)


def test_a_model_for_a_device_is_not_built_on_the_cpu(patching: dict[str, Any]) -> None:
    built = patching["built_on_cpu"]
    conditioner, _ = built["get_conditioner_provider"]
    theirs, ours = built["get_lm_model"]
    assert ours - conditioner < 0.05 * (theirs - conditioner)
    theirs, ours = built["get_compression_model"]
    assert ours < 0.05 * theirs


PATCHING = ("--patch-audiocraft",)
"""Options of ``craftcache run``, for programs that know nothing of the patch."""


def test_diffusion_models_generate_the_same(
    upstream: Upstream, warm_node: DaemonProcess, tmp_path: Path
) -> None:
    program = (PROGRAMS / "generate.py", f"MultiBandDiffusion:{DIFFUSION}")
    theirs = upstream.run_offline(*program, home=tmp_path, node=warm_node)
    ours = upstream.run_offline(*program, home=tmp_path, node=warm_node, options=PATCHING)
    assert ours == theirs


def test_an_unmodified_program_is_patched_and_its_own_sitecustomize_runs(
    upstream: Upstream, warm_node: DaemonProcess, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import sys; sys.own_sitecustomize_ran = True\n")
    report = (
        "import json, sys, audiocraft, craftcache.audiocraft as patch;"
        "print(json.dumps([patch.is_installed(), sys.own_sitecustomize_ran,"
        " sys.modules['sitecustomize'].__file__, patch.STARTUP_DIR in sys.path]))"
    )
    found = upstream.run_offline(
        *("-c", report), home=tmp_path, node=warm_node, options=PATCHING, PYTHONPATH=str(own)
    )
    assert found == [True, True, str(own / "sitecustomize.py"), False]
