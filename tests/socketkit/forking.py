"""A program of one thread that asks, forks, and asks on both sides; argument: the socket."""

from __future__ import annotations

import os
import sys

from craftcache.transport import WorkerSocket
from craftcache.wire import Load


def ask(worker: WorkerSocket, source: str) -> str:
    with worker.ask(Load(source), patience=lambda: 15.0) as reply:
        return reply.answer.source


def sockets_of_this_process() -> set[str]:
    directory = "/proc/self/fd"
    links = {f"{directory}/{name}" for name in os.listdir(directory)}
    return {os.readlink(link) for link in links if os.path.islink(link)}


def connections_of_this_process() -> set[str]:
    return {target for target in sockets_of_this_process() if target.startswith("socket:")}


worker = WorkerSocket(sys.argv[1])
inherited = connections_of_this_process()
print("parent before:", ask(worker, "hot/1"), flush=True)
connection = connections_of_this_process() - inherited
child = os.fork()
if child == 0:
    left = connections_of_this_process() & connection
    print("child inherited:", left or "no connection")
    print("child:", ask(worker, "hot/2"), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
answer = ask(worker, "hot/3")
same = connections_of_this_process() - inherited == connection
print("parent after, on", "its old" if same else "another", f"connection: {answer}")
sys.exit(status)
