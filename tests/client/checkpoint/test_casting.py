"""A checkpoint in single precision: what it holds, what stays as it is, what is not cast."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import torch

from craftcache.checkpoint.index import parse
from craftcache.checkpoint.tensors import build
from craftcache.errors import UnsafeCheckpoint
from craftcached.inspect import Inspector
from tests.support.checkpoints import saved
from tests.support.pickles import Op, archive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inspector() -> AsyncIterator[Inspector]:
    async with Inspector() as inspector:
        yield inspector


async def cast(inspector: Inspector, directory: Path, data: bytes) -> Any:
    """The checkpoint in float32, or None where it is not cast."""
    given, written = directory / "given.bin", directory / "written.bin"
    given.write_bytes(data)
    output = os.open(written, os.O_RDWR | os.O_CREAT)
    try:
        index = await inspector.cast(given, output, "float32", source="org/name")
        size = os.fstat(output).st_size
        if not index:
            assert not size
            return None
        return build(parse(index, file_size=size), output, device=torch.device("cpu"))
    finally:
        os.close(output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
async def test_every_number_stays_what_it_is(
    inspector: Inspector, tmp_path: Path, dtype: torch.dtype
) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    state = {"every": every, "none": every[:0], "one": torch.tensor(0.1, dtype=dtype)}
    found = await cast(inspector, tmp_path, saved({"best_state": state, "xp.cfg": "dim: 4"}))
    assert found["xp.cfg"] == "dim: 4"
    assert list(found["best_state"]) == list(state)
    for name, tensor in state.items():
        wide = found["best_state"][name]
        assert wide.dtype is torch.float32
        assert torch.equal(wide.view(torch.int32), tensor.float().view(torch.int32))


async def test_views_and_shared_storages_stay_what_they_are(
    inspector: Inspector, tmp_path: Path
) -> None:
    whole = torch.randn(6, 4).half()
    given = {"whole": whole, "turned": whole.T, "part": whole[1:3, ::2]}
    found = await cast(inspector, tmp_path, saved(given))
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor.float())
        assert found[name].stride() == tensor.stride()
    assert found["part"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()


async def test_what_is_larger_than_a_step_is_whole(inspector: Inspector, tmp_path: Path) -> None:
    large = torch.randn(9_000_001).half()
    found = await cast(inspector, tmp_path, saved({"large": large, "after": large[:3].clone()}))
    assert torch.equal(found["large"], large.float())
    assert torch.equal(found["after"], large[:3].float())


async def test_other_dtypes_are_copied(inspector: Inspector, tmp_path: Path) -> None:
    given = {
        "half": torch.randn(3).half(),
        "double": torch.randn(3, dtype=torch.float64),
        "count": torch.arange(5),
        "mask": torch.tensor([True, False]),
        "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
    }
    found = await cast(inspector, tmp_path, saved(given))
    for name, tensor in given.items():
        dtype = torch.float32 if name == "half" else tensor.dtype
        assert found[name].dtype is dtype
        assert torch.equal(found[name], tensor.to(dtype))


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"best_state": {"weight": torch.randn(4)}},
        {"pretrained": "facebook/encodec_32khz"},
        {"sparse": torch.eye(3).half().to_sparse(), "weight": torch.ones(3).half()},
    ],
    ids=["single precision already", "no tensors", "only torch can load it"],
)
async def test_what_cannot_be_cast_is_not(
    inspector: Inspector, tmp_path: Path, checkpoint: object
) -> None:
    assert await cast(inspector, tmp_path, saved(checkpoint)) is None


async def test_what_is_unsafe_is_refused(inspector: Inspector, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint):
        await cast(inspector, tmp_path, archive(Op.whole(Op.call("os.system", Op.value("id")))))
