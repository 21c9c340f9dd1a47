"""The image: built on a base that needs no registry, run as ``compose.yaml`` has it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support import ROOT
from tests.support.daemons import EXPORT_FILES
from tests.systemd.machine import LIBRARIES

from .containers import Containers, options_of, why_no_containers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hub import TestHub

PYTHON_OF_BASE = (3, 11)
"""Debian 12's."""

MOST_OVER_BASE = 120e6
"""Bytes."""

BASE, IMAGE = "localhost/base", "localhost/craftcache"

MODEL = "facebook/musicgen-small"
"""What the worker of ``compose.yaml`` loads."""

WHY_NOT = why_no_containers() or (
    f"the worker's torch is for Python {sys.version_info.major}.{sys.version_info.minor}"
    if sys.version_info[:2] != PYTHON_OF_BASE
    else None
)

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def containers(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """With the base and the image."""
    with Containers() as running:
        directory = tmp_path_factory.mktemp("image")
        import_base(running, directory / "base.tar")
        build_image(running, wheel, directory)
        yield running


def import_base(containers: Containers, archive: Path) -> None:
    """Make what ``docker pull debian`` would bring, and Python."""
    packages = "--include=python3,python3-venv"
    quickly = "--dpkgopt=force-unsafe-io"
    made = subprocess.run(
        ["mmdebstrap", "--variant=minbase", packages, quickly, "bookworm", archive],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"mmdebstrap: {made.stderr.strip().splitlines()[-1]}")
    containers.podman("import", archive, BASE)
    archive.unlink()


def build_image(containers: Containers, wheel: Path, directory: Path) -> None:
    """Build it as its first lines say, with the libraries at hand in place of an index."""
    context = directory / "context"
    shutil.copytree(ROOT / "packaging", context / "packaging")
    shutil.copy(ROOT / "constraints.txt", context)
    (context / "dist").mkdir()
    shutil.copy(wheel, context / "dist")
    libraries = directory / "libraries"
    version = ".".join(map(str, PYTHON_OF_BASE))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", libraries),
            *("--only-binary=:all:", f"--python-version={version}"),
            *("--constraint", ROOT / "constraints.txt", f"{wheel}[daemon]"),
        ],
        check=True,
    )
    arguments = ("BASE=" + BASE, "PIP_FIND_LINKS=/libraries", "PIP_NO_INDEX=1")
    containers.buildah(
        *("bud", "--isolation=chroot", "--format=docker", "--tag", IMAGE),
        *(f"--build-arg={argument}" for argument in arguments),
        *("--volume", f"{libraries}:/libraries:ro"),
        *("--file", context / "packaging" / "Containerfile", context),
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """What ``compose.yaml`` says of each."""
    composed = yaml.safe_load((ROOT / "packaging" / "compose.yaml").read_text())
    return dict(composed["services"])


@pytest.fixture
def daemon(
    containers: Containers, services: dict[str, Any], threaded_hub: TestHub
) -> Iterator[str]:
    """A daemon's container, ready; on the host's network, where the Hub is."""
    threaded_hub.repo(MODEL).commit(EXPORT_FILES)
    name = containers.podman(
        *("run", "--detach", "--network=host", *options_of(services["daemon"])),
        *(
            f"--env=HF_ENDPOINT={threaded_hub.endpoint}",
            "--env=CRAFTCACHE_INSECURE_HOSTS=127.0.0.1",
        ),
        IMAGE,
    )
    while containers.exit_code("healthcheck", "run", name) != 0:
        running = containers.podman("inspect", "--format={{.State.Running}}", name)
        assert running == "true", containers.podman("logs", name)
    yield name
    containers.podman("rm", "--force", "--time=0", name)
    containers.podman("volume", "rm", "--all", "--force")


def work(
    containers: Containers, service: dict[str, Any], *command: str, user: str | None = None
) -> str:
    """Run a worker's container to its end; torch is mounted, where an image of one's own has it."""
    changed = service if user is None else service | {"user": user}
    return containers.podman(
        *("run", "--rm", *options_of(changed)),
        *("--env=PYTHONPATH=/libraries", f"--volume={LIBRARIES}:/libraries:ro"),
        *(IMAGE, *(command or service["command"])),
    )


def test_it_is_not_much_larger_than_its_base(containers: Containers) -> None:
    added = containers.size(IMAGE) - containers.size(BASE)
    print(f"{added / 1e6:.0f} MB over its base")
    assert 0 < added <= MOST_OVER_BASE


def test_the_worker_loads_what_the_daemon_fetched_and_they_share_the_worker_folder_alone(
    containers: Containers, services: dict[str, Any], daemon: str
) -> None:
    volumes = {
        name: {item.partition(":")[0] for item in service["volumes"]}
        for name, service in services.items()
    }
    assert volumes["daemon"] & volumes["worker"] == {"worker"}
    containers.podman("exec", daemon, "craftcache", "warm", MODEL)
    assert work(containers, services["worker"]) == "daemon ['compression', 'lm']"
    assert work(containers, services["worker"], user="0:0") == "daemon ['compression', 'lm']"


def test_the_daemon_is_not_root_and_writes_to_its_volumes_alone(
    containers: Containers, daemon: str
) -> None:
    assert containers.podman("exec", daemon, "id", "--user") == "64500"
    written = "for d in / /opt/craftcache /usr /serve; do touch $d/x 2>/dev/null && echo $d; done"
    assert containers.podman("exec", daemon, "sh", "-c", written, check=False) == ""
    assert containers.podman("exec", daemon, "sh", "-c", "echo $$ >/tmp/x; cat /tmp/x") != ""


def test_kubernetes_asks_for_readiness_as_the_image_does(containers: Containers) -> None:
    manifests = yaml.safe_load_all((ROOT / "systemd/examples/kubernetes.yaml").read_text())
    pods = {manifest["kind"]: manifest["spec"]["template"]["spec"] for manifest in manifests}
    (daemon,) = pods["DaemonSet"]["containers"]
    asked = containers.podman("image", "inspect", "--format={{json .HealthCheck.Test}}", IMAGE)
    assert json.loads(asked) == ["CMD", *daemon["readinessProbe"]["exec"]["command"]]


def test_without_a_daemon_it_is_not_ready(containers: Containers) -> None:
    alone = ("run", "--rm", "--network=none", IMAGE, "python", "-m", "craftcached.health")
    assert containers.exit_code(*alone) == 1


def test_a_daemon_that_was_killed_starts_again_on_what_it_left(
    containers: Containers, services: dict[str, Any], daemon: str
) -> None:
    containers.podman("exec", daemon, "craftcache", "warm", MODEL)
    containers.podman("kill", "--signal=KILL", daemon)
    containers.podman("wait", daemon)
    assert containers.exit_code("healthcheck", "run", daemon) != 0
    containers.podman("start", daemon)
    while containers.exit_code("healthcheck", "run", daemon) != 0:
        assert containers.podman("inspect", "--format={{.State.Running}}", daemon) == "true"
    assert work(containers, services["worker"]) == "daemon ['compression', 'lm']"
