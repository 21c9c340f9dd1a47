"""The example mirror under a real systemd, set up by the very commands of docs/fleet.md."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.api import Api
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import hub_in_thread
from tests.support.nginx_mirror import EXAMPLES, needs_nginx
from tests.support.tools import needs

from .machine import Machine, why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.hub import TestHub

UNIT = "craftcache-mirror.service"

MODEL = "facebook/musicgen-small"
"""What the document warms."""

DOCUMENT = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
SECTION = DOCUMENT.partition("## A mirror and three nodes\n")[2].partition("\n## ")[0]
SET_UP, _ = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
[SETTINGS] = re.findall(r"^```toml\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)

pytestmark = [needs_nginx, needs("curl")]


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine that has a package's examples and no mirror yet."""
    if reason := why_not():
        pytest.skip(reason)
    with Machine() as booted:
        for path in EXAMPLES.iterdir():
            booted.write(f"/root/examples/{path.name}", path.read_text())
        booted.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        # nginx is installed, and nobody is there to edit.
        booted.write("/usr/local/bin/apt", "#!/bin/sh\n")
        booted.run("chmod", "755", "/usr/local/bin/apt")
        yield booted


@pytest.fixture
def hub(machine: Machine) -> Iterator[TestHub]:
    """A hub on the machine, in the place of the Hub and its hosts in the example."""
    with machine.network(), hub_in_thread() as running:
        running.repo(MODEL).commit(EXPORT_FILES)
        site = (EXAMPLES / "nginx-mirror-site.conf").read_text()
        site = site.replace("https://huggingface.co", running.endpoint)
        cdn = running.cdn.removeprefix("http://")
        site = site.replace('default "";\n    "~', f'"{cdn}" http://$cdn_host;\n    "~', 1)
        machine.write("/root/examples/nginx-mirror-site.conf", site)
        yield running


def set_up(machine: Machine) -> None:
    """Do what the document says, word by word."""
    machine.run(
        *("bash", "-euxo", "pipefail", "-c", f"cd /root/examples\n{wait_for_answers(SET_UP)}"),
        environment={"EDITOR": "true", "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    )


def wait_for_answers(commands: str) -> str:
    """``commands`` whose last one is patient: the machine of the tests may be busy."""
    return commands.replace("curl --fail", "curl --retry 100 --retry-connrefused --fail")


def answers(machine: Machine) -> bool:
    """Whether the mirror answers on the port that it is shipped with."""
    asked = machine.run("curl", "--silent", "--fail", "http://localhost:8080/.health", check=False)
    return asked.returncode == 0


def wait_until(machine: Machine, condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
    raise AssertionError(machine.journal(UNIT))


def wait_answers(machine: Machine) -> None:
    wait_until(machine, lambda: answers(machine))


def test_it_starts_and_is_there_again_after_it_was_killed(machine: Machine) -> None:
    set_up(machine)
    before = machine.property(UNIT, "MainPID")
    machine.systemctl("kill", "--signal=SIGKILL", UNIT)
    wait_until(machine, lambda: machine.property(UNIT, "MainPID") not in (before, "0"))
    wait_answers(machine)
    machine.systemctl("reload", UNIT)
    wait_answers(machine)
    resolver = machine.run("sh", "-c", "cat /run/craftcache-mirror/resolver.conf").stdout
    assert resolver == "resolver 127.0.0.1 valid=30s;\n"
    kept = machine.run("sh", "-c", "ls /var/cache/private/craftcache-mirror").stdout.split()
    assert {"files", "answers", "temp", "nginx.pid"} <= set(kept)
    machine.systemctl("stop", UNIT)
    assert machine.property(UNIT, "Result") == "success"


def test_the_document_sets_up_a_mirror_and_three_nodes(
    machine: Machine, hub: TestHub, base: Path
) -> None:
    set_up(machine)
    size = sum(path.stat().st_size for path in EXPORT_FILES.values())
    within = ("nsenter", f"--net=/proc/{machine.pid}/ns/net", "--")

    def mirrored(number: int) -> int:
        config = base / str(number) / "config" / "craftcache" / "config.toml"
        config.parent.mkdir(parents=True)
        config.write_text(SETTINGS.replace("mirror.example.com", "localhost"))
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "XDG_CONFIG_HOME": str(base / f"{number}/config"),
        }
        with (
            DaemonProcess(base / str(number), within=within, **environment) as node,
            Api(node.socket_dir) as api,
        ):
            assert api.warm(MODEL).status_code == 200
            metrics = api.request("GET", "http://craftcached/metrics").text
        [found] = re.findall(r"^craftcache_mirror_bytes_total{.*} (\S+)$", metrics, re.MULTILINE)
        return int(float(found))

    with ThreadPoolExecutor(3) as nodes:
        assert list(nodes.map(mirrored, range(3))) == [size] * 3
    assert hub.bytes_sent(origin="cdn") <= 1.02 * size


def test_the_pod_runs_as_it_is_confined(machine: Machine) -> None:
    """Its commands under its user, with its mounts, and a root that is only to be read."""
    documents = list(yaml.safe_load_all((EXAMPLES / "kubernetes-mirror.yaml").read_text()))
    manifests = {each["kind"]: each for each in documents}
    deployment, service = manifests["Deployment"]["spec"], manifests["Service"]["spec"]
    pod = deployment["template"]["spec"]
    (resolver,), (nginx,) = pod["initContainers"], pod["containers"]
    assert service["selector"] == deployment["template"]["metadata"]["labels"]
    assert service["ports"] == [{"port": each["containerPort"]} for each in nginx["ports"]]
    volumes = {each["name"]: each for each in pod["volumes"]}
    claim = volumes["files"]["persistentVolumeClaim"]["claimName"]
    assert claim == manifests["PersistentVolumeClaim"]["metadata"]["name"]
    machine.run(
        "mkdir", "-p", "/etc/craftcache", "/run/craftcache-mirror", "/var/cache/craftcache-mirror"
    )
    machine.run("sh", "-c", "cp /root/examples/nginx-mirror*.conf /etc/craftcache")
    user = pod["securityContext"]["runAsUser"]
    for mount in nginx["volumeMounts"]:
        assert mount["name"] in volumes
        if not mount.get("readOnly"):
            machine.run("chown", f"{user}:{pod['securityContext']['fsGroup']}", mount["mountPath"])

    def run(container: dict[str, Any], *options: str) -> None:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        writable = [each for each in container["volumeMounts"] if not each.get("readOnly")]
        machine.run(
            *("systemd-run", "--quiet", "--unit=mirror-pod", "--property=ProtectSystem=strict"),
            *("--property=PrivateTmp=yes", "--property=ReadOnlyPaths=/run"),
            *(f"--property=ReadWritePaths={each['mountPath']}" for each in writable),
            *(*options, "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"),
            *("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
            *container["command"],
        )

    run(resolver, "--wait")
    run(nginx)
    wait_answers(machine)
    probe = nginx["readinessProbe"]["httpGet"]
    assert (probe["port"], probe["path"]) == (8080, "/.health")
