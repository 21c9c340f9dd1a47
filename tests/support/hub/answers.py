"""Carries out a delivery: status and headers by the rules of HTTP, then the body, byte by byte."""

from __future__ import annotations

import array
import asyncio
import fcntl
import re
import socket
import struct
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from .faults import Delivery

__all__ = ["answer"]

SENT_AT_ONCE = 256 * 1024
"""Bytes."""

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class _Part:
    """What of the file goes out: the status and the bytes from ``start`` to before ``stop``."""

    status: int
    start: int
    stop: int


async def answer(
    request: web.Request, delivery: Delivery, sent: Callable[[int, int], None]
) -> web.StreamResponse:
    """Answer ``request``; ``sent`` is told the status and the bytes of the body so far."""
    for gate in [gate for after, gate in delivery.stalls if after is None]:
        await gate.passed()
    if delivery.cut is not None and delivery.cut.after is None:
        await _break_off(request, reset=delivery.cut.reset)
        return web.Response()  # goes nowhere: the connection is closed
    part = _part(request, delivery)
    response = _response(delivery, part)
    await response.prepare(request)
    sent(part.status, 0)
    if request.method != "HEAD":
        await _send_body(request, response, delivery, part, sent)
    if delivery.cut is not None:
        await _break_off(request, reset=delivery.cut.reset)
    else:
        await response.write_eof()
    return response


def _part(request: web.Request, delivery: Delivery) -> _Part:
    size = delivery.content.size
    whole = _Part(delivery.status or 200, 0, size)
    if delivery.status is not None:
        return whole
    if delivery.etag is not None and _names(request, "If-None-Match", delivery.etag):
        return _Part(304, 0, 0)
    if "If-Match" in request.headers and not _names(request, "If-Match", delivery.etag):
        return _Part(412, 0, 0)
    wanted = request.headers.get("Range")
    if request.method != "GET" or wanted is None or not delivery.ranges:
        return whole
    if "If-Range" in request.headers and request.headers["If-Range"] != f'"{delivery.etag}"':
        return whole
    return _range(wanted, size) or whole


def _names(request: web.Request, header: str, etag: str | None) -> bool:
    given = [value.strip() for value in request.headers.get(header, "").split(",")]
    return "*" in given or f'"{etag}"' in given


def _range(wanted: str, size: int) -> _Part | None:
    """The part that a Range header names; None for one that must be ignored, as several are."""
    match = _RANGE.fullmatch(wanted.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    return _Part(206, start, stop) if start < stop else _Part(416, 0, 0)


class _UntilClose(web.StreamResponse):
    """A body without length or chunks, whose end is the end of the connection."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        if self.headers.pop("Transfer-Encoding", None) is not None:
            writer: Any = self._payload_writer  # the abstract writer does not name it
            writer.chunked = False
            self.force_close()
            self.headers["Connection"] = "close"


def _response(delivery: Delivery, part: _Part) -> web.StreamResponse:
    kind = _UntilClose if delivery.length == "until-close" else web.StreamResponse
    response = kind(status=part.status)
    if delivery.status is None:
        response.headers["Accept-Ranges"] = "bytes" if delivery.ranges else "none"
    response.headers["Content-Type"] = "application/octet-stream"
    if delivery.etag is not None:
        response.headers["ETag"] = f'"{delivery.etag}"'
    size, shift = delivery.content.size, delivery.content_range_shift
    if part.status == 206:
        span = f"{part.start + shift}-{part.stop - 1 + shift}"
        response.headers["Content-Range"] = f"bytes {span}/{size}"
    elif part.status == 416:
        response.headers["Content-Range"] = f"bytes */{size}"
    response.headers.update(delivery.headers)
    if delivery.length == "declared" and part.status != 304:
        response.content_length = part.stop - part.start
    return response


async def _send_body(
    request: web.Request,
    response: web.StreamResponse,
    delivery: Delivery,
    part: _Part,
    sent: Callable[[int, int], None],
) -> None:
    gates = sorted(
        ((after, gate) for after, gate in delivery.stalls if after is not None),
        key=lambda stall: stall[0],
    )
    length = part.stop - part.start
    end = length
    if delivery.cut is not None and delivery.cut.after is not None:
        end = min(length, delivery.cut.after)
    done = 0
    while True:
        while gates and gates[0][0] <= done:
            await gates.pop(0)[1].passed()
        until = min(end, gates[0][0]) if gates else end
        if done >= end:
            return
        count = min(SENT_AT_ONCE, until - done)
        if delivery.valve is not None:
            count = await delivery.valve.take(count)
        offset = max(0, part.start + delivery.body_shift) + done
        chunk = await delivery.content.chunk(offset, count)
        await response.write(chunk.ljust(count, b"\0"))
        done += count
        sent(part.status, done)


async def _break_off(request: web.Request, *, reset: bool) -> None:
    """Close the connection, by RST only when the peer's kernel has all that was sent."""
    transport = request.transport
    if transport is None:
        return
    if not reset:
        transport.close()
        return
    sock = transport.get_extra_info("socket")
    unsent = array.array("i", [1])
    while unsent[0] or _buffered(transport):
        await asyncio.sleep(0.001)
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, unsent)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _buffered(transport: asyncio.Transport) -> int:
    return transport.get_write_buffer_size()
