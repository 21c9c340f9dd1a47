"""Containers for the tests: podman and buildah as root, with storage of their own.

The runtime, limits and isolation are those that also work inside a container or a small virtual
machine; nothing of the host's own images, volumes and networks is used or changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Containers", "options_of", "why_no_containers"]

TOOLS = ("buildah", "podman", "runc", "mmdebstrap")

ENGINE = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"

[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1000:2000"]
"""


def why_no_containers() -> str | None:
    """Why none can be run here; None where they can, as far as can be said cheaply."""
    if os.geteuid() != 0:
        return "containers of these tests need root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class Containers:
    """Images, volumes and containers that are gone when this context ends."""

    def __init__(self) -> None:
        self._life = contextlib.ExitStack()

    def __enter__(self) -> Self:
        temporary = tempfile.TemporaryDirectory(prefix="cc-containers-", ignore_cleanup_errors=True)
        self._directory = Path(self._life.enter_context(temporary))
        self._life.callback(self.podman, "rm", "--all", "--force", "--time=0")
        (self._directory / "containers.conf").write_text(ENGINE)
        return self

    def __exit__(self, *_: object) -> None:
        self._life.close()

    def podman(self, *arguments: str | Path, check: bool = True) -> str:
        """What podman says on stdout."""
        return self._run("podman", *arguments, check=check).stdout.strip()

    def buildah(self, *arguments: str | Path) -> str:
        """What buildah says on stdout."""
        return self._run("buildah", *arguments).stdout.strip()

    def exit_code(self, *arguments: str) -> int:
        """How a podman command ends."""
        return self._run("podman", *arguments, check=False).returncode

    def size(self, image: str) -> int:
        """Bytes of an image, all of its layers together."""
        return int(self.podman("image", "inspect", "--format={{.Size}}", image))

    def _run(
        self, tool: str, *arguments: str | Path, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        storage = [f"--{name}={self._directory / name}" for name in ("root", "runroot")]
        environment = os.environ | {"CONTAINERS_CONF": str(self._directory / "containers.conf")}
        done = subprocess.run(
            [tool, *storage, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{tool} {arguments}: {done.stdout}{done.stderr}"
        return done


def options_of(service: Mapping[str, Any]) -> Sequence[str]:
    """What podman is told of a service of ``compose.yaml``; a key that is not known here fails."""
    known = {
        *("build", "cap_drop", "command", "depends_on", "environment", "image", "network_mode"),
        *("read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "user", "volumes"),
    }
    assert set(service) <= known, f"not known: {set(service) - known}"
    options = [f"--user={service['user']}"]
    if service.get("read_only"):
        options += ["--read-only", "--read-only-tmpfs=false"]
    if "network_mode" in service:
        options.append(f"--network={service['network_mode']}")
    options += [f"--cap-drop={name}" for name in service.get("cap_drop", ())]
    options += [
        f"--security-opt={item.removesuffix(':true')}" for item in service.get("security_opt", ())
    ]
    options += [f"--tmpfs={item}" for item in service.get("tmpfs", ())]
    options += [f"--volume={item}" for item in service.get("volumes", ())]
    options += [f"--env={k}={v}" for k, v in service.get("environment", {}).items()]
    return options
