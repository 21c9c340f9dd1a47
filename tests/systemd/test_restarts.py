"""What becomes of requests and downloads when the daemon starts, stops and dies."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import CraftcacheError
from tests.support.hub import Drip, Valve

from .conftest import LARGE, SERVICE, Node

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.hub import Request

RESTARTS = 5

FIRST_BYTES = 16 * 2**20
"""Of a large file, before its download is interrupted."""

STATE = "state_dict.bin"


def test_the_first_connection_starts_the_daemon(node: Node) -> None:
    assert node.machine.property(SERVICE, "ActiveState") == "inactive"
    with node.client() as client:
        assert client.status().pid == node.main_pid()


def test_so_does_the_first_request_over_http(node: Node) -> None:
    with node.api() as api:
        assert api.get("/status")["pid"] == node.main_pid()


def test_sixty_first_connections_at_once_are_all_answered(node: Node) -> None:
    together = threading.Barrier(60)

    def over_http() -> int:
        with node.api() as api:
            together.wait()
            return int(api.get("/status")["pid"])

    def over_worker_socket() -> int:
        with node.client() as client:
            together.wait()
            return int(client.status().pid)

    with ThreadPoolExecutor(60) as threads:
        asked = [threads.submit(ask) for ask in (over_http, over_worker_socket) * 30]
        pids = {answer.result() for answer in asked}
    assert pids == {node.main_pid()}


def test_restarts_under_load_lose_no_request(node: Node) -> None:
    with node.client() as client:
        client.warm(["org/model"])
    over = threading.Event()

    def load_again_and_again() -> int:
        done = 0
        with node.client() as client:
            while not over.is_set():
                assert client.load("org/model").served_by == "daemon"
                done += 1
        return done

    def ask_again_and_again() -> int:
        done = 0
        while not over.is_set():
            with node.api() as api:
                api.get("/models/org/model")
            done += 1
        return done

    pids = set()
    with ThreadPoolExecutor(8) as threads:
        workers = [threads.submit(work) for work in (load_again_and_again, ask_again_and_again) * 4]
        try:
            for _ in range(RESTARTS):
                node.machine.systemctl("restart", SERVICE)
                pids.add(node.main_pid())
        finally:
            over.set()
        counts = [worker.result() for worker in workers]
    assert len(pids) == RESTARTS
    assert min(counts) > 0


def test_a_killed_daemon_answers_again_and_goes_on_with_its_downloads(node: Node) -> None:
    interrupted(node, lambda: node.machine.systemctl("kill", "--signal=KILL", SERVICE))
    assert "status=9/KILL" in node.machine.journal(SERVICE)


def test_a_restarted_daemon_goes_on_with_its_downloads(node: Node) -> None:
    interrupted(node, lambda: node.machine.systemctl("restart", SERVICE))
    assert "stopped: received SIGTERM" in node.machine.journal(SERVICE)


def interrupted(node: Node, interrupt: Callable[[], object]) -> None:
    """Interrupt a promised download; what had arrived is not fetched again."""
    node.hub.repo("org/large").commit({STATE: LARGE})
    valve = Valve(FIRST_BYTES)
    node.hub.inject(Drip(valve), path=f"*/{STATE}", origin="cdn", times=None)
    with node.api() as api:
        assert api.warm("org/large", files=(STATE,), wait=False).status_code == 202
        before = api.get("/status")["pid"]
    node.machine.wait_journal(SERVICE, "serving")
    sent = 0

    def have_been_sent(request: Request) -> bool:
        nonlocal sent
        sent = node.hub.bytes_sent(f"*/{STATE}", origin="cdn")
        return request.origin == "cdn" and sent >= FIRST_BYTES

    node.hub.wait_for_request_blocking(have_been_sent)
    interrupt()
    with node.client() as client:
        assert client.status().pid != before
        valve.open()
        client.load_state_dict("org/large", STATE)
    fetched = node.hub.bytes_sent(f"*/{STATE}", origin="cdn")
    assert fetched < len(LARGE) + FIRST_BYTES // 2


def test_stopping_lets_running_requests_finish(node: Node) -> None:
    node.hub.repo("org/large").commit({STATE: LARGE})
    valve = Valve()
    node.hub.inject(Drip(valve), path=f"*/{STATE}", origin="cdn", times=None)
    with ThreadPoolExecutor(1) as threads, node.client() as client:
        loading = threads.submit(client.load_state_dict, "org/large", STATE)
        node.hub.wait_for_request_blocking(lambda request: request.origin == "cdn")
        node.machine.systemctl("stop", "--no-block", SERVICE)
        while node.machine.property(SERVICE, "ActiveState") != "deactivating":
            pass
        valve.open()
        loading.result()
    node.machine.wait_journal(SERVICE, "Deactivated successfully")
    assert node.machine.property(SERVICE, "NRestarts") == "0"
    assert node.main_pid() == 0


def test_stopping_cuts_off_what_takes_longer_and_the_worker_asks_the_next_daemon(
    node: Node,
) -> None:
    node.hub.repo("org/large").commit({STATE: LARGE})
    valve = Valve()
    node.hub.inject(Drip(valve), path=f"*/{STATE}", origin="cdn", times=None)
    with ThreadPoolExecutor(1) as threads, node.client() as client:
        loading = threads.submit(client.load_state_dict, "org/large", STATE)
        node.hub.wait_for_request_blocking(lambda request: request.origin == "cdn")
        node.machine.systemctl("restart", SERVICE)
        assert node.machine.property(SERVICE, "Result") == "success"
        valve.open()
        loading.result()


@pytest.mark.parametrize("attempt", range(3))
def test_a_stop_during_start_up_is_heeded(node: Node, attempt: int) -> None:
    node.machine.systemctl("start", "--no-block", SERVICE)
    while node.main_pid() == 0:
        pass
    for _ in range(attempt * 20):  # further into the start
        node.machine.run("true")
    node.machine.systemctl("stop", SERVICE)
    assert node.machine.property(SERVICE, "Result") == "success"
    assert node.machine.property(SERVICE, "ActiveState") == "inactive"
    with node.client() as client:
        assert client.status().pid == node.main_pid()


def test_a_second_daemon_on_the_same_cache_is_refused_in_words(node: Node) -> None:
    with node.client() as client:
        first = client.status().pid
    second = node.as_user(
        "craftcache",
        *("/opt/craftcache/bin/craftcached", "--socket-dir=/tmp/second", "--state-dir=/tmp/state"),
    )
    assert second.returncode == 1
    assert (
        f"another craftcached (pid {first}) already serves /var/cache/craftcache" in second.stderr
    )
    with node.client() as client:
        assert client.status().pid == first


def test_a_client_that_only_looks_in_the_cache_needs_no_daemon(node: Node) -> None:
    node.machine.systemctl("stop", "craftcache.socket", SERVICE)
    with node.client() as client, pytest.raises(CraftcacheError):
        client.status()
    assert "facebook/musicgen-small" in node.craftcache("ls", user="worker").stdout
