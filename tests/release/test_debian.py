"""The Debian package: installed, used, upgraded, removed and purged, under a systemd of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from tests.support.checkpoints import saved
from tests.support.daemons import EXPORT_FILES
from tests.support.hub import Drip, Valve, hub_in_thread
from tests.support.tools import needs
from tests.systemd.machine import Machine, why_not

from .conftest import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.hub import Request, TestHub

PYTHON_OF_DEBIAN = (3, 11)
"""Which the package's libraries are for."""

SOCKET, SERVICE = "craftcache.socket", "craftcached.service"
CACHE, STATE, SETTINGS = "/var/cache/craftcache", "/var/lib/craftcache", "/etc/craftcache"
MODEL = "org/model"

LOAD_UNTIL_TOLD = """
import os, sys
from craftcache import Client
with Client(fallback="none") as client:
    count = 0
    while True:
        assert client.load("org/model").served_by == "daemon"
        count += 1
        if count == 1:
            print("loading", flush=True)
        if os.path.exists("/tmp/enough"):
            break
print(count)
"""

LOAD_ONCE = """
from craftcache import Client
export = Client(fallback="none").load("org/model")
print(export.served_by, sorted(export.files))
"""


def _why_not() -> str | None:
    if missing := [t for t in ("dpkg-buildpackage", "dh", "apt-get") if shutil.which(t) is None]:
        return f"not installed: {', '.join(missing)}"
    probe = [
        "/usr/bin/python3",
        "-c",
        "import ensurepip, sys; print(*sys.version_info[:2])",
    ]
    try:
        found = subprocess.run(probe, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no /usr/bin/python3"
    if found.stdout.split() != [str(part) for part in PYTHON_OF_DEBIAN]:
        return "/usr/bin/python3 is not Debian 12's, or python3-venv is not installed"
    return None


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))

needs_machine = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="session")
def package(dist: Path) -> Path:
    """The package, built from the wheel."""
    build(dist, "debian")
    (built,) = dist.glob("craftcache_*.deb")
    return built


@pytest.fixture(scope="session")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as the release after it: another version, in the package and in what it says."""
    directory = tmp_path_factory.mktemp("newer")
    tree = directory / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: .*", "Version: 9.0.0-1", control.read_text()))
    (version,) = tree.glob("usr/lib/craftcache/lib/python3*/site-packages/craftcache/version.py")
    version.write_text('"""Newer."""\n\n__all__ = ["VERSION"]\n\nVERSION = "9.0.0"\n')
    for stale in (version.parent / "__pycache__").glob("version.*"):
        stale.unlink()
    built = directory / "craftcache_9.0.0-1.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, built], check=True)
    return built


@dataclass(frozen=True, slots=True)
class Node:
    """A machine on which the package is installed, and the Hub that it knows."""

    machine: Machine
    hub: TestHub

    def apt(self, *arguments: str) -> str:
        """What apt says; it is asked nothing and asks nothing."""
        apt = ("apt-get", "--yes", "--quiet", *arguments)
        return self.machine.run(*apt, environment={"DEBIAN_FRONTEND": "noninteractive"}).stdout

    def install(self, package: Path) -> str:
        """``apt install ./craftcache_*.deb``."""
        shutil.copy(package, self.machine.path("/root"))
        return self.apt("install", f"/root/{package.name}")

    def craftcache(self, *arguments: str) -> str:
        """What the command line says to root."""
        return self.machine.run("craftcache", *arguments).stdout

    def worker(self, code: str) -> Sequence[str]:
        """The command that runs a worker as nobody, with the wheel beside torch."""
        return (
            *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
            *("env", "PYTHONPATH=/srv/worker:/srv/site-packages"),
            *(f"{sys.base_prefix}/bin/python3", "-c", code),
        )


@pytest.fixture(scope="session")
def image(package: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What installing the package leaves on a fresh machine, and what apt said."""
    image = tmp_path_factory.mktemp("image")
    with Machine() as machine, zipfile.ZipFile(wheel) as archive:
        # What keeps a container's builder from starting services.
        machine.path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)
        # The index of all man pages would be made anew by each apt.
        machine.path("/var/lib/man-db/auto-update").unlink(missing_ok=True)
        machine.write("/etc/dpkg/dpkg.cfg.d/tests", "force-unsafe-io\n")
        archive.extractall(machine.path("/srv/worker"))
        with machine.network(), hub_in_thread() as hub:
            said = Node(machine, hub).install(package)
        assert machine.property(SOCKET, "ActiveState") == "active"
        assert machine.property(SERVICE, "ActiveState") == "inactive"
        machine.systemctl("stop", SOCKET)
        machine.save(image)
    return image, said


@pytest.fixture
def node(image: tuple[Path, str]) -> Iterator[Node]:
    """That machine, booted anew; its Hub has ``org/model``."""
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine(image[0]))
        with machine.network():
            hub = stack.enter_context(hub_in_thread())
        hub.repo(MODEL).commit(EXPORT_FILES)
        where = f"HF_ENDPOINT={hub.endpoint} CRAFTCACHE_INSECURE_HOSTS=127.0.0.1"
        machine.drop_in(SERVICE, f"[Service]\nEnvironment={where}\n", "hub.conf")
        yield Node(machine, hub)


@needs("lintian")
def test_lintian_finds_no_error_that_is_not_explained(package: Path) -> None:
    command = ("lintian", "--allow-root", "--display-info", "--fail-on=error", package)
    examined = subprocess.run(command, capture_output=True, text=True, check=False)
    assert examined.returncode == 0, examined.stdout
    assert "unused-override" not in examined.stdout


