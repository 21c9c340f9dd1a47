"""torch's weights-only loader with an explicit allow-list, for what no index can hold.

Most checkpoints never come here: workers build them from an index. The rest (OmegaConf objects
of MBD and AudioSeal, sparse and quantized tensors, compressed and legacy files) are loaded by
torch under its weights-only rules, which know tensors and plain containers, and the few globals
listed here. All of these build plain data; none of them runs code of the file's choosing.

torch keeps its allow-list for the whole process. That list is heeded and left as it is: what is
allowed here is allowed to one load only.

Before 2.6 that loader could be made to run code (CVE-2025-32434), and before 2.4 nothing can be
added to its list. There it is not used, but own_loader.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import torch

from craftcache.errors import CraftcacheError, NotACheckpoint, UnsafeCheckpoint
from craftcache.limits import limit_reached

from .descriptor import DescriptorFile
from .reader import ALLOWED_GLOBALS
from .recognize import recognize, recognize_damage, recognized
from .torch_load import load_weights_only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ALLOWED_GLOBALS", "importable_globals", "load", "translate"]

FIRST_SAFE_TORCH: Final = "2.6"
"""The first release whose loader runs nothing that a file asks for, as far as is known."""

_GLOBAL: Final = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")
"""How torch names the global that it refuses, without ``builtins.``."""

_CALL: Final = re.compile(
    r"(?:reduce for unrecognized function|Can only create new object for .* but got"
    r"|Can only build .* but got) (.+)"
)
"""Pattern of torch's message for a global that it refuses to call, make or give a state."""

_REASON: Final = re.compile(r"WeightsUnpickler error:\s*([^\n]*\S)")
"""Pattern of the cause in torch's message, which is among paragraphs of advice."""

_FILLED_DEFAULTDICT: Final = re.compile(r"Can only SETITEMS? for .*defaultdict")


