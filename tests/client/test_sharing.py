"""One client for threads, forked children and spawned processes; no descriptor is left behind."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache.errors import CraftcacheError, InvalidSource, NotFound
from tests.support.checkpoints import assert_same, saved
from tests.support.daemons import EXPORT
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from craftcache import Client, Export
    from tests.support.clients import Node
    from tests.support.hub import TestHub


def expected(filename: str = "state_dict.bin") -> Any:
    return torch.load(EXPORT / filename, weights_only=True)


def assert_is_the_export(export: Export) -> None:
    assert export.served_by == "daemon"
    assert_same(export.lm, expected())
    assert_same(export.compression, expected("compression_state_dict.bin"))


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    with node.daemon.client() as client:
        yield client


def open_files() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


# --- Threads ---


def test_threads_share_a_client(client: Client) -> None:
    start = threading.Barrier(8)

    def load(number: int) -> Export | CraftcacheError:
        start.wait()
        try:
            if number % 4 == 3:
                client.load("org//model")
            return client.load("org/model")
        except CraftcacheError as error:
            return error

    with ThreadPoolExecutor(8) as threads:
        results: list[Export | CraftcacheError] = list(threads.map(load, range(8)))
    for number, result in enumerate(results):
        if isinstance(result, CraftcacheError):
            assert number % 4 == 3
            assert isinstance(result, InvalidSource)
        else:
            assert_is_the_export(result)


def test_threads_of_many_clients_fetch_a_cold_source_once(node: Node) -> None:
    state = {"best_state": {"w": torch.rand(1000)}}
    content = saved(state)
    node.hub.repo("org/once").commit({"state_dict.bin": content})
    gate = Gate()
    node.hub.inject(Stall(gate, after=1000), path="*/org/once/*", origin="cdn", times=None)
    start = threading.Barrier(17)

    def load(_number: int) -> Export:
        with node.daemon.client() as client:
            start.wait()
            return client.load("org/once", parts=("lm",))

    with ThreadPoolExecutor(16) as threads:
        loading = [threads.submit(load, number) for number in range(16)]
        start.wait()
        gate.reached.wait_blocking()
        gate.open()
        for future in loading:
            export = future.result()
            assert export.served_by == "daemon"
            assert_same(export.lm, state)
    assert node.hub.bytes_sent("*/org/once/*", origin="cdn") == len(content)


# --- Processes ---

FORKING = """
import multiprocessing, os, sys, threading
import torch
from craftcache import Client

torch.set_num_threads(1)  # its pool does not survive a fork, whoever forks
client = Client(socket_dir=sys.argv[1], cache_dir=sys.argv[2])
expected = torch.load(sys.argv[3], weights_only=True)["best_state"]

def is_right() -> bool:
    export = client.load("org/model")
    same = all(torch.equal(export.lm["best_state"][k], v) for k, v in expected.items())
    return export.served_by == "daemon" and same

def check(queue=None):
    results = [is_right() for _ in range(5)]
    if queue is None:
        os._exit(0 if all(results) else 1)
    queue.put(all(results))

assert is_right()  # the parent has a connection now, which children must not speak on
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        check()
    children.append(child)
threads = [threading.Thread(target=is_right) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*(os.waitpid(child, 0)[1] for child in children))
context = multiprocessing.get_context("fork")
queue = context.Queue()
processes = [context.Process(target=check, args=(queue,)) for _ in range(2)]
for process in processes:
    process.start()
print(*(queue.get() for _ in processes))
for process in processes:
    process.join()
print(is_right())
"""


def test_forked_children_share_a_client(node: Node) -> None:
    daemon = node.daemon
    printed = subprocess.run(
        [
            *(sys.executable, "-c", FORKING, str(daemon.socket_dir), str(daemon.cache_dir)),
            str(EXPORT / "state_dict.bin"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.splitlines() == ["0 0 0", "True True", "True"]


SPAWNED = """
import pickle, sys, torch
client = pickle.load(sys.stdin.buffer)
export = client.load("org/model")
expected = torch.load(sys.argv[1], weights_only=True)["best_state"]
print(all(torch.equal(export.lm["best_state"][key], value) for key, value in expected.items()))
print(export.served_by, client.cache_dir, client.socket_dir)
"""


def test_a_spawned_process_has_a_client_by_pickle(client: Client, node: Node) -> None:
    client.load("org/model")
    printed = subprocess.run(
        [sys.executable, "-c", SPAWNED, str(EXPORT / "state_dict.bin")],
        input=pickle.dumps(client),
        capture_output=True,
        check=True,
    )
    right, where = printed.stdout.decode().splitlines()
    assert right == "True"
    assert where == f"daemon {client.cache_dir} {client.socket_dir}"


# --- Descriptors ---


def test_loads_leave_no_descriptor_behind(client: Client, node: Node, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage.th").write_bytes(b"garbage")

    def load_everything() -> None:
        client.load("org/model")
        client.load_state_dict("org/model", "state_dict.bin", device="meta")
        client.load(EXPORT)
        client.resolve("org/model", "state_dict.bin")
        client.warm("org/model")
        client.models()
        for source, error in {
            "org/missing": NotFound,
            str(tmp_path / "empty"): NotFound,
            str(tmp_path / "garbage.th"): CraftcacheError,
            "a/b/c": InvalidSource,
        }.items():
            with pytest.raises(error):
                client.load(source, parts=("lm",))
        with pytest.raises(NotFound):
            client.load_state_dict("org/model", "missing.bin")

    load_everything()
    before = open_files()
    for _ in range(10):
        load_everything()
    # The hub runs in this process, and may have a connection more or less; a leak has ten more.
    assert len(open_files()) < len(before) + 5


def test_a_loaded_tensor_holds_a_map_and_no_connection(client: Client) -> None:
    before = len(open_files())
    exports = [client.load("org/model") for _ in range(20)]
    client.close()
    held = list(open_files().values())
    assert not [target for target in held if "handles.sock" in target]
    assert len(held) <= before + 2 * len(exports)
    del exports
    assert len(open_files()) == before


def test_own_fetches_leave_no_descriptor_behind(alone: Client, threaded_hub: TestHub) -> None:
    threaded_hub.repo("org/garbage").commit({"state_dict.bin": b"garbage"})

    def load_everything() -> None:
        alone.load("org/model")
        alone.warm("org/model")
        for source in ("org/missing", "org/garbage"):
            with pytest.raises(CraftcacheError):
                alone.load(source, parts=("lm",))

    load_everything()
    before = len(open_files())
    rounds = 5
    for _ in range(rounds):
        load_everything()
    # One more may be the hub's end, in this process too, of a connection that was just closed.
    assert len(open_files()) - before < rounds


def test_no_descriptor_is_inherited_across_exec(client: Client) -> None:
    export = client.load("org/model")
    listed = subprocess.run(
        ["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False
    )
    assert export.lm
    assert "models--org--model" not in listed.stdout
    names = [line.split()[-3] for line in listed.stdout.splitlines() if "->" in line]
    ours = {name for name in os.listdir("/proc/self/fd") if int(name) > 2}
    inheritable = {name for name in ours if name in open_files() and os.get_inheritable(int(name))}
    assert set(names) <= {"0", "1", "2", "3"} | inheritable
    assert not [name for name in inheritable if "socket" in open_files()[name]]
