"""Round trips of a hit on the worker socket.

``tests.bench.worker_socket`` warms a small export through a real daemon and asks for it over
and over: two blobs and two indexes an answer. The daemon is one process and all clients together
are another, two cores in all. One client is the client library's own end of the socket; many are
bare sockets, so that the rate is the daemon's and not that of Python threads.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from craftcache.daemon.transport import WorkerSocket
from craftcache.sources import parse
from craftcache.wire import Hello, Load, encode
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import hub_in_thread

RESULTS = Path(__file__).parent / "results" / "worker_socket.json"
SOURCE = "bench/musicgen-tiny"
CLIENTS = (1, 16, 64)
REQUESTS = 10_000

_HELLO = encode(Hello())
_REQUEST = Load(parse(SOURCE))
_LOAD = encode(_REQUEST)
_ROOM = socket.CMSG_SPACE(16)


@dataclass(frozen=True, slots=True)
class Figures:
    """Percentiles of a round trip in microseconds, and requests a second."""

    clients: int
    connection: str
    p50: float
    p99: float
    rate: float

    @classmethod
    def of(cls, clients: int, fresh: bool, seconds: list[float], total: float) -> Figures:
        """The figures of round trips that took ``seconds`` each and ``total`` in all."""
        ordered = [each * 1e6 for each in sorted(seconds)]
        count = len(ordered)
        kind = "fresh" if fresh else "kept alive"
        return cls(clients, kind, ordered[count // 2], ordered[count * 99 // 100], count / total)


def one_client(path: Path, *, fresh: bool) -> Figures:
    worker = WorkerSocket(path)
    seconds = []
    begin = time.perf_counter()
    for _ in range(REQUESTS // 4):
        at = time.perf_counter()
        worker.ask(_REQUEST, patience=lambda: 15.0).close()
        seconds.append(time.perf_counter() - at)
        if fresh:
            worker.close()
    worker.close()
    return Figures.of(1, fresh, seconds, time.perf_counter() - begin)


class ManyClients:
    """Clients that each ask again as soon as they are answered."""

    def __init__(self, path: Path, count: int, *, fresh: bool) -> None:
        self._path = os.fspath(path)
        self._count = count
        self._fresh = fresh
        self._clients: dict[int, tuple[socket.socket, float]] = {}
        self._poll = select.epoll()

    def measure(self) -> Figures:
        begin = time.perf_counter()
        for _ in range(self._count):
            self._connect()
        seconds: list[float] = []
        while len(seconds) < REQUESTS:
            for descriptor, _ in self._poll.poll():
                seconds += self._hear(descriptor)
        figures = Figures.of(self._count, self._fresh, seconds, time.perf_counter() - begin)
        for client, _ in self._clients.values():
            client.close()
        self._poll.close()
        return figures

    def _connect(self) -> None:
        at = time.perf_counter()
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self._path)
        client.send(_HELLO)
        client.send(_LOAD)
        self._clients[client.fileno()] = (client, at)
        self._poll.register(client.fileno(), select.EPOLLIN)

    def _hear(self, descriptor: int) -> list[float]:
        client, at = self._clients[descriptor]
        _, ancillary, _, _ = client.recvmsg(65_536, _ROOM, socket.MSG_CMSG_CLOEXEC)
        if not ancillary:  # the hello
            return []
        for received in array.array("i", ancillary[0][2]):
            os.close(received)
        now = time.perf_counter()
        if self._fresh:
            self._poll.unregister(descriptor)
            self._clients.pop(descriptor)[0].close()
            self._connect()
        else:
            self._clients[descriptor] = (client, now)
            client.send(_LOAD)
        return [now - at]


def run(path: Path) -> list[Figures]:
    """All measurements, on the socket at ``path``."""
    return [
        one_client(path, fresh=fresh)
        if count == 1
        else ManyClients(path, count, fresh=fresh).measure()
        for count in CLIENTS
        for fresh in (False, True)
    ]


def main() -> None:
    """Measure, print and keep the figures."""
    with (
        tempfile.TemporaryDirectory() as directory,
        hub_in_thread() as hub,
        DaemonProcess(Path(directory), HF_ENDPOINT=hub.endpoint) as daemon,
    ):
        hub.repo(SOURCE).commit({name: file.read_bytes() for name, file in EXPORT_FILES.items()})
        daemon.client().warm(SOURCE)
        results = run(daemon.socket_dir / "worker" / "handles.sock")
    print("clients  connection   p50 us   p99 us  requests/s")
    for each in results:
        print(
            f"{each.clients:7}  {each.connection:10}{each.p50:9.0f}{each.p99:9.0f}{each.rate:12.0f}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
