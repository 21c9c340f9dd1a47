"""The result of a load, and how it is made from open files."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from craftcache.errors import (
    CraftcacheError,
    InvalidSource,
    NotACheckpoint,
    UnknownDevice,
    UnsafeCheckpoint,
)
from craftcache.limits import limits_named
from craftcache.logger import log
from craftcache.sources import FILENAMES, PARTS, LocalDirectory, LocalFile, Part, UrlSource
from craftcache.torch_import import require_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from craftcache.cache.opened import FileInfo, OpenFile, ServedBy
    from craftcache.checkpoint.index import Index
    from craftcache.device.link import DeviceLink
    from craftcache.sources import Source
    from craftcache.wire import Loaded

    from .sharing import Sharing

__all__ = [
    "Export",
    "Timings",
    "parse_device",
    "files_by_part",
    "export_of",
    "to_object",
    "to_export",
    "copy_into",
]


@dataclass(frozen=True, slots=True)
class Timings:
    """The time that a load took, in seconds.

    Attributes:
        resolve: Time until all files were open, which includes fetching them.
        load: Time from there until the tensors were on their device.
    """

    resolve: float
    load: float

    @property
    def total(self) -> float:
        """Time of the whole load."""
        return self.resolve + self.load


@dataclass(frozen=True, slots=True)
class Export:
    """A loaded AudioCraft export.

    Attributes:
        source: The source as shown to people: without the query of a signed URL.
        revision: Commit of a repository; for a URL or a watch a digest over its files; empty for
            local files.
        served_by: ``daemon``, ``cache`` (found without it), ``origin`` (fetched without it) or
            ``local``.
        files: Name, size and digest of each loaded part's file.
        timings: Time that the load took.
        fallback_reason: Reason why the daemon did not serve it; None if it did or was not asked.
        shared: The parts whose tensors lie in memory that all workers of the GPU share.
        lm: The object that torch.load would return for ``state_dict.bin``; None if not asked for.
        compression: The same for ``compression_state_dict.bin``.
    """

    source: str
    revision: str
    served_by: ServedBy
    files: Mapping[Part, FileInfo]
    timings: Timings
    fallback_reason: str | None
    shared: tuple[Part, ...] = ()
    lm: Any = field(default=None, repr=False)
    compression: Any = field(default=None, repr=False)


def parse_device(device: str | int | torch.device) -> torch.device:
    """The torch device that ``device`` names.

    Raises:
        UnknownDevice: torch, or this machine, has no such device.
        CraftcacheError: There is no torch.
    """
    require_torch()
    import torch

    try:
        parsed = torch.device(device)
    except Exception as error:  # torch raises nearly anything
        raise UnknownDevice(
            f"torch has no device {device!r}", hint="Name one like cpu, cuda, cuda:0 or meta"
        ) from error
    if parsed.type not in ("cpu", "meta"):
        _check_present(parsed)
    return parsed


def files_by_part(source: Source, parts: Sequence[Part]) -> dict[Part, str]:
    """The name of each part's file.

    Raises:
        InvalidSource: An unknown part, or several of a source that is one checkpoint.
    """
    if not parts or not set(parts) <= set(PARTS):
        raise InvalidSource(f"parts are some of {PARTS}, not {tuple(parts)}", source=source.shown)
    match source:
        case LocalFile(path):
            single: str | None = path.name
        case UrlSource(is_export=False):
            single = source.basename
        case _:
            single = None
    if single is None:
        return {part: FILENAMES[part] for part in parts}
    if len(parts) > 1:
        raise InvalidSource(
            "it is one checkpoint, not an export",
            source=source.shown,
            hint='Name the one part that it is, as parts=("lm",), or use load_state_dict',
        )
    return {parts[0]: single}


def export_of(source: Source, parts: Sequence[Part]) -> Source:
    """``source``; if it is a local file of a pair and both parts are wanted, its directory."""
    if isinstance(source, LocalFile) and len(parts) > 1 and source.path.name in FILENAMES.values():
        return LocalDirectory(source.path.parent)
    return source


def to_object(
    file: OpenFile,
    device: torch.device,
    *,
    source: str,
    check: Callable[[], None],
    sharing: Sharing | None = None,
) -> object:
    """The object that ``torch.load`` would return for an open file, on ``device``.

    Args:
        file: The file.
        device: Device of all tensors.
        source: The source as shown to people.
        check: Raises what is to end the load; called now and then while a device is copied to.
        sharing: How a file that came in the device's memory is used there; None where none does.

    Raises:
        NotShared: It came in the device's memory, and cannot be used there.
        UnsafeCheckpoint, NotACheckpoint: The file has no index, and torch refuses it.
        ResourceLimit: The memory that it takes is more than this process may have.
        DeviceMemoryFull, DeviceLost: It could not be copied to the device.
    """
    with limits_named(source):
        from craftcache.checkpoint.tensors import build

        index = _index(file, source)
        if sharing is not None:
            if file.memory_bytes is not None:
                return sharing.to_object(file, index, device)
            sharing.note_copied(file, index)
        link = _link_to(device, check)
        if index is None and link is not None:
            index = _described(file)
        if index is None:
            return _load_by_torch(file, device, source)
        return build(
            index,
            file.descriptor,
            device=device,
            mapped=file.mapped,
            source=source,
            link=link,
            direct=file.info.sha256 is None,  # local, and not for all workers of the node
        )


def copy_into(
    file: OpenFile,
    module: torch.nn.Module,
    key: str | None,
    *,
    source: str,
    check: Callable[[], None],
) -> None:
    """Copy the state dict under ``key`` of an open file into ``module``; see filling.copy_into.

    Raises:
        InvalidSource: There is no state dict under ``key``.
        RuntimeError: As load_state_dict does.
        UnsafeCheckpoint, NotACheckpoint, DeviceMemoryFull, DeviceLost: See to_object.
    """
    with limits_named(source):
        require_torch()
        import torch

        from craftcache.checkpoint import filling

        index = _index(file, source)
        if index is None:
            loaded = _load_by_torch(file, torch.device("cpu"), source)
            filling.load_state_dict(loaded, module, key=key, source=source)
        else:
            filling.copy_into(
                index,
                file.descriptor,
                module,
                key=key,
                mapped=file.mapped,
                source=source,
                link_to=partial(_link_to, check=check),
            )


def to_export(
    source: str,
    loaded: Loaded,
    parts: Sequence[Part],
    device: torch.device,
    *,
    started: float,
    check: Callable[[], None],
    sharing: Sharing | None = None,
) -> Export:
    """Load all parts onto ``device``.

    Args:
        source: The source as shown to people.
        loaded: The open files, one for each part, in order.
        parts: The parts that the files are.
        device: Device of all tensors.
        started: Time when the load began, by time.perf_counter, in seconds.
        check: See to_object.
        sharing: See to_object.

    Raises:
        NotShared, CraftcacheError: See to_object.
    """
    resolved = time.perf_counter()
    files = dict(zip(parts, loaded.files, strict=True))
    objects = {
        part: to_object(file, device, source=source, check=check, sharing=sharing)
        for part, file in files.items()
    }
    return Export(
        source=source,
        revision=loaded.revision,
        served_by=loaded.served_by,
        files={part: file.info for part, file in files.items()},
        timings=Timings(resolved - started, time.perf_counter() - resolved),
        fallback_reason=loaded.fallback_reason,
        shared=tuple(part for part, file in files.items() if file.memory_bytes is not None),
        **objects,
    )


def _index(file: OpenFile, source: str) -> Index | None:
    """The index of a file; None if it has none, or one that this release cannot read."""
    from craftcache.checkpoint.index import InvalidIndex, parse

    content = file.read_index()
    if content is None:
        return None
    try:
        in_memory = file.memory_bytes is not None
        size = file.info.size if in_memory else os.fstat(file.descriptor).st_size
        return parse(content, file_size=size)
    except InvalidIndex as error:
        log.warning("%s: %s is loaded without its index: %s", source, file.info.filename, error)
        return None


def _link_to(device: torch.device, check: Callable[[], None]) -> DeviceLink | None:
    """The way to a device; None to the CPU and where plain copies have to do."""
    if device.type in ("cpu", "meta"):
        return None
    from craftcache.device.link import find_link

    return find_link(device, check)


def _described(file: OpenFile) -> Index | None:
    """An index of a file that has none, where our own reader can make one: it is read in parallel.

    The reader allows no more than torch's weights-only rules do.
    """
    from craftcache.checkpoint.reader import read_index

    try:
        index = read_index(file.descriptor)
    except (CraftcacheError, ValueError, EOFError):  # torch says what is wrong with it
        return None
    return index if index.reason is None else None


def _load_by_torch(file: OpenFile, device: torch.device, source: str) -> object:
    from craftcache.checkpoint import weights_only

    try:
        return weights_only.load(file.descriptor, map_location=device, source=source)
    except (NotACheckpoint, UnsafeCheckpoint) as error:
        raise error.in_file(file.info.filename) from error


def _check_present(device: torch.device) -> None:
    """Allocate an empty tensor, which fails if this machine lacks the device or its driver."""
    import torch

    try:
        torch.empty(0, device=device)
    except Exception as error:  # a backend that is not there raises nearly anything
        lines = str(error).splitlines()
        raise UnknownDevice(
            f"this machine has no usable device {device} ({lines[0] if lines else 'no reason'})",
            hint="Check torch.cuda.is_available() and the driver, or use cpu",
        ) from error
