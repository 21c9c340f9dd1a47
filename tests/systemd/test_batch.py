"""What batch systems run before a job: the examples, as they are shipped."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from .conftest import MODEL

if TYPE_CHECKING:
    from .conftest import Node

EXAMPLES = Path(__file__).parents[2] / "systemd" / "examples"

Pod = dict[str, Any]


def prolog(tmp_path: Path, craftcache: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the prolog with a stand-in for the command line; it writes its arguments down."""
    command = tmp_path / "craftcache"
    command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/arguments\n{craftcache}\n')
    command.chmod(0o755)
    return subprocess.run(
        [EXAMPLES / "slurm-prolog.sh"],
        env={"PATH": "/usr/bin:/bin", "CRAFTCACHE": str(command)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "outcome", ["exit 0", "exit 1", "exit 75", "kill -KILL $$", "echo x; exit 9"]
)
def test_the_prolog_never_drains_the_node(tmp_path: Path, outcome: str) -> None:
    finished = prolog(tmp_path, outcome, SLURM_JOB_COMMENT="craftcache:org/a,org/b@rev")
    assert finished.returncode == 0
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments == ["warm", "--timeout", "600", "--", "org/a", "org/b@rev"]


def test_nor_does_it_where_nothing_is_installed(tmp_path: Path) -> None:
    environment = {"CRAFTCACHE": "/nothing", "SLURM_JOB_COMMENT": "craftcache:org/a"}
    assert prolog(tmp_path, "", **environment).returncode == 0


def test_nor_where_the_daemon_hangs(tmp_path: Path) -> None:
    environment = {"CRAFTCACHE_PROLOG_SECONDS": "-9", "SLURM_JOB_COMMENT": "craftcache:org/a"}
    assert prolog(tmp_path, "exec sleep 100", **environment).returncode == 0


def test_it_leaves_other_jobs_alone(tmp_path: Path) -> None:
    for comment in ({}, {"SLURM_JOB_COMMENT": "for the paper"}):
        assert prolog(tmp_path, "exit 1", **comment).returncode == 0
    assert not (tmp_path / "arguments").exists()


def test_a_comment_is_data(tmp_path: Path) -> None:
    comment = f"craftcache:$(touch {tmp_path}/ran),`touch {tmp_path}/ran`,--detach,* x"
    assert prolog(tmp_path, "exit 0", SLURM_JOB_COMMENT=comment).returncode == 0
    assert not (tmp_path / "ran").exists()
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[4:] == comment.removeprefix("craftcache:").split(",")


@pytest.fixture
def pods() -> dict[str, Pod]:
    documents = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    return {document["kind"]: document["spec"]["template"]["spec"] for document in documents}


def test_no_pod_limits_the_page_cache_or_sees_more_than_it_needs(pods: dict[str, Pod]) -> None:
    containers = [c for pod in pods.values() for c in pod["initContainers"] + pod["containers"]]
    assert not any("limits" in container.get("resources", {}) for container in containers)
    mounted = {volume["hostPath"]["path"] for volume in pods["Job"]["volumes"]}
    assert mounted == {"/run/craftcache/worker"}


def test_the_pods_work_as_they_are_confined(node: Node, pods: dict[str, Pod]) -> None:
    node.machine.systemctl("disable", "--now", "craftcache.socket")
    node.machine.run("rm", "-rf", "/run/craftcache", "/var/lib/craftcache")
    node.machine.run("mkdir", "/run/craftcache", "/var/lib/craftcache", "/serve", "/secrets")
    (directories,) = pods["DaemonSet"]["initContainers"]
    node.machine.run(*directories["command"])
    node.machine.run("chown", "-R", "64500:64500", "/var/cache/craftcache")
    (daemon,) = pods["DaemonSet"]["containers"]
    daemon["env"] += [
        {"name": "HF_ENDPOINT", "value": node.hub.endpoint},
        {"name": "CRAFTCACHE_INSECURE_HOSTS", "value": "127.0.0.1"},
    ]
    started = in_pod(node, "daemon", {}, daemon, "--property=Type=notify")
    assert started.returncode == 0, node.machine.journal("pod-daemon")
    job = pods["Job"]
    (wait,) = job["initContainers"]
    warmed = in_pod(node, "wait", job["securityContext"], wait, "--wait", "--pipe")
    assert warmed.returncode == 0, warmed.stderr
    assert f"{MODEL}: warm at " in warmed.stdout
    (work,) = job["containers"]
    done = in_pod(node, "work", job["securityContext"], work, "--wait", "--pipe")
    assert done.stdout == "daemon ['compression', 'lm']\n", done.stderr
    outside = in_pod(
        node,
        "outside",
        job["securityContext"] | {"supplementalGroups": []},
        work,
        "--wait",
        "--pipe",
    )
    assert "Permission denied" in outside.stderr


def in_pod(
    node: Node, name: str, pod: Pod, container: Pod, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a container's command under its user, groups, mounts and root, without a container."""
    security = pod | container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    groups = ",".join(map(str, security.get("supplementalGroups", [])))
    variables = [f"{item['name']}={item['value']}" for item in container.get("env", [])]
    return node.machine.run(
        *("systemd-run", "--quiet", f"--unit=pod-{name}", *options),
        *(f"--property={item}" for item in file_system(container["volumeMounts"])),
        *("setpriv", f"--reuid={security['runAsUser']}", f"--regid={security['runAsGroup']}"),
        f"--groups={groups}" if groups else "--clear-groups",
        *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
        *("env", "HOME=/nonexistent", "PATH=/opt/craftcache/bin:/usr/bin:/bin", *variables),
        *container["command"],
        check=False,
    )


def file_system(mounts: list[Pod]) -> list[str]:
    """Unit settings by which a process sees of the node's files what a container would."""
    writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
    ours = {"/var/cache/craftcache", "/var/lib/craftcache", "/run/craftcache/craftcache.sock"}
    seen = {path for path in ours if any(path.startswith(mount) for mount in writable)}
    serve = [mount for mount in mounts if mount["mountPath"] == "/serve"]
    return [
        *("ProtectSystem=strict", "ReadOnlyPaths=/run", "PrivateTmp=yes"),
        *(f"ReadWritePaths={path}" for path in writable),
        *(f"InaccessiblePaths=-{path}" for path in ours - seen | {"/etc/craftcache"}),
        *("BindReadOnlyPaths=/var/cache/craftcache:/serve" for _ in serve),
    ]