def load(
    file: Path | int, *, map_location: torch.device | str, source: str | None = None
) -> object:
    """What ``torch.load(file, weights_only=True)`` returns, with the allow-list where needed.

    Args:
        file: A path, or a descriptor that is open for reading; its position is not used.
        map_location: The device of all tensors.
        source: Named in errors.

    Raises:
        UnsafeCheckpoint: It asks for a global that is not allowed; the message names it.
        NotACheckpoint: torch cannot read it, or not this torch; the message says what it is.
        ResourceLimit: This process may not have the memory for it.
        OSError: The file could not be read.
    """
    if isinstance(file, Path):
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return load(fd, map_location=map_location, source=source or str(file))
        finally:
            os.close(fd)
    if torch.__version__ < FIRST_SAFE_TORCH:
        from . import own_loader

        return own_loader.load(file, device=torch.device(map_location), source=source)
    reader = io.BufferedReader(DescriptorFile(file))
    if other := recognize(reader):
        raise other.error(source=source)
    try:
        return _load(reader, map_location)
    except (MemoryError, OSError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # garbage makes torch raise nearly anything
        if reached := limit_reached(error, source):
            raise reached from error
        told = translate(error, source=source, file=reader)
        if isinstance(told, NotACheckpoint):
            told = _readers_reason(file, source) or told
        raise told from error


def _readers_reason(fd: int, source: str | None) -> NotACheckpoint | None:
    """The reason that our own reader gives for a damaged file, which is clearer than torch's."""
    from .reader import read_index  # imported only after a failure

    try:
        with recognized(fd):
            read_index(fd)
    except NotACheckpoint as error:
        return error if source is None else error.about(source)
    except (CraftcacheError, MemoryError, OSError):
        return None
    return None


def _load(file: BinaryIO, map_location: torch.device | str) -> object:
    """Try torch's own list first, then with ours, then with defaultdicts as plain dicts."""
    try:
        return _torch_load(file, map_location)
    except pickle.UnpicklingError as error:
        if refused_global(error) not in ALLOWED_GLOBALS:
            raise
    allowed = importable_globals()
    try:
        return _torch_load(file, map_location, allowed)
    except pickle.UnpicklingError as error:
        if not _FILLED_DEFAULTDICT.search(str(error)):
            raise
    filled = _FilledDefaultdicts()
    loaded = _torch_load(file, map_location, {**allowed, "collections.defaultdict": filled.make})
    return filled.restore(loaded)


def _torch_load(
    file: BinaryIO,
    map_location: torch.device | str,
    allowed: Mapping[str, Callable[..., Any]] | None = None,
) -> object:
    file.seek(0)
    return load_weights_only(file, map_location=map_location, allowed=allowed)


def importable_globals() -> dict[str, Callable[..., Any]]:
    """The allow-list by name, without what is not installed here."""
    found = {}
    for name in ALLOWED_GLOBALS:
        module, _, attribute = name.rpartition(".")
        try:
            found[name] = getattr(importlib.import_module(module), attribute)
        except ImportError:
            continue
    return found


def translate(
    error: Exception, *, source: str | None, file: BinaryIO | None = None
) -> CraftcacheError:
    """The error of ours that an unpickling error or any other failure of torch.load means.

    Args:
        error: Exception that torch raised.
        source: Named in the error.
        file: The file that it could not load, to be examined; its position is moved.
    """
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        refused = refused_global(error)
        if refused in ALLOWED_GLOBALS:
            return UnsafeCheckpoint(
                f"it holds a {refused}, which is not installed here",
                source=source,
                hint="pip install 'craftcache[omegaconf]'",
            )
        call = _CALL.search(text)
        if refused or call:
            return UnsafeCheckpoint(
                f"loading it would call {refused or (call and call[1])}",
                source=source,
                hint="It may run code; ask its publisher for one of tensors and plain values",
            )
    if "TorchScript" in text:
        return UnsafeCheckpoint("it is a TorchScript archive, which holds code", source=source)
    detail = f"{type(error).__name__}: {_torchs_reason(text)}"
    if file is None:
        return NotACheckpoint(
            f"torch {torch.__version__} cannot read it ({detail})",
            source=source,
            hint="It must be a file that torch.save wrote",
        )
    return recognize_damage(file).error(f"torch {torch.__version__}: {detail}", source=source)


def _torchs_reason(text: str) -> str:
    """What torch found wrong, without its advice, which is of no use here."""
    found = _REASON.search(text)
    reason = found[1] if found else next(iter(text.strip().splitlines()), "no reason given")
    return reason[:200]


def refused_global(error: pickle.UnpicklingError) -> str | None:
    """The full name of the global that torch refused, or None for another error."""
    found = _GLOBAL.search(str(error))
    if found is None:
        return None
    name = found[1]
    return name if "." in name else f"builtins.{name}"


class _FilledDefaultdicts:
    """Stands in for defaultdict where torch refuses to fill one, and puts them back.

    Hydra's configs carry filled caches of resolvers in their metadata.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[dict[Any, Any], Any]] = {}
        """The stand-ins by ``id()``; keeping them here prevents an id from being used again."""

    def make(self, factory: Any = None) -> dict[Any, Any]:  # noqa: ANN401  a pickle's argument
        """A plain dict, remembered with the factory it should have had."""
        plain: dict[Any, Any] = {}
        self._made[id(plain)] = plain, factory
        return plain

    def restore(self, value: object) -> object:
        """``value`` with a defaultdict in each place of a stand-in, wherever it may be changed."""
        done: dict[int, object] = {}

        def visit(item: Any) -> Any:  # noqa: ANN401  whatever a checkpoint holds
            if id(item) in done:
                return done[id(item)]
            made = self._made.get(id(item))
            result = done[id(item)] = defaultdict(made[1]) if made else item
            if isinstance(item, dict):
                result.update({key: visit(child) for key, child in item.items()})
            elif isinstance(item, list):
                item[:] = map(visit, item)
            elif type(item).__module__.startswith("omegaconf."):
                visit(vars(item))
            return result

        return visit(value)
