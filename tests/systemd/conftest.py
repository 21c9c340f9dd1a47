"""Nodes for the tests of the service: machines on which the README's own commands were run."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache import Client
from tests.support.api import Api
from tests.support.checkpoints import saved
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import hub_in_thread

from .machine import LIBRARIES, Machine, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hub import TestHub

ROOT = Path(__file__).parents[2]

SECTION = "The daemon, on each GPU node"
"""Of the README; its ``sh`` blocks are what a new node is set up with."""

MODEL = "facebook/musicgen-small"
"""What the README warms."""

FRESH = {
    "PATH": f"{sys.base_prefix}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PIP_FIND_LINKS": "/srv/wheels",
    "PIP_NO_INDEX": "1",
}
"""What the README's commands find: as ``python3`` the tests' own interpreter, for which the
packages are built, and this tree's wheel in place of the registry."""

MODEL_FILES = {
    "state_dict.bin": saved({"best_state": {"weight": torch.arange(64.0)}, "exported": True}),
    "compression_state_dict.bin": saved({"best_state": {"weight": torch.arange(32.0)}}),
}
"""An export that no image has seen."""

LARGE = saved({"best_state": {"weight": torch.arange(2**23, dtype=torch.int32)}})
"""One whose download can be interrupted: 32 MiB."""

SET_UP_SECONDS = 300.0

CACHE = "/var/cache/craftcache"
SOCKETS = "/run/craftcache"
SERVICE = "craftcached.service"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first of these tests also builds the wheel and sets up the machine for all others."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(SET_UP_SECONDS))


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that serves, and the Hub that it knows.

    Attributes:
        machine: Booted.
        hub: On the machine's loopback.
    """

    machine: Machine
    hub: TestHub

    def client(self) -> Client:
        """A client in this process, which the daemon sees as root's."""
        return Client(
            socket_dir=self.machine.path(SOCKETS),
            cache_dir=self.machine.path(CACHE),
            fallback="none",
        )

    def craftcache(self, *arguments: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run the command line as a user of the machine; whatever it exits with."""
        return self.as_user(user, "craftcache", *arguments)

    def as_user(self, user: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the machine, with that user's groups."""
        become = ("setpriv", f"--reuid={user}", "--init-groups", f"--regid={user}")
        return self.machine.run(*become, *command, check=False)

    def python(self, user: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in the installed environment as a user of the machine."""
        return self.as_user(user, "/opt/craftcache/bin/python", "-c", code, *arguments)

    def api(self) -> Api:
        """The HTTP interface, which sees this process as root."""
        return Api(self.machine.path(SOCKETS))

    def main_pid(self) -> int:
        """The daemon's process id in the machine; 0 where it does not run."""
        return int(self.machine.property(SERVICE, "MainPID"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from this tree."""
    _skip_without_machines()
    directory = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run(
        [sys.executable, "-m", "pip", *build, "--wheel-dir", directory, ROOT], check=True
    )
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="session")
def image(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's commands leave behind on a fresh machine."""
    image = tmp_path_factory.mktemp("image")
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine())
        stand_in_for_registry(machine, wheel)
        with machine.network():
            hub = stack.enter_context(hub_in_thread())
        use_hub(machine, hub)
        for block in readme_blocks():
            in_wheels = f"cd /srv/wheels\n{block}"
            machine.run("bash", "-euo", "pipefail", "-c", in_wheels, environment=FRESH)
        machine.systemctl("stop", SERVICE)
        machine.save(image)
    return image


@pytest.fixture
def node(image: Path) -> Iterator[Node]:
    """That machine, booted anew; its Hub has ``org/model`` beside what the README warms."""
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine(image))
        with machine.network():
            hub = stack.enter_context(hub_in_thread())
        use_hub(machine, hub)
        hub.repo("org/model").commit(MODEL_FILES)
        machine.run("useradd", "--system", "--user-group", "worker")
        yield Node(machine, hub)


def readme_blocks() -> list[str]:
    """The commands of the README's section about the service."""
    text = (ROOT / "README.md").read_text()
    section = re.search(rf"^### {SECTION}\n(.*?)^##", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"the README has no section {SECTION}"
    return re.findall(r"^```sh\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def stand_in_for_registry(machine: Machine, wheel: Path) -> None:
    """Let pip find this tree's wheel, and the packages that it depends on where the tests do.

    Everything but the project itself comes from the tests' own environment by a path file, which
    the new environment finds in place; pip sees those requirements fulfilled.
    """
    machine.path("/srv/wheels").mkdir()
    (machine.path("/srv/wheels") / wheel.name).write_bytes(wheel.read_bytes())
    packages = machine.path("/srv/packages")
    packages.mkdir()
    for entry in LIBRARIES.iterdir():
        if not entry.name.lower().startswith(("craftcache", "_craftcache", "pip")):
            (packages / entry.name).symlink_to(f"/srv/site-packages/{entry.name}")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    machine.write(
        f"/opt/craftcache/lib/{version}/site-packages/registry.pth",
        "import sys; sys.path.insert(0, '/srv/packages')\n",
    )


def use_hub(machine: Machine, hub: TestHub) -> None:
    """Let the machine's daemon find the test's Hub where it looks for huggingface.co."""
    hub.repo(MODEL).commit(EXPORT_FILES)
    settings = f"Environment=HF_ENDPOINT={hub.endpoint} CRAFTCACHE_INSECURE_HOSTS=127.0.0.1"
    machine.drop_in(SERVICE, f"[Service]\n{settings}\n", "hub.conf")


def _skip_without_machines() -> None:
    if reason := why_not():
        pytest.skip(reason)
