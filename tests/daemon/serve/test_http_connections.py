"""Connections to ``craftcache.sock`` that say nothing keep nobody else out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from aiohttp import web

from craftcached.serve.http_connections import HttpConnections
from craftcached.serve.sockets import bind_admin_socket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

REQUEST = b"GET /%s HTTP/1.1\r\nHost: craftcached\r\n\r\n"


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def ask(self, path: str) -> None:
        self.writer.write(REQUEST % path.encode())

    async def status(self) -> bytes:
        """The status line of an answer, read to its end; nothing where the connection ended."""
        head = await self.reader.readline()
        if head:
            while (await self.reader.readline()).strip():
                pass
            await self.reader.readexactly(2)
        return head.strip()

    async def is_ended(self) -> bool:
        return await self.reader.read(1) == b""


class Running:
    """A server with a limit of connections; ``/slow`` is answered when ``go_on`` is set."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.clients: list[Client] = []
        self.begun = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()

    async def slow(self, _request: web.Request) -> web.Response:
        self.begun.release()
        await self.go_on.wait()
        return web.Response(text="ok")

    async def quick(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def connect(self) -> Client:
        self.clients.append(Client(*await asyncio.open_unix_connection(self.path)))
        return self.clients[-1]


@contextlib.asynccontextmanager
async def limited_to(limit: int, directory: Path) -> AsyncIterator[Running]:
    connections = HttpConnections(limit)
    listener = bind_admin_socket(directory)
    running = Running(listener.getsockname())
    app = web.Application(middlewares=[connections.middleware])
    app.router.add_get("/slow", running.slow)
    app.router.add_get("/quick", running.quick)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    await connections.accept(listener, runner.server)
    async with asyncio.timeout(30):
        yield running
    for client in running.clients:
        client.writer.close()
    connections.stop()
    await runner.cleanup()


async def test_the_oldest_idle_connection_makes_way(tmp_path: Path) -> None:
    async with limited_to(2, tmp_path) as running:
        silent = await running.connect()
        for _ in range(2):
            used = await running.connect()
            used.ask("quick")
            assert await used.status() == b"HTTP/1.1 200 OK"
        assert await silent.is_ended()
        used.ask("quick")
        assert await used.status() == b"HTTP/1.1 200 OK"


async def test_a_request_that_is_worked_on_makes_no_way(tmp_path: Path) -> None:
    async with limited_to(2, tmp_path) as running:
        busy = []
        for _ in range(3):
            client = await running.connect()
            client.ask("slow")
            busy.append(client)
            await running.begun.acquire()
        newcomer = await running.connect()
        newcomer.ask("quick")
        assert await newcomer.status() == b"HTTP/1.1 200 OK"
        running.go_on.set()
        for client in busy:
            assert await client.status() == b"HTTP/1.1 200 OK"


async def test_who_connect_at_once_are_all_heard(tmp_path: Path) -> None:
    async with limited_to(32, tmp_path) as running:
        clients = [socket.socket(socket.AF_UNIX) for _ in range(200)]
        for client in clients:  # all wait in the kernel before the first is accepted
            client.connect(running.path)
            client.sendall(REQUEST % b"quick")
            client.setblocking(False)
        loop = asyncio.get_running_loop()
        heads = [await loop.sock_recv(client, 15) for client in clients]
        assert heads == [b"HTTP/1.1 200 OK"] * len(clients)
        for client in clients:
            client.close()
