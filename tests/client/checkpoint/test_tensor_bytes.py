"""Bytes of tensors by dtype, against torch and safetensors themselves."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from craftcache.checkpoint import tensor_bytes
from craftcache.checkpoint.reader import read_index
from tests.support.checkpoints import memory_file, saved

if TYPE_CHECKING:
    from collections.abc import Mapping

TENSORS = {
    "a": torch.zeros(3, 5, dtype=torch.float16),
    "b": torch.zeros(7),
    "c": torch.zeros(2, dtype=torch.int64),
    "d": torch.zeros(4),
}
BYTES = {"float16": 30, "float32": 44, "int64": 16}


def test_a_storage_that_tensors_share_counts_once() -> None:
    shared: Mapping[str, object] = {**TENSORS, "again": TENSORS["b"], "part": TENSORS["a"][1]}
    with memory_file(saved({"best_state": shared})) as descriptor:
        assert tensor_bytes.of_index(read_index(descriptor)) == BYTES


def test_a_safetensors_header_says_it() -> None:
    content = save(TENSORS, metadata={"format": "pt"})
    assert tensor_bytes.of_safetensors(io.BytesIO(content)) == BYTES


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 8 + b"{}", b"\2" + bytes(7) + b"[]"])
def test_what_has_no_header_says_nothing(content: bytes) -> None:
    assert tensor_bytes.of_safetensors(io.BytesIO(content)) is None


@given(st.integers(0, 300), st.integers(1, 255))
def test_a_damaged_header_raises_nothing(at: int, change: int) -> None:
    content = bytearray(save(TENSORS))
    content[at % len(content)] ^= change
    found = tensor_bytes.of_safetensors(io.BytesIO(bytes(content)))
    assert found is None or all(size >= 0 for size in found.values())
