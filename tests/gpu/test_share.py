"""One copy in a GPU's memory for all workers: processes of their own, and what the driver promises.

On a machine with a CUDA device the service has that device's memory; elsewhere memory files.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache.daemon.transport import WorkerSocket
from craftcache.wire import DescribeGpu, GpuComparisons, GpuReport, VerifyGpu
from tests.bench.gpu_sharing import real_service
from tests.gpu.test_device import checkpoint
from tests.support.gpu.fingerprint import fingerprint
from tests.support.gpu.processes import GpuServiceProcess, GpuWorker
from tests.support.gpu.source import file_source

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534

WORKERS = 8

LOOK_SECONDS = 0.02
"""Between two looks at leases: the service tells nobody that one was given back."""

SLACK = 32 << 20
"""Bytes of a device that may come and go beside what is looked at: less than a second copy."""

IS_REAL = torch.cuda.is_available() and not os.environ.get("CRAFTCACHE_TEST_DRY_RUN")
DEVICE = "cuda:0" if IS_REAL else "cpu"


class Node:
    """A source of files, and the service of the GPU."""

    def __init__(self, base: Path, service: GpuServiceProcess) -> None:
        self.base = base
        self.service = service

    def worker(self, **options: Any) -> GpuWorker:
        return GpuWorker(self.base, self.base / "cache", device=DEVICE, **options)

    def ask(self, request: Any) -> Any:
        [path] = (self.base / "gpu").glob("*.sock")
        return WorkerSocket(path).ask(request, patience=lambda: 30.0)

    def wait_for_leases(self, count: int) -> GpuReport:
        while True:
            report: GpuReport = self.ask(DescribeGpu())
            if [model.leases for model in report.models] == [count]:
                return report
            time.sleep(LOOK_SECONDS)


@pytest.fixture(scope="module")
def content() -> bytes:
    buffer = io.BytesIO()
    torch.save(checkpoint(), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def expected(content: bytes) -> str:
    loaded = torch.load(io.BytesIO(content), map_location=DEVICE, weights_only=True)
    return fingerprint(loaded)


@pytest.fixture
def node(content: bytes) -> Iterator[Node]:
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cc-")))
        base.chmod(0o755)
        path = base / "saved.bin"
        path.write_bytes(content)
        stack.enter_context(file_source(base, {"state_dict.bin": path}))
        command = real_service(base) if IS_REAL else None
        service = stack.enter_context(GpuServiceProcess(base, command=command))
        yield Node(base, service)


def test_processes_of_two_users_see_what_torch_load_returns(node: Node, expected: str) -> None:
    other_user = {"uid": NOBODY} if os.geteuid() == 0 else {}
    first, other = node.worker(), node.worker(**other_user)
    with first, other:
        for worker in (first, other):
            load = worker.load(parts=["lm"])
            assert load["shared"] == ["lm"], load
            assert load["warnings"] == []
            assert worker.ask("fingerprint") == {"lm": expected}
        assert load["uid"] == other_user.get("uid", os.getuid())
        report = node.wait_for_leases(2)
        assert report.used_bytes == report.models[0].bytes
        first.kill()
        node.wait_for_leases(1)
        assert other.ask("fingerprint") == {"lm": expected}


def test_a_write_fails_in_the_process_that_writes_alone(node: Node, expected: str) -> None:
    first, other = node.worker(), node.worker()
    with first, other:
        first.load(parts=["lm"])
        other.load(parts=["lm"])
        answer = other.ask("write")
        if IS_REAL:
            assert "illegal memory access" in str(answer["failed"])
        else:
            assert answer == {"ended": -signal.SIGSEGV}
        other.kill()
        node.wait_for_leases(1)
        assert first.ask("fingerprint") == {"lm": expected}


def test_eight_workers_have_one_copy_which_goes_with_the_last_of_them(
    node: Node, content: bytes, expected: str
) -> None:
    with contextlib.ExitStack() as stack:
        workers = [node.worker() for _ in range(WORKERS)]
        for worker in workers:
            stack.enter_context(worker)
        free = free_bytes()
        loads = [worker.load(parts=["lm"]) for worker in workers]
        assert all(load["shared"] == ["lm"] for load in loads)
        assert len({tuple(load["blocks"]) for load in loads}) == 1
        block = node.wait_for_leases(WORKERS).used_bytes
        assert SLACK < len(content) <= block
        if IS_REAL:
            assert block <= free - free_bytes() < block + SLACK
        node.service.kill()
        assert all(worker.ask("fingerprint") == {"lm": expected} for worker in workers)
        held = free_bytes()
        for worker in workers:
            worker.ask("drop")
        if IS_REAL:
            assert free_bytes() - held >= block


def test_what_is_there_can_be_compared_with_what_was_verified(node: Node) -> None:
    with node.worker() as worker:
        worker.load(parts=["lm"])
        compared: GpuComparisons = node.ask(VerifyGpu())
        assert [each.outcome for each in compared.comparisons] == ["right"]
        assert worker.ask("drop") == {"blocks": []}
        assert node.wait_for_leases(0).models[0].idle_seconds is not None


def free_bytes() -> int:
    if not IS_REAL:
        return 0
    free, _ = torch.cuda.mem_get_info(0)
    return int(free)
