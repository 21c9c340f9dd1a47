"""A fresh machine serves once the README's commands were run on it."""

from __future__ import annotations

import json

from .conftest import MODEL, SERVICE, Node

UNITS = (
    "craftcache.socket",
    SERVICE,
    "craftcache-warm@.service",
    "craftcached-gpu@.service",
    "/opt/craftcache/share/craftcache/systemd/examples/craftcache-warm@.timer",
)


def test_after_a_boot_it_serves_what_was_warmed(node: Node) -> None:
    assert node.machine.property("craftcache.socket", "ActiveState") == "active"
    assert node.main_pid() == 0
    listed = json.loads(node.craftcache("ls", "--json", user="worker").stdout)
    assert [model["source"] for model in listed["models"]] == [MODEL]
    assert node.hub.requests == []


def test_the_daemon_runs_confined_and_unprivileged(node: Node) -> None:
    with node.client() as client:
        pid = client.status().pid
    status = node.machine.run("cat", f"/proc/{pid}/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    uid = node.machine.run("id", "--user", "craftcache").stdout.strip()
    assert fields["Uid"].split() == [uid] * 4
    assert int(fields["CapBnd"], 16) == int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_the_doctor_finds_nothing_wrong(node: Node) -> None:
    examined = node.craftcache("doctor", "--json")
    findings = json.loads(examined.stdout)["findings"]
    states = {finding["check"]: finding["state"] for finding in findings}
    states.pop("disk space")  # Disks vary.
    # The Hub that counts is the one that the daemon asks; this process alone would ask another.
    assert set(states.values()) == {"ok"}, findings
    assert examined.returncode == 0


def test_the_doctor_says_what_is_wrong_and_what_to_do(node: Node) -> None:
    node.machine.write("/etc/craftcache/config.toml", "no_such_setting = 1\n")
    node.machine.systemctl("stop", "craftcache.socket", SERVICE)
    examined = node.craftcache("doctor", user="worker")
    assert examined.returncode == 1
    assert "FAIL  worker socket" in examined.stdout
    assert "systemctl enable --now craftcache.socket" in examined.stdout


def test_systemd_finds_nothing_to_complain_about(node: Node) -> None:
    verified = node.machine.run(
        "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *UNITS
    )
    assert (verified.stdout, verified.stderr) == ("", "")


def test_a_stopped_service_leaves_its_sockets(node: Node) -> None:
    with node.client() as client:
        client.status()
    node.machine.systemctl("stop", SERVICE)
    assert node.machine.path("/run/craftcache/craftcache.sock").is_socket()
    assert node.machine.path("/run/craftcache/worker/handles.sock").is_socket()
