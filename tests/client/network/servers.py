"""Real servers between a test and its hub: a proxy, and TLS in front of a port."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Self, TypeAlias
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

__all__ = ["Certificate", "Proxy", "Seen", "TlsFront", "make_certificate"]

PATIENCE_S = 10.0
READ_AT_ONCE = 64 * 1024

_Serve: TypeAlias = "Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]"


@dataclass(frozen=True)
class Certificate:
    """What a server shows, and the file that makes clients believe it."""

    context: ssl.SSLContext
    path: Path


def make_certificate(directory: Path) -> Certificate:
    """For loopback, by address and as localhost, and for every name below ``test``."""
    openssl = shutil.which("openssl") or pytest.skip("making a certificate needs openssl")
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    make = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test"
    names = "IP:127.0.0.1,DNS:localhost,DNS:cdn.test,DNS:hub.test"
    more = ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *more], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return Certificate(context, certificate)


@dataclass(frozen=True)
class Seen:
    """One request that a proxy was sent."""

    method: str
    target: str
    headers: Mapping[str, str]


class _Server:
    """A server on loopback in a thread of its own; a context manager."""

    def __init__(self, serve: _Serve, context: ssl.SSLContext | None) -> None:
        self._serve = serve
        self._context = context
        self._started: Future[tuple[int, Callable[[], object]]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        self.port, self._stop = self._started.result(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join()

    async def _run(self) -> None:
        stop = asyncio.Event()
        running: set[asyncio.Task[None]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            broken = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
            with contextlib.suppress(*broken), contextlib.closing(writer):
                await self._serve(reader, writer)
            running.discard(task)

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=self._context)
        stopping = partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set)
        self._started.set_result((server.sockets[0].getsockname()[1], stopping))
        await stop.wait()
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@dataclass
class Proxy(_Server):
    """A proxy for CONNECT and for plain requests.

    Attributes:
        routes: The port on loopback that stands for each host, by its name and port.
        context: For one that is spoken to by TLS.
        authorization: What it wants as Proxy-Authorization; None wants nothing.
        status: What it answers to everything instead of passing it on.
        seen: What it was asked so far.
    """

    routes: Mapping[tuple[str, int], int]
    context: ssl.SSLContext | None = None
    authorization: str | None = None
    status: int | None = None
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self._handle, self.context)

    @property
    def place(self) -> str:
        """Its host and port."""
        return f"localhost:{self.port}"

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:-2])}
        self.seen.append(Seen(method, target, headers))
        if self.authorization is not None and (
            headers.get("proxy-authorization") != self.authorization
        ):
            self._answer(writer, 407)
            return
        if self.status is not None:
            self._answer(writer, self.status)
            return
        parts = urlsplit(target if "://" in target else f"//{target}")
        port = self.routes[parts.hostname or "", parts.port or 80]
        answers, questions = await asyncio.open_connection("127.0.0.1", port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            path = target.split("/", 3)[3] if target.count("/") > 2 else ""
            kept = [line for line in head[1:-2] if not line.lower().startswith("proxy-")]
            lines = [f"{method} /{path} HTTP/1.1", *kept, "Connection: close", "", ""]
            questions.write("\r\n".join(lines).encode("latin-1"))
        await asyncio.gather(_pass_on(reader, questions), _pass_on(answers, writer))

    def _answer(self, writer: asyncio.StreamWriter, status: int) -> None:
        writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode("ascii"))


@dataclass
class TlsFront(_Server):
    """TLS before a port on loopback."""

    context: ssl.SSLContext
    behind: int

    def __post_init__(self) -> None:
        super().__init__(self._handle, self.context)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection("127.0.0.1", self.behind)
        await asyncio.gather(_pass_on(reader, questions), _pass_on(answers, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        while data := await reader.read(READ_AT_ONCE):
            writer.write(data)
            await writer.drain()
