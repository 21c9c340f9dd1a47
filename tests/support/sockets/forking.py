"""A program that asks, forks, and asks on both sides; argument: the socket."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING

from craftcache.daemon.transport import Call, WorkerSocket
from craftcache.sources import parse
from craftcache.wire import Load

if TYPE_CHECKING:
    from collections.abc import Callable


def ask(worker: WorkerSocket, source: str, on_progress: Callable[[], None] = lambda: None) -> str:
    call = Call(lambda _: on_progress())
    with worker.ask(Load(parse(source)), call, patience=lambda: 15.0) as loaded:
        return loaded.source


def connections_of_this_process() -> set[str]:
    directory = "/proc/self/fd"
    links = [f"{directory}/{name}" for name in os.listdir(directory)]
    targets = {os.readlink(link) for link in links if os.path.islink(link)}
    return {target for target in targets if target.startswith("socket:")}


def child_asks(worker: WorkerSocket, of_parent: set[str]) -> None:
    left = connections_of_this_process() & of_parent
    print("child inherited:", left or "no connection")
    print("child:", ask(worker, "cold/child"), flush=True)


worker = WorkerSocket(sys.argv[1])
inherited = connections_of_this_process()
print("parent before:", ask(worker, "hot/1"), flush=True)
# One request is under way while the process forks; the server answers it after the child's.
waits = Event()
with ThreadPoolExecutor(1) as thread:
    waiting = thread.submit(ask, worker, "cold/parent", waits.set)
    waits.wait()
    print("parent meanwhile:", ask(worker, "hot/2"), flush=True)
    connections = connections_of_this_process() - inherited
    if (child := os.fork()) == 0:
        child_asks(worker, connections)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("parent waited for:", waiting.result(), flush=True)
answer = ask(worker, "hot/3")
same = connections_of_this_process() - inherited == connections
print("parent after, on", "its old" if same else "other", f"connections: {answer}")
sys.exit(status)
