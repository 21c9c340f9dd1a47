"""A GPU's service, the daemon behind it and workers: processes of their own on real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache import Client
from craftcache.errors import PolicyDenied
from craftcache.sources import parse
from craftcache.wire import DescribeGpu, Load, Resolve
from tests.daemon.gpu.conftest import worker_of
from tests.support.command import run
from tests.support.daemons import EXPORT
from tests.support.gpu.memfd import UUID
from tests.support.gpu.processes import GpuServiceProcess
from tests.support.sockets import RawWorker
from tests.support.users import open_to_all

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.wire import GpuReport
    from tests.support.api import Api
    from tests.support.daemons import DaemonProcess

NOBODY = 65534

BOTH = {"lm": "state_dict.bin", "compression": "compression_state_dict.bin"}


def report_of(daemon: DaemonProcess) -> GpuReport:
    with daemon.client() as client:
        [report] = client.status().gpus
    return report


def wait_for_leases(daemon: DaemonProcess, leases: int) -> None:
    """Wait until each model has so many leases."""
    while [model.leases for model in report_of(daemon).models] != [leases, leases]:
        pass


def sample(name: str) -> str:
    """The beginning of a line of the scrape."""
    return f'craftcache_gpu_{name}{{gpu="{UUID}"}}'


@contextlib.contextmanager
def asking(daemon: DaemonProcess) -> Any:
    with RawWorker(daemon.socket_dir / "gpu" / f"{UUID}.sock") as raw:
        raw.greet()
        yield raw


def test_workers_see_what_torch_load_returns_in_one_copy(
    warm: DaemonProcess, service: GpuServiceProcess, expected: dict[str, str]
) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker_of(warm)) for _ in range(8)]
        loads = [worker.load() for worker in workers]
        assert all(load["shared"] == ["lm", "compression"] for load in loads)
        assert all(worker.ask("fingerprint") == expected for worker in workers)
        assert len({tuple(load["blocks"]) for load in loads}) == 1
        assert len(loads[0]["blocks"]) == 2
        report = report_of(warm)
        assert [model.leases for model in report.models] == [8, 8]
        sizes = sum((EXPORT / name).stat().st_size for name in BOTH.values())
        assert sizes <= report.used_bytes < sizes + 2 * 4096


def test_a_worker_of_another_user_shares_it_too(
    base: Path, warm: DaemonProcess, service: GpuServiceProcess, expected: dict[str, str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    open_to_all(base)
    with worker_of(warm) as first, worker_of(warm, uid=NOBODY) as other:
        blocks = first.load()["blocks"]
        load = other.load()
        assert load["uid"] == NOBODY
        assert load["blocks"] == blocks
        assert other.ask("fingerprint") == expected


def test_what_writes_to_it_ends_itself_alone(
    warm: DaemonProcess, service: GpuServiceProcess, expected: dict[str, str]
) -> None:
    with worker_of(warm) as first, worker_of(warm) as other:
        first.load()
        other.load()
        assert other.ask("write") == {"ended": -signal.SIGSEGV}
        wait_for_leases(warm, 1)
        assert first.ask("fingerprint") == expected


def test_a_worker_that_dies_or_lets_go_gives_back_its_own_lease(
    warm: DaemonProcess, service: GpuServiceProcess, expected: dict[str, str]
) -> None:
    with worker_of(warm) as first, worker_of(warm) as other:
        blocks = first.load()["blocks"]
        other.load()
        other.kill()
        wait_for_leases(warm, 1)
        assert first.ask("fingerprint") == expected
        assert first.ask("drop") == {"blocks": []}
        wait_for_leases(warm, 0)
        assert first.load()["blocks"] == blocks, "it had stayed for the next one"


def test_maps_outlive_the_service_and_the_next_one_makes_it_anew(
    warm: DaemonProcess, service: GpuServiceProcess, expected: dict[str, str]
) -> None:
    with worker_of(warm, fallback="origin") as first:
        blocks = first.load()["blocks"]
        service.kill()
        assert first.ask("fingerprint") == expected
        with worker_of(warm, fallback="origin") as other:
            load = other.load()
            assert load["shared"] == []
            [warning] = load["warnings"]
            assert "a private copy is made" in warning
            assert "Start craftcached-gpu@" in warning
            assert other.load()["warnings"] == [], "it is said once"
            assert other.ask("fingerprint") == expected
            service.start()
            load = other.load()
            assert load["shared"] == ["lm", "compression"]
            assert not set(load["blocks"]) & set(blocks)
            assert other.ask("fingerprint") == expected
        assert first.ask("fingerprint") == expected


def test_without_a_fallback_it_is_shared_or_an_error(warm: DaemonProcess) -> None:
    with worker_of(warm, fallback="none") as worker:
        load = worker.load()
        assert load["error"] == "Unavailable"
        assert "cannot be shared" in load["message"]
        assert "Start craftcached-gpu@" in load["message"]


def test_a_driver_that_maps_nothing_is_a_reason_for_a_copy(
    warm: DaemonProcess, service: GpuServiceProcess, expected: dict[str, str]
) -> None:
    with worker_of(warm, fallback="origin", obstacle="the driver is too old") as worker:
        load = worker.load()
        assert load["shared"] == []
        assert "the driver is too old" in load["warnings"][0]
        assert worker.ask("fingerprint") == expected
        wait_for_leases(warm, 0)


def test_the_service_that_ends_lets_workers_keep_what_they_have(
    warm: DaemonProcess, service: GpuServiceProcess, expected: dict[str, str]
) -> None:
    with worker_of(warm) as worker:
        worker.load()
        assert service.terminate() == 0
        assert not (warm.socket_dir / "gpu" / f"{UUID}.sock").exists()
        assert worker.ask("fingerprint") == expected
    with warm.client() as client:
        assert client.status().gpus == ()


def test_a_budget_that_is_too_small_is_said_with_its_numbers(warm: DaemonProcess) -> None:
    with GpuServiceProcess(warm.socket_dir, max_bytes=4096), worker_of(warm) as worker:
        load = worker.load()
        assert load["error"] == "DeviceMemoryFull"
        assert "gpu_max_bytes leaves 4.1 kB (4096 bytes)" in load["message"]
        assert load["needed_bytes"] > 4096


def test_an_absent_daemon_makes_workers_go_without_the_service(
    warm: DaemonProcess, service: GpuServiceProcess, expected: dict[str, str]
) -> None:
    warm.terminate()
    with worker_of(warm, fallback="origin") as worker:
        load = worker.load()
        assert load["shared"] == []
        assert load["served_by"] == "cache"
        assert worker.ask("fingerprint") == expected


def test_errors_of_the_daemon_are_the_answer(
    warm: DaemonProcess, service: GpuServiceProcess
) -> None:
    with worker_of(warm) as worker:
        assert worker.load("org/none")["error"] == "NotFound"


def test_what_cannot_be_shared_is_sent_as_a_file(
    base: Path, warm: DaemonProcess, service: GpuServiceProcess, threaded_hub: Any
) -> None:
    old = base / "old.bin"
    torch.save({"w": torch.ones(3)}, old, _use_new_zipfile_serialization=False)
    threaded_hub.repo("org/old").commit({"state_dict.bin": old})
    with worker_of(warm, fallback="origin") as worker:
        load = worker.load("org/old", parts=["lm"])
        assert load["shared"] == []
        assert load["blocks"] == []
        assert "state_dict.bin: its storages do not lie" in load["warnings"][0]
    with worker_of(warm, fallback="none") as worker:
        load = worker.load("org/old", parts=["lm"])
        assert load["error"] == "Unavailable"


def test_the_daemon_shows_what_is_there(
    warm: DaemonProcess, service: GpuServiceProcess, api: Api
) -> None:
    with worker_of(warm) as worker:
        worker.load()
        status = run("--socket-dir", str(warm.socket_dir), "status")
        assert f"{UUID} (emulated)" in status.out
        assert "1 lease" in status.out
        told = run("--socket-dir", str(warm.socket_dir), "status", "--json").json["gpus"]
        assert [each["uuid"] for each in told] == [UUID]
        assert {model["filename"] for model in told[0]["models"]} == set(BOTH.values())
        scrape = api.request("GET", "http://craftcached/metrics").text
        for name, value in (
            ("models", 2.0),
            ("leases", 2.0),
            ("used_bytes", float(told[0]["used_bytes"])),
            ("quota_bytes", float(told[0]["max_bytes"])),
        ):
            [line] = [line for line in scrape.splitlines() if line.startswith(sample(name))]
            assert float(line.rpartition(" ")[2]) == value


def test_verify_compares_what_is_there_with_what_was_verified(
    warm: DaemonProcess, service: GpuServiceProcess, expected: dict[str, str]
) -> None:
    place = ("--socket-dir", str(warm.socket_dir))
    with worker_of(warm) as worker, asking(warm) as raw:
        blocks = worker.load()["blocks"]
        right = run(*place, "verify", "--gpu")
        assert (right.code, right.out.count("right")) == (0, 2)
        answer = raw.ask(Load(parse("org/model")))
        os.pwrite(raw.descriptors[0], b"x", 100)  # what only root's like can do to a GPU
        answer.close()
        wrong = run(*place, "verify", "--gpu", "--json")
        assert wrong.code == 1
        outcomes = {each["filename"]: each["outcome"] for each in wrong.json["results"]}
        assert outcomes == {"state_dict.bin": "wrong", "compression_state_dict.bin": "right"}
        assert "state_dict.bin is wrong in the memory of GPU" in service.log
        load = worker.load()
        assert len(set(load["blocks"]) & set(blocks)) == 1
        assert worker.ask("fingerprint") == expected
        assert run(*place, "verify", "--gpu").code == 0


def test_verify_without_a_service_says_so(warm: DaemonProcess) -> None:
    done = run("--socket-dir", str(warm.socket_dir), "verify", "--gpu", "--json")
    assert done.code == 1
    assert done.problem["code"] == "NotFound"
    assert "no service of a GPU" in done.problem["detail"]


def test_verify_of_a_service_that_is_gone_may_be_tried_again(
    warm: DaemonProcess, service: GpuServiceProcess
) -> None:
    service.kill()
    done = run("--socket-dir", str(warm.socket_dir), "verify", "--gpu", "--json")
    assert (done.code, done.problem["code"]) == (75, "Unavailable")


def test_a_service_that_hangs_is_left_out_of_the_status(
    warm: DaemonProcess, service: GpuServiceProcess
) -> None:
    assert report_of(warm).uuid == UUID
    service.pause()
    with warm.client() as client:
        assert client.status().gpus == ()


def test_a_device_that_fails_ends_the_service_and_workers_copy(
    warm: DaemonProcess, expected: dict[str, str]
) -> None:
    service = GpuServiceProcess(warm.socket_dir, is_lost=True)
    with service, worker_of(warm, fallback="origin") as worker:
        load = worker.load()
        assert load["shared"] == []
        assert "CUDA_ERROR_ILLEGAL_ADDRESS" in load["warnings"][0]
        assert worker.ask("fingerprint") == expected
        assert service.wait() == 1


def test_each_socket_refuses_what_is_for_the_other(
    warm: DaemonProcess, service: GpuServiceProcess
) -> None:
    with asking(warm) as raw:
        problem = raw.ask(Resolve(parse("org/model"), "state_dict.bin"))
        assert problem.error.code == "InvalidSource"
        assert not problem.own_fault
    with RawWorker(warm.socket_dir / "worker" / "handles.sock") as raw:
        raw.greet()
        assert raw.ask(DescribeGpu()).error.code == "InvalidSource"


def test_only_administrators_have_it_compared(
    base: Path, warm: DaemonProcess, service: GpuServiceProcess
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    open_to_all(base)
    program = """
import json, os, sys
from tests.support.sockets import RawWorker
from craftcache.wire import VerifyGpu
os.setuid(65534)
with RawWorker(sys.argv[1]) as raw:
    raw.greet()
    print(json.dumps(raw.ask(VerifyGpu()).error.code))
"""
    path = str(warm.socket_dir / "gpu" / f"{UUID}.sock")
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == PolicyDenied.__name__


def test_a_local_file_is_not_shared(
    tmp_path: Path, warm: DaemonProcess, service: GpuServiceProcess
) -> None:
    with worker_of(warm, fallback="origin") as worker:
        load = worker.load(str(EXPORT))
        assert load["served_by"] == "local"
        assert load["shared"] == []
        assert "local file" in load["warnings"][0]


def test_share_on_the_cpu_is_what_load_does_already(
    warm: DaemonProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(socket_dir=warm.socket_dir, fallback="none") as client:
        export = client.load("org/model", share=True)
    assert export.shared == ()
    assert export.served_by == "daemon"
    assert not caplog.records
    told = run("--socket-dir", str(warm.socket_dir), "load", "--share", "--json", "org/model").json
    assert told["shared"] == []
