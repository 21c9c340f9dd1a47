"""Is a directory an export that AudioCraft can load, and what is in it?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from craftcache.checkpoint.contents import Contents
from craftcache.errors import CraftcacheError, InvalidSource, NotFound
from craftcache.origins.hub import HubApi, hub_endpoint
from craftcache.sources import FILENAMES, PARTS, HubSource, Part, parse
from craftcache.torch_import import require_torch

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Checked", "CheckedPart", "check_export"]

HUB_SECONDS = 10.0
"""For the Hub to say whether a referenced codec is there."""

DAC_NAMES = ("dac_44khz", "dac_24khz")
"""Codecs that AudioCraft gets from the descript-audio-codec package."""

SETTINGS = (
    *("solver", "sample_rate", "channels", "dtype", "compression_model_checkpoint"),
    *("transformer_lm.dim", "transformer_lm.num_layers", "transformer_lm.num_heads"),
    *("transformer_lm.n_q", "transformer_lm.card", "encodec.sample_rate", "encodec.channels"),
)
"""Settings of a configuration that are shown."""


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """One file of an export.

    Attributes:
        file: Name of the file.
        size: Size in bytes.
        contents: Numbers of its tensors and parameters.
        settings: Settings of its configuration that are shown.
        version: Version of the AudioCraft that wrote it; None for the first release.
    """

    file: str
    size: int
    contents: Contents
    settings: Mapping[str, Any]
    version: str | None


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found.

    Attributes:
        directory: Directory that was checked.
        parts: Parts that could be loaded.
        problems: Why it is no export that AudioCraft can load; none where it is one.
        notes: Further remarks for people.
    """

    directory: Path
    parts: Mapping[Part, CheckedPart] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether it is an export."""
        return not self.problems


def check_export(directory: Path, *, token: str | None = None) -> Checked:
    """Load both files safely, one tensor in memory at a time, and see that all is there.

    Args:
        directory: The export.
        token: For asking the Hub for a referenced codec.

    Raises:
        NotFound: There is no such directory.
    """
    if not directory.is_dir():
        raise NotFound("no such directory", source=str(directory), hint="Check the path")
    require_torch()
    from craftcache.checkpoint.weights_only import load

    parts: dict[Part, CheckedPart] = {}
    problems: list[str] = []
    notes: list[str] = []
    for part in PARTS:
        path = directory / FILENAMES[part]
        if not path.is_file():
            problems.append(f"{path.name} is missing")
            continue
        try:
            checkpoint = load(path, map_location="meta", source=path.name)
        except CraftcacheError as error:
            hint = f". {error.hint}" if error.hint else ""
            problems.append(f"{path.name}: {error.message}{hint}")
            continue
        except OSError as error:
            problems.append(f"{path.name} cannot be read: {error.strerror}")
            continue
        parts[part] = _check_part(part, path, checkpoint, problems, notes)
    if (compression := parts.get("compression")) and compression.contents.pretrained:
        _check_reference(compression.contents.pretrained, token, problems, notes)
    return Checked(directory, parts, tuple(problems), tuple(notes))


def _check_part(
    part: Part, path: Path, checkpoint: object, problems: list[str], notes: list[str]
) -> CheckedPart:
    package = checkpoint if isinstance(checkpoint, Mapping) else {}
    contents = Contents.of(checkpoint)
    settings: Mapping[str, Any] = {}
    if part == "compression" and contents.pretrained is not None:
        if contents.tensors:
            notes.append(f"{path.name} refers to a codec, so its own tensors are never used")
    else:
        settings = _check_model(path.name, package, problems)
    if "exported" not in package:
        notes.append(f"{path.name} has no 'exported', as AudioCraft's first release wrote it")
    version = package.get("version")
    return CheckedPart(
        path.name,
        os.path.getsize(path),
        contents,
        settings,
        version if isinstance(version, str) else None,
    )


def _check_model(
    name: str, package: Mapping[Any, object], problems: list[str]
) -> Mapping[str, Any]:
    """Check that a model's weights and configuration are there; returns the settings to show."""
    state = package.get("best_state")
    if not isinstance(state, Mapping) or not state:
        problems.append(f"{name} has no state dict under 'best_state'")
    elif Contents.of(state).tensors != len(state):
        problems.append(f"{name} holds more than tensors under 'best_state'")
    text = package.get("xp.cfg")
    if not isinstance(text, str):
        problems.append(f"{name} has no configuration in YAML under 'xp.cfg'")
        return {}
    import yaml

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problems.append(f"{name}: 'xp.cfg' is not YAML: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(config, Mapping):
        problems.append(f"{name}: 'xp.cfg' is no mapping")
        return {}
    return _settings(config)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _at(config, name) for name in SETTINGS}
    if isinstance(conditioners := config.get("conditioners"), Mapping):
        found["conditioners"] = ", ".join(
            str(name)
            for name, value in conditioners.items()
            if isinstance(value, Mapping) and name != "args"
        )
    return {name: value for name, value in found.items() if value and "${" not in str(value)}


def _at(config: Mapping[str, Any], name: str) -> object:
    value: object = config
    for step in name.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return None if isinstance(value, Mapping | list) else value


def _check_reference(name: str, token: str | None, problems: list[str], notes: list[str]) -> None:
    """See that a codec that is only named can be had."""
    if name in DAC_NAMES:
        notes.append(f"the codec {name} comes with the package descript-audio-codec")
        return
    if os.path.exists(name):
        notes.append(f"the codec {name} is a file of this machine, which others do not have")
        return
    try:
        source = parse(name)
        if not isinstance(source, HubSource):
            raise InvalidSource("it is no Hub id", source=name)
        hub = HubApi(hub_endpoint(), token, HUB_SECONDS)
        described = hub.describe(source, "config.json", source.revision)
    except CraftcacheError as error:
        if error.retryable or error.code == "Offline":
            notes.append(f"whether the codec {name} can be had is not known: {error.message}")
        else:
            problems.append(f"the codec {name} cannot be had: {error.message}")
        return
    notes.append(f"the codec {name} is on the Hub, at {described.commit}")
