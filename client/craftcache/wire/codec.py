"""Messages to packets and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from .answers import Answer, Loaded, Problem, Progress, Resolved, WarmedBatch, WarmedModel
from .fields import MAX_FILES, TEXT_LIMITS, Fields, WireError
from .gpu import DescribeGpu, GpuComparisons, GpuReport, VerifyGpu
from .hello import Hello
from .models import MAX_MODEL_FILES, CachedModel, ModelsPage
from .request import Request
from .requests import Follow, Identify, Load, Models, Resolve, Status
from .status import DaemonStatus
from .warm import Warm
from .watching import Generation, Identified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["MAX_MESSAGE", "encode", "decode_request", "decode_answer", "first_page"]

MAX_MESSAGE = 64 * 1024
"""Bytes of a message at most, in either direction."""

_PAGE_BYTES = MAX_MESSAGE - 17 * 1024
"""Bytes of models on a page: the rest of the message is for ``next``, a source."""

FromClient: TypeAlias = Hello | Request[Any]
FromDaemon: TypeAlias = Hello | Progress | Answer | Problem
Message: TypeAlias = Hello | Request[Any] | Progress | Answer | WarmedBatch | Problem


def _refuse(constant: str) -> NoReturn:
    raise WireError(f"{constant} is no JSON")


_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_loads = json.JSONDecoder(parse_constant=_refuse).decode

_WITH_TEXTS = (
    Loaded,
    WarmedBatch,
    ModelsPage,
    Problem,
    DaemonStatus,
    GpuReport,
    GpuComparisons,
)

_FROM_CLIENT: dict[str, Callable[[Fields], FromClient]] = {
    Hello.TYPE: Hello.parse,
    Load.TYPE: Load.parse,
    Resolve.TYPE: Resolve.parse,
    Warm.TYPE: Warm.parse,
    Status.TYPE: Status.parse,
    Models.TYPE: Models.parse,
    Identify.TYPE: Identify.parse,
    Follow.TYPE: Follow.parse,
    DescribeGpu.TYPE: DescribeGpu.parse,
    VerifyGpu.TYPE: VerifyGpu.parse,
}

_FROM_DAEMON: dict[str, Callable[[Fields], FromDaemon]] = {
    Hello.TYPE: Hello.parse,
    Progress.TYPE: Progress.parse,
    Identified.TYPE: Identified.parse,
    Generation.TYPE: Generation.parse,
    Resolved.TYPE: Resolved.parse,
    WarmedModel.TYPE: WarmedModel.parse,
    DaemonStatus.TYPE: DaemonStatus.parse,
    ModelsPage.TYPE: ModelsPage.parse,
    GpuReport.TYPE: GpuReport.parse,
    GpuComparisons.TYPE: GpuComparisons.parse,
    Problem.TYPE: Problem.parse,
}


def encode(message: Message) -> bytes:
    """The packet of a message; texts for people are clipped where it would be too large.

    Raises:
        WireError: It is too large all the same, or holds a value that JSON cannot express.
    """
    for fields in _forms(message):
        packet = _encoded({"type": message.TYPE} | fields)
        if len(packet) <= MAX_MESSAGE:
            return packet
    raise WireError(f"{message.TYPE!r} would take more than {MAX_MESSAGE} bytes")


def decode_request(packet: bytes | bytearray | memoryview) -> FromClient:
    """The message in a packet from a client.

    Raises:
        WireError: The packet is no message that a client may send.
        InvalidSource: The request's source cannot be parsed, or a filename leads out of it.
    """
    fields = _unpack(packet)
    parse = _FROM_CLIENT.get(fields.text("type", 32))
    if parse is None:
        raise WireError(f"{fields.whole['type']!r} is no request of this protocol")
    return parse(fields)


def decode_answer(
    packet: bytes | bytearray | memoryview, descriptors: Sequence[int] = ()
) -> FromDaemon:
    """The message in a packet from a daemon; it owns the ``descriptors`` that came with it.

    Raises:
        WireError: It is no message that a daemon may send. The caller still owns ``descriptors``.
    """
    fields = _unpack(packet)
    kind = fields.text("type", 32)
    if kind == Loaded.TYPE:
        return Loaded.parse(fields, descriptors)
    if descriptors:
        raise WireError(f"{len(descriptors)} descriptors came with {kind!r}")
    parse = _FROM_DAEMON.get(kind)
    if parse is None:
        raise WireError(f"{fields.whole['type']!r} is no answer of this protocol")
    return parse(fields)


def first_page(models: Iterable[CachedModel]) -> ModelsPage:
    """The page of as many of ``models``, sorted by source, as one message holds.

    A model with too many files for one message has only the first listed, so it hides no other.
    """
    page: list[CachedModel] = []
    room = _PAGE_BYTES
    for model in map(_listable, models):
        room -= len(_encoded(model.to_fields())) + 1
        if page and room < 0:
            return ModelsPage(tuple(page), next=page[-1].source)
        page.append(model)
    return ModelsPage(tuple(page))


def _listable(model: CachedModel) -> CachedModel:
    """The model with as many of its files as one message holds."""
    while len(model.files) > MAX_FILES and (
        len(model.files) > MAX_MODEL_FILES
        or len(_encoded(model.to_fields(TEXT_LIMITS[-1]))) > _PAGE_BYTES
    ):
        model = replace(model, files=model.files[: len(model.files) // 2])
    return model


def _forms(message: Message) -> Iterator[dict[str, Any]]:
    """The message's keys, and then again with ever shorter texts for people, if it has such."""
    if isinstance(message, _WITH_TEXTS):
        yield from map(message.to_fields, TEXT_LIMITS)
    else:
        yield message.to_fields()


def _encoded(value: dict[str, Any]) -> bytes:
    try:
        return _dumps(value).encode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from None


def _unpack(packet: bytes | bytearray | memoryview) -> Fields:
    if len(packet) > MAX_MESSAGE:
        raise WireError(f"the message is larger than {MAX_MESSAGE} bytes")
    try:
        return Fields(_loads(str(packet, "utf-8")))
    except (ValueError, RecursionError):
        raise WireError("not JSON in UTF-8") from None