def test_no_torch_and_nothing_of_the_builder_is_in_it(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    library = tmp_path / "usr/lib/craftcache"
    (packages,) = library.glob("lib/python3*/site-packages")
    assert not (packages / "torch").exists()
    link = library / "bin" / os.readlink(library / "bin" / "python3")
    assert os.path.normpath(link) == str(tmp_path / "usr/bin/python3")
    assert {entry.name for entry in (library / "bin").iterdir()} == {
        *("python", "python3", "python3.11", "craftcache", "craftcached", "craftcached-gpu")
    }
    for script in (library / "bin").glob("craftcache*"):
        assert script.read_text().startswith("#!/usr/lib/craftcache/bin/python3\n")
    found = subprocess.run(
        ["grep", "--recursive", "--files-with-matches", "craftcache-debian-", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""


@needs_machine
def test_after_a_boot_the_first_request_starts_the_daemon_and_nobody_loads(node: Node) -> None:
    assert node.machine.property(SOCKET, "UnitFileState") == "enabled"
    assert node.machine.property(SOCKET, "ActiveState") == "active"
    assert node.machine.property(SERVICE, "ActiveState") == "inactive"
    node.craftcache("warm", MODEL)
    loaded = node.machine.run(*node.worker(LOAD_ONCE))
    assert loaded.stdout == "daemon ['compression', 'lm']\n"


@needs_machine
def test_the_units_are_where_systemd_looks_and_it_finds_nothing_wrong(node: Node) -> None:
    units = (SOCKET, SERVICE, "craftcache-warm@.service", "craftcached-gpu@.service")
    verified = node.machine.run(
        "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units
    )
    assert (verified.stdout, verified.stderr) == ("", "")
    assert node.machine.property(SERVICE, "FragmentPath").startswith(("/lib/", "/usr/lib/"))
    escape = ("systemd-escape", "--template=craftcache-warm@.service", MODEL)
    node.machine.systemctl("start", node.machine.run(*escape).stdout.strip())
    assert MODEL in node.craftcache("ls")


@needs_machine
def test_an_upgrade_under_load_loses_no_request_and_keeps_the_settings(
    node: Node, newer: Path
) -> None:
    node.craftcache("warm", MODEL)
    before = node.machine.property(SERVICE, "MainPID")
    node.machine.path(f"{SETTINGS}/config.toml").write_text('allow = ["org/*"]\n')
    large = saved({"weight": torch.arange(2**20)})
    node.hub.repo("org/large").commit({"state_dict.bin": large})
    valve = Valve()
    node.hub.inject(Drip(valve), path="*/state_dict.bin", origin="cdn", times=None)
    warm = ("craftcache", "warm", "--file", "state_dict.bin", "org/large")
    loading = node.machine.start(*node.worker(LOAD_UNTIL_TOLD))
    assert loading.stdout is not None
    assert loading.stdout.readline() == "loading\n"
    with ThreadPoolExecutor(1) as threads:
        warming = threads.submit(node.machine.run, *warm, check=False)
        node.hub.wait_for_request_blocking(_is_of_the_cdn)
        node.install(newer)
        assert "9.0.0" in node.craftcache("--version")
        node.machine.wait_journal(SERVICE, "stopped: received SIGTERM")
        valve.open()
        warmed = warming.result()
    assert warmed.returncode == 0, warmed.stderr
    node.machine.write("/tmp/enough", "")
    said, _ = loading.communicate()
    assert loading.returncode == 0, said
    assert int(said) > 1
    assert node.machine.property(SERVICE, "MainPID") not in ("0", before)
    assert node.machine.property(SOCKET, "NRefused") == "0"
    assert node.machine.path(f"{SETTINGS}/config.toml").read_text() == 'allow = ["org/*"]\n'


def _is_of_the_cdn(request: Request) -> bool:
    return request.origin == "cdn"


@needs_machine
def test_removing_keeps_the_cache_and_purging_says_what_it_left(node: Node) -> None:
    node.craftcache("warm", MODEL)
    node.apt("remove", "craftcache")
    assert node.machine.property(SOCKET, "LoadState") == "not-found"
    assert node.machine.run("pgrep", "craftcached", check=False).stdout == ""
    assert not node.machine.path("/usr/lib/craftcache").exists()
    assert not node.machine.path("/run/craftcache/worker/handles.sock").exists()
    assert node.machine.path(f"{CACHE}/models--org--model").is_dir()
    assert node.machine.path(STATE).is_dir()
    assert node.machine.path(f"{SETTINGS}/config.toml").is_file()
    said = node.apt("purge", "craftcache")
    assert f"left are the models in {CACHE}" in said
    assert "rm -r /var/cache/craftcache" in said
    assert node.machine.path(f"{CACHE}/models--org--model").is_dir()
    for gone in (STATE, SETTINGS, "/run/craftcache"):
        assert not node.machine.path(gone).exists()
    owner = node.machine.run("stat", "--format=%U", f"{CACHE}/models--org--model").stdout
    assert owner == "craftcache\n"


@needs_machine
def test_what_was_left_is_served_once_it_is_installed_again(node: Node, package: Path) -> None:
    node.craftcache("warm", MODEL)
    node.apt("purge", "craftcache")
    asked = len(node.hub.requests)
    node.install(package)
    loaded = node.machine.run(*node.worker(LOAD_ONCE))
    assert loaded.stdout == "daemon ['compression', 'lm']\n"
    assert len(node.hub.requests) == asked
