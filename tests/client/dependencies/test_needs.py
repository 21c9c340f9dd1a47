"""Which files of a need are brought, and when it is met."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.dependencies.dependency import MAX_FILES, Dependency
from craftcache.dependencies.table import text_encoder
from craftcache.errors import InvalidSource, NotFound

T5 = text_encoder("t5-base", "state_dict.bin")


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "README.md"],
            ["config.json", "model.safetensors"],
        ),
        (
            ["config.json", "pytorch_model.bin", "flax_model.msgpack", "onnx/model.safetensors"],
            ["config.json", "pytorch_model.bin"],
        ),
        (
            [
                *("config.json", "model.safetensors.index.json", "pytorch_model.bin"),
                *(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
            ],
            [
                *("config.json", "model.safetensors.index.json"),
                *(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
            ],
        ),
        (
            ["config.json", "model.safetensors.index.json", "pytorch_model.bin"],
            ["config.json", "pytorch_model.bin"],
        ),
        (
            ["config.json", "model.safetensors", "tokenizer.json", "spiece.model", "vocab.txt"],
            ["config.json", "model.safetensors", "spiece.model", "tokenizer.json"],
        ),
    ],
)
def test_the_weights_that_transformers_would_take(there: list[str], chosen: list[str]) -> None:
    assert set(T5.choose(there)) == set(chosen)
    assert T5.is_met_by(chosen)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (["model.safetensors"], "no config.json"),
        (["config.json"], "no model.safetensors and no"),
    ],
)
def test_a_repository_that_lacks_something_is_refused(there: list[str], words: str) -> None:
    with pytest.raises(NotFound, match=words) as refused:
        T5.choose(there)
    assert refused.value.source == "t5-base"
    assert not T5.is_met_by(there)


def test_no_repository_is_brought_without_end() -> None:
    shards = [f"model-{n}-of-1000.safetensors" for n in range(MAX_FILES)]
    with pytest.raises(InvalidSource, match="more than"):
        T5.choose(["config.json", "model.safetensors.index.json", *shards])


def test_no_name_leads_out_of_the_repository() -> None:
    need = Dependency("org/name", "a test", one_of=(("*.bin",),))
    with pytest.raises(InvalidSource):
        need.choose(["../../x.bin"])


NAMES = st.lists(
    st.sampled_from(
        [
            *("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json"),
            *("model.safetensors.index.json", "model-1-of-2.safetensors", "README.md"),
            *("pytorch_model.bin.index.json", "pytorch_model-1-of-1.bin", "spiece.model"),
        ]
    ),
    unique=True,
)


@given(NAMES)
def test_what_is_chosen_is_there_and_is_enough(there: list[str]) -> None:
    if not T5.is_met_by(there):
        with pytest.raises(NotFound):
            T5.choose(there)
        return
    chosen = T5.choose(there)
    assert set(chosen) <= set(there)
    assert len(chosen) == len(set(chosen))
    assert T5.is_met_by(chosen)
    assert T5.choose(chosen) == chosen
