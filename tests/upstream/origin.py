"""The hosts that AudioCraft downloads from, on loopback: a Hub, and the host of demucs over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.hub import OnDisk, hub_in_thread
from tests.support.hub.gates import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.support.hub import TestHub

__all__ = ["DEMUCS", "Origin", "origin_of"]

DEMUCS = Path(__file__).parents[1] / "data" / "htdemucs-tiny" / "955717e8-8726e21a.th"
"""A real one, but small; with the name that it has everywhere."""

DEMUCS_HOST = "dl.fbaipublicfiles.com"
DEMUCS_PATH = f"/demucs/hybrid_transformer/{DEMUCS.name}"

LEGACY_IDS = {"t5-small": "google-t5/t5-small", "t5-large": "google-t5/t5-large"}
"""Repositories of the Hub that it still answers for, by a redirect to their new names."""

READ_AT_ONCE = 64 * 1024
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Origin:
    """All that can be downloaded.

    Attributes:
        hub: Its CDN is also what is behind the proxy.
        environment: By which a program finds the Hub, and DEMUCS_HOST behind the proxy.
    """

    hub: TestHub
    environment: Mapping[str, str]


@contextmanager
def origin_of(repositories: Path, scratch: Path) -> Iterator[Origin]:
    """Serve the directories ``org/name`` and ``name`` under ``repositories``, and demucs."""
    context, certificate = _certificate(scratch)
    with hub_in_thread() as hub:
        for directory in {file.parent for file in repositories.glob("*/**/*.*")}:
            name = str(directory.relative_to(repositories))
            hub.repo(LEGACY_IDS.get(name, name)).commit(
                {file.name: file for file in directory.iterdir()}
            )
        for old, new in LEGACY_IDS.items():
            hub.rename(old, new)
        hub.files[DEMUCS_PATH] = OnDisk(DEMUCS)
        with _proxy(context, int(hub.cdn.rpartition(":")[2])) as proxy:
            yield Origin(
                hub,
                {
                    "HF_ENDPOINT": hub.endpoint,
                    "HF_HUB_DISABLE_XET": "1",
                    "HTTPS_PROXY": proxy,
                    "SSL_CERT_FILE": str(certificate),
                },
            )


def _certificate(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """For DEMUCS_HOST: what a server needs, and the file that makes clients believe it."""
    openssl = shutil.which("openssl") or pytest.skip("making a certificate needs openssl")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    make = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={DEMUCS_HOST}"
    names = ["-addext", f"subjectAltName=DNS:{DEMUCS_HOST}"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *names, *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context, certificate


@contextmanager
def _proxy(context: ssl.SSLContext, port: int) -> Iterator[str]:
    """A proxy, in a thread, that is itself the host behind it; gives its URL.

    After CONNECT it speaks TLS, and hands all that it is asked on to a port of loopback.
    """
    started: Future[tuple[str, Callable[[], object]]] = Future()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await writer.start_tls(context)
            answers, questions = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_pass_on(reader, questions), _pass_on(answers, writer))

    async def serve() -> None:
        stop = asyncio.Event()
        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            number = server.sockets[0].getsockname()[1]
            stopping = partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set)
            started.set_result((f"http://127.0.0.1:{number}", stopping))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="test-proxy")
    thread.start()
    url, stop = started.result(PATIENCE_S)
    try:
        yield url
    finally:
        stop()
        thread.join()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        while data := await reader.read(READ_AT_ONCE):
            writer.write(data)
            await writer.drain()
