"""What a model needs, read from the indexes of its files; nothing is executed or trusted.

A configuration is YAML that somebody else wrote. It is read without resolving tags, anchors make
no copies, and what is no configuration of AudioCraft's names nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from craftcache.errors import InvalidSource
from craftcache.sources import HubSource, parse

from . import table
from .dependency import Dependencies, Dependency, UnmetDependency

if TYPE_CHECKING:
    from craftcache.checkpoint.index import Index

__all__ = ["discover"]

MAX_CONFIG = 256 * 1024
"""Characters that a configuration may have; AudioCraft's have about 10,000."""

MAX_FOUND = 16
"""Dependencies that one model may have; AudioCraft's largest has four."""

MAX_SHOWN = 100
"""Characters shown of a name that a checkpoint holds."""

_Found: TypeAlias = Iterator[Dependency | UnmetDependency]


def discover(files: Mapping[str, Index]) -> Dependencies:
    """What the checkpoints among ``files``, given by their names and indexes, need.

    Only their text is looked at, so that it is the same on every machine.
    """
    found = [item for name, index in sorted(files.items()) for item in _found_in(name, index)]
    needs: dict[tuple[object, ...], Dependency] = {}
    unmet: dict[str, UnmetDependency] = {}
    for item in found:
        if isinstance(item, Dependency):
            needs.setdefault((item.source, item.filenames, item.one_of, item.optional), item)
        else:
            unmet.setdefault(item.what, item)
    return Dependencies(tuple(needs.values())[:MAX_FOUND], tuple(unmet.values())[:MAX_FOUND])


def _found_in(filename: str, index: Index) -> _Found:
    yield from table.HARD_CODED.get(filename, ())
    if index.pretrained is not None:
        yield from _codec(index.pretrained, filename)
        return  # a reference's own configuration is never used
    text = index.value("xp.cfg")
    if isinstance(text, str):
        yield from _configured(text, filename)


def _configured(text: str, namer: str) -> _Found:
    config = _read(text)
    if config is None:
        yield UnmetDependency(
            f"whatever the configuration in {namer} names",
            "it is no YAML that can be read",
            "Warm what the model needs by name",
        )
        return
    for conditioner in _mapping(config.get("conditioners")).values():
        settings = _mapping(conditioner)
        model = settings.get("model")
        if isinstance(model, str):
            yield from _conditioned(model, _mapping(settings.get(model)), namer)


def _conditioned(model: str, settings: Mapping[str, object], namer: str) -> _Found:
    """The dependencies of a conditioner of the kind ``model``."""
    match model:
        case "t5":
            yield from _text_encoder(settings, namer)
        case "lut" if settings.get("tokenizer") == "whitespace":
            yield table.spacy(namer)
        case "chroma_stem" | "drum_latents":
            yield table.demucs(namer)
        case "style" if settings.get("model_name") == "mert":
            yield table.mert(namer)
        case "style":
            yield from _style_codec(settings.get("encodec_checkpoint"), namer)
        case "clap":
            yield table.clap(namer)
        case "chords_emb":
            yield table.chord_mapping(namer)


def _text_encoder(settings: Mapping[str, object], namer: str) -> _Found:
    name = settings.get("name")
    if isinstance(name, str) and name in table.TEXT_ENCODERS:
        yield table.text_encoder(name, namer)
    else:
        yield _unknown("text encoder", name, namer)
    normalize = settings.get("normalize_text")
    if isinstance(normalize, str) and normalize.lower() == "true":
        yield table.spacy(namer)


def _style_codec(checkpoint: object, namer: str) -> _Found:
    if isinstance(checkpoint, str) and checkpoint.startswith(table.PRETRAINED_PREFIX):
        yield from _codec(checkpoint.removeprefix(table.PRETRAINED_PREFIX), namer)
    else:
        yield _unknown("codec", checkpoint, namer)


def _codec(name: str, namer: str) -> _Found:
    """The dependency that AudioCraft's ``CompressionModel.get_pretrained`` loads by that name."""
    if name in table.BUILT_IN_CODECS:
        return
    if name in table.DAC_CODECS:
        yield table.dac(name, namer)
    elif "/" in name and _is_hub_id(name):
        yield table.codec(name, namer)
    else:
        yield _unknown("codec", name, namer)


def _unknown(kind: str, name: object, namer: str) -> UnmetDependency:
    # What is no text is not written out: a few lines of anchors make a list of any length.
    shown = ascii(name[:MAX_SHOWN]) if isinstance(name, str) else "of no name"
    return UnmetDependency(
        f"the {kind} {shown}",
        f"{namer} names it, and it is none that AudioCraft fetches from anywhere",
        "If it is a file of yours, put it where the model runs",
    )


def _is_hub_id(name: str) -> bool:
    try:
        source = parse(name)
    except InvalidSource:
        return False
    return isinstance(source, HubSource) and source.repo_id == name


def _read(text: str) -> Mapping[str, object] | None:
    """The configuration, all its scalars as text; None where it is none."""
    import yaml

    if len(text) > MAX_CONFIG:
        return None
    try:
        # The base loader knows no tags: it makes strings, lists and dicts, and nothing else.
        config = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return None
    return config if isinstance(config, Mapping) else None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
