"""What is found in a checkpoint's configuration and reference, however hostile they are."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from craftcache.checkpoint.index import Index
from craftcache.dependencies import Dependencies, discover
from craftcache.dependencies.discover import MAX_CONFIG, MAX_FOUND
from tests.support.dependencies import t5

LM_NAME, CODEC_NAME = "state_dict.bin", "compression_state_dict.bin"
DEMUCS = "https://dl.fbaipublicfiles.com/demucs/hybrid_transformer/955717e8-8726e21a.th"


def index(**values: Any) -> Index:
    """Of a checkpoint with these plain values and nothing else."""
    return Index(1, "zip", None, (), (), ["d", list(values), list(values.values())])


def found(config: str) -> Dependencies:
    """What a language model with that configuration needs."""
    return discover({LM_NAME: index(**{"best_state": None, "xp.cfg": config})})


def conditioned(**conditioners: object) -> Dependencies:
    return found(yaml.safe_dump({"conditioners": conditioners}))


def sources(closure: Dependencies) -> list[str]:
    return [need.source for need in closure.needs]


def whats(closure: Dependencies) -> list[str]:
    return [unmet.what for unmet in closure.unmet]


STYLE = {
    "model_name": "encodec",
    "encodec_checkpoint": "//pretrained/facebook/encodec_32khz",
}


@pytest.mark.parametrize(
    ("conditioner", "needs", "unmet"),
    [
        (t5("t5-large"), ["t5-large"], []),
        (t5("google/flan-t5-base"), ["google/flan-t5-base"], []),
        (t5(normalize=True), ["t5-base"], ["spaCy's en_core_web_sm"]),
        (t5("org/own-t5"), [], ["the text encoder 'org/own-t5'"]),
        ({"model": "lut", "lut": {"tokenizer": "noop"}}, [], []),
        ({"model": "lut", "lut": {"tokenizer": "whitespace"}}, [], ["spaCy's en_core_web_sm"]),
        ({"model": "chroma_stem", "chroma_stem": {}}, [DEMUCS], []),
        ({"model": "drum_latents", "drum_latents": {}}, [DEMUCS], []),
        ({"model": "style", "style": STYLE}, ["facebook/encodec_32khz"], []),
        (
            {"model": "style", "style": STYLE | {"encodec_checkpoint": "//sig/0a1b"}},
            *([], ["the codec '//sig/0a1b'"]),
        ),
        (
            {"model": "style", "style": STYLE | {"model_name": "mert"}},
            *([], ["m-a-p/MERT-v1-95M"]),
        ),
        ({"model": "clap", "clap": {}}, [], ["a CLAP checkpoint"]),
        ({"model": "chords_emb"}, [], ["assets/chord_to_index_mapping.pkl"]),
        ({"model": "t5", "t5": {"name": ["t5-base"]}}, [], ["the text encoder of no name"]),
        ({"model": {"t5": 1}, "t5": {"name": "t5-base"}}, [], []),
        ({"model": "of a later release"}, [], []),
    ],
)
def test_a_conditioner_needs(conditioner: object, needs: list[str], unmet: list[str]) -> None:
    closure = conditioned(description=conditioner)
    assert (sources(closure), whats(closure)) == (needs, unmet)


@pytest.mark.parametrize(
    ("name", "needs", "unmet"),
    [
        ("facebook/encodec_32khz", ["facebook/encodec_32khz"], []),
        ("dac_44khz", [], ["the codec dac_44khz"]),
        ("debug_compression_model", [], []),
        ("/runs/codec", [], ["the codec '/runs/codec'"]),
        ("codec", [], ["the codec 'codec'"]),
        ("org/codec@main", [], ["the codec 'org/codec@main'"]),
        ("https://host/codec.th", [], ["the codec 'https://host/codec.th'"]),
        ("watch:a/b", [], ["the codec 'watch:a/b'"]),
        ("org/name\n\x1b[2J", [], [r"the codec 'org/name\n\x1b[2J'"]),
    ],
)
def test_a_reference_needs(name: str, needs: list[str], unmet: list[str]) -> None:
    closure = discover({CODEC_NAME: index(pretrained=name)})
    assert (sources(closure), whats(closure)) == (needs, unmet)


@pytest.mark.parametrize(
    ("filename", "needs"),
    [
        ("mbd_musicgen_32khz.th", [("facebook/musicgen-small", (CODEC_NAME,))]),
        ("mbd_comp_4.pt", [("facebook/encodec_24khz", ("config.json",))]),
        ("any_other.th", []),
    ],
)
def test_what_the_code_names_goes_by_the_filename(
    filename: str, needs: list[tuple[str, tuple[str, ...]]]
) -> None:
    closure = discover({filename: index(sample_rate=32000)})
    assert [(need.source, need.filenames) for need in closure.needs] == needs


def test_each_thing_is_needed_once_and_says_why() -> None:
    config = yaml.safe_dump({"conditioners": {"a": t5(), "b": t5(), "c": t5("t5-large")}})
    closure = discover(
        {
            LM_NAME: index(**{"xp.cfg": config}),
            CODEC_NAME: index(pretrained="facebook/encodec_32khz"),
        }
    )
    assert {need.source: need.why for need in closure.needs} == {
        "facebook/encodec_32khz": f"the codec that {CODEC_NAME} names",
        "t5-base": f"the text encoder that {LM_NAME} names",
        "t5-large": f"the text encoder that {LM_NAME} names",
    }


@pytest.mark.parametrize(
    "config",
    [
        "",
        "null",
        "- a list",
        "a: [unclosed",
        "conditioners: null",
        "conditioners: [t5]",
        "conditioners: {a: t5}",
        "conditioners: {a: {model: t5, t5: t5-base}}",
        "? {a: b}\n: c",
        "a: !!python/object/apply:os.system ['true']",
        "a: !!int ''\nb: !!timestamp x\nc: !!bool maybe",
        'a: "\\UFFFFFFFF"',
        "&a [*a]",
        "[" * 100_000,
        "#" * (MAX_CONFIG + 1),
        "\x00",
    ],
)
def test_what_is_no_configuration_names_nothing(config: str) -> None:
    assert found(config).needs == ()


def test_what_cannot_be_read_is_said() -> None:
    assert whats(found("a: [unclosed")) == ["whatever the configuration in state_dict.bin names"]


def test_anchors_that_stand_for_anchors_make_no_copies() -> None:
    lines = ["l0: &l0 {a: b}"]
    for depth in range(1, 60):
        many = ", ".join([f"*l{depth - 1}"] * 9)
        lines.append(f"l{depth}: &l{depth} {{<<: [{many}], x: [{many}]}}")
    lines.append("conditioners: {description: {model: t5, t5: {name: t5-base}}}")
    assert sources(found("\n".join(lines))) == ["t5-base"]


@pytest.mark.parametrize(
    ("conditioner", "unmet"),
    [
        ("{model: t5, t5: {name: *l59}}", ["the text encoder of no name"]),
        ("{model: t5, t5: {name: t5-base, normalize_text: *l59}}", []),
        ("{model: style, style: {encodec_checkpoint: *l59}}", ["the codec of no name"]),
    ],
)
def test_anchors_in_the_place_of_a_name_are_not_written_out(
    conditioner: str, unmet: list[str]
) -> None:
    lines = ["l0: &l0 [a, b]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 60)]
    lines.append(f"conditioners: {{description: {conditioner}}}")
    assert whats(found("\n".join(lines))) == unmet


def test_no_checkpoint_names_without_end() -> None:
    def style(number: int) -> dict[str, object]:
        checkpoint = f"//pretrained/org/codec-{number}"
        return {"model": "style", "style": STYLE | {"encodec_checkpoint": checkpoint}}

    assert len(conditioned(**{str(n): style(n) for n in range(100)}).needs) == MAX_FOUND
    unknown = {str(n): t5(f"unknown-{n}") for n in range(100)}
    assert len(conditioned(**unknown).unmet) == MAX_FOUND


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["t5", "style"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "t5", "name", "style", "tokenizer", "lut", "conditioners"])
            | st.text(),
            inner,
            max_size=4,
        )
    ),
)

CONFIGURATIONS = (
    st.text()
    | VALUES.map(yaml.safe_dump)
    | st.dictionaries(st.text(), VALUES).map(lambda each: yaml.safe_dump({"conditioners": each}))
)


@settings(deadline=None)
@given(CONFIGURATIONS | VALUES, st.text() | VALUES)
def test_whatever_is_written_does_no_harm(config: Any, pretrained: Any) -> None:
    closure = discover({LM_NAME: index(**{"xp.cfg": config}), "b": index(pretrained=pretrained)})
    assert all(need.parsed.spelled == need.source for need in closure.needs)
    assert all(unmet.what.isprintable() for unmet in closure.unmet)
