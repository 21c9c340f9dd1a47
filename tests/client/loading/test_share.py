"""``share=True`` in all its calls, on a service that has memory files for a GPU's memory."""

from __future__ import annotations

import logging
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from craftcache import AsyncClient, Client
from craftcache.daemon.transport import WorkerSocket
from craftcache.errors import Unavailable
from craftcache.wire import DescribeGpu
from tests.support.checkpoints import assert_same, loaded
from tests.support.daemons import EXPORT_FILES
from tests.support.gpu.memfd import UUID, share_by_memfd
from tests.support.gpu.processes import GpuServiceProcess
from tests.support.gpu.source import file_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LM = "state_dict.bin"


@pytest.fixture
def socket_dir(base: Path) -> Iterator[Path]:
    """The sockets of a source of files, and of a GPU's service."""
    with file_source(base, EXPORT_FILES), GpuServiceProcess(base):
        yield base


@pytest.fixture
def client(socket_dir: Path) -> Iterator[Client]:
    with Client(socket_dir=socket_dir, fallback="none") as client:
        share_by_memfd(client)
        yield client


def leases(socket_dir: Path) -> dict[str, int]:
    worker_socket = WorkerSocket(socket_dir / "gpu" / f"{UUID}.sock")
    report = worker_socket.ask(DescribeGpu(), patience=lambda: 5.0)
    worker_socket.close()
    return {model.filename: model.leases for model in report.models}


def test_load_says_which_parts_are_shared(client: Client, socket_dir: Path) -> None:
    export = client.load("org/model", share=True)
    assert export.shared == ("lm", "compression")
    assert export.fallback_reason is None
    assert_same(export.lm, loaded(EXPORT_FILES[LM].read_bytes()))
    assert set(leases(socket_dir).values()) == {1}
    assert client.load("org/model").shared == ()
    assert client.load("org/model", parts=("lm",), share=True).shared == ("lm",)


def test_load_state_dict_shares(client: Client, socket_dir: Path) -> None:
    ours = client.load_state_dict("org/model", LM, share=True)
    assert_same(ours, loaded(EXPORT_FILES[LM].read_bytes()))
    assert leases(socket_dir) == {LM: 1}
    client.load_state_dict("org/model", LM)
    assert leases(socket_dir) == {LM: 1}


async def test_coroutines_share(socket_dir: Path) -> None:
    async with AsyncClient(socket_dir=socket_dir, fallback="none") as client:
        share_by_memfd(client)
        export = await client.load("org/model", share=True)
        assert export.shared == ("lm", "compression")
        ours = await client.load_state_dict("org/model", LM, share=True)
        assert_same(ours, export.lm)


def test_threads_share_one_client(client: Client, socket_dir: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        exports = list(pool.map(lambda _: client.load("org/model", share=True), range(8)))
    for export in exports:
        assert_same(export.lm, exports[0].lm)
    assert set(leases(socket_dir).values()) == {8}


def test_a_forked_child_keeps_nothing_at_the_service(client: Client, socket_dir: Path) -> None:
    export = client.load("org/model", share=True)
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        os.close(theirs)
        os.read(ours, 1)  # until the parent is done
        os._exit(0)
    os.close(ours)
    try:
        assert set(leases(socket_dir).values()) == {1}
        del export
        while set(leases(socket_dir).values()) != {0}:  # the service tells nobody of its own accord
            time.sleep(0.02)
    finally:
        os.close(theirs)
        os.waitpid(child, 0)


def test_a_client_that_was_pickled_shares_as_any_other(client: Client) -> None:
    copy = pickle.loads(pickle.dumps(client))
    assert copy.load("org/model", share=True).shared == (), "to the CPU, where all is shared"


def test_without_a_fallback_the_reason_is_an_error(client: Client) -> None:
    share_by_memfd(client, "the driver is too old")
    with pytest.raises(Unavailable, match="its memory cannot be shared: the driver is too old"):
        client.load("org/model", share=True)


def test_the_warning_names_the_reason_once(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(socket_dir=socket_dir, fallback="cache") as client:
        share_by_memfd(client, "the driver is too old")
        with caplog.at_level(logging.WARNING, "craftcache"):
            for _ in range(2):
                export = client.load("org/model", share=True)
                assert export.shared == ()
                assert export.served_by == "daemon"
    [record] = caplog.records
    assert record.getMessage() == (
        "a private copy is made, not a shared one: the driver is too old. Do something about it"
    )
