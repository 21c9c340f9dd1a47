"""What is loaded equals torch.load's, is the worker's own, and lives as long as it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache.errors import InvalidSource, NotFound
from tests.support.checkpoints import assert_same, loaded, saved
from tests.support.daemons import EXPORT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from craftcache import Client
    from tests.support.clients import Node
    from tests.support.daemons import DaemonProcess


def tangled() -> dict[str, Any]:
    """A checkpoint with much that is easy to lose."""
    base = torch.arange(24, dtype=torch.float32)
    tied = torch.nn.Parameter(torch.rand(4, 4))
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    state["b.transposed"] = base.view(4, 6).t()
    state["a.slice"] = base[3:9:2]
    state["tied.one"] = tied
    state["tied.two"] = tied
    state["half"] = torch.rand(3).to(torch.bfloat16)
    state["f8"] = torch.rand(4).to(torch.float8_e4m3fn)
    state["expanded"] = torch.ones(1).expand(5)
    state["empty"] = torch.empty(0, 3)
    state["scalar"] = torch.tensor(7)
    return {
        "best_state": state,
        "xp.cfg": "a: ${b}",
        "exported": True,
        "nested": [{1: (None, 2.5, float("inf"))}],
        "version": "1.4",
    }


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    with node.daemon.client() as client:
        yield client


def test_the_real_export_is_what_torch_loads_from_everywhere(client: Client, node: Node) -> None:
    for filename in ("state_dict.bin", "compression_state_dict.bin"):
        right = torch.load(EXPORT / filename, weights_only=True)
        for source in ("org/model", EXPORT):
            assert_same(client.load_state_dict(source, filename), right)


def test_a_tangled_checkpoint_is_what_torch_loads(client: Client, node: Node) -> None:
    content = saved(tangled())
    node.hub.repo("org/tangled").commit({"state_dict.bin": content})
    export = client.load("org/tangled", parts=("lm",))
    assert export.served_by == "daemon"
    assert_same(export.lm, loaded(content))
    assert export.files["lm"].size == len(content)
    assert export.files["lm"].verified_at is not None
    assert export.timings.total >= export.timings.load > 0


def test_tensors_are_the_workers_own_to_write_to(client: Client, node: Node) -> None:
    mine, other = client.load("org/model"), client.load("org/model")
    held = client.resolve("org/model", "state_dict.bin").read_bytes()
    for tensor in mine.lm["best_state"].values():
        tensor.zero_()
    right = torch.load(EXPORT / "state_dict.bin", weights_only=True)
    assert_same(other.lm, right)
    assert_same(client.load("org/model").lm, right)
    assert client.resolve("org/model", "state_dict.bin").read_bytes() == held


WRITER = """
import sys
from craftcache import Client
client = Client(socket_dir=sys.argv[1], cache_dir=sys.argv[2])
export = client.load("org/model")
for tensor in export.lm["best_state"].values():
    tensor.fill_(1)
print("written", flush=True)
sys.stdin.read()
"""


def test_what_one_worker_writes_no_other_sees(client: Client, node: Node) -> None:
    daemon = node.daemon
    mine = client.load("org/model")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(daemon.socket_dir), str(daemon.cache_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        right = torch.load(EXPORT / "state_dict.bin", weights_only=True)
        assert_same(mine.lm, right)
        assert_same(client.load("org/model").lm, right)


def test_tensors_outlive_their_model_and_the_daemon(daemon: DaemonProcess) -> None:
    with daemon.client() as client:
        export = client.load("org/model")
        blob = client.resolve("org/model", "state_dict.bin").resolve()
        removed = subprocess.run(
            [sys.executable, "-m", "craftcache.cli", "rm", "org/model"],
            env=os.environ | {"CRAFTCACHE_SOCKET_DIR": str(daemon.socket_dir)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert removed.returncode == 0, removed.stderr
    assert not blob.exists()
    daemon.kill()
    assert_same(export.lm, torch.load(EXPORT / "state_dict.bin", weights_only=True))


# --- Into a module ---


class Model(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.one = torch.nn.Linear(4, 3, dtype=dtype)
        self.two = torch.nn.Linear(3, 2, dtype=dtype)


@pytest.fixture(scope="module")
def trained(node: Node) -> Model:
    """The model of the repository ``org/into``."""
    model = Model(torch.float16)
    content = saved({"best_state": model.state_dict(), "other": {"one.weight": torch.ones(1)}})
    with suppress(ValueError):
        node.hub.repo("org/into").commit({"state_dict.bin": content})
    return model


def test_load_into_casts_to_the_modules_own_dtype(client: Client, trained: Model) -> None:
    model = Model(torch.float32)
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    client.load_into(model, "org/into")
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    for mine, theirs in zip(model.parameters(), trained.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert mine.requires_grad
        assert torch.equal(mine, theirs.float())


def test_load_into_says_what_does_not_fit(client: Client, trained: Model) -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*one.bias"):
        client.load_into(Model(), "org/into", key="other")
    with pytest.raises(RuntimeError, match="size mismatch"):
        client.load_into(torch.nn.ModuleDict({"one": torch.nn.Linear(2, 2)}), "org/into")
    with pytest.raises(InvalidSource, match="'ema'") as caught:
        client.load_into(Model(), "org/into", key="ema")
    assert caught.value.source == "org/into"
    with pytest.raises(NotFound):
        client.load_into(Model(), "org/into", part="compression")


def test_load_into_takes_a_file_that_is_a_state_dict_itself(
    client: Client, trained: Model, tmp_path: Path
) -> None:
    torch.save(trained.state_dict(), tmp_path / "flat.th")
    model = Model()
    client.load_into(model, tmp_path / "flat.th", key=None)
    assert torch.equal(model.two.bias, trained.two.bias.float())
    assert os.listdir(tmp_path) == ["flat.th"]
