"""The unit of the example mirror, under a real systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.nginx_mirror import EXAMPLES, needs_nginx

from .machine import Machine, why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNIT = "craftcache-mirror.service"

pytestmark = needs_nginx


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine on which the mirror is set up as docs/fleet.md says."""
    if reason := why_not():
        pytest.skip(reason)
    with Machine() as booted:
        for path in EXAMPLES.glob("nginx-mirror*.conf"):
            booted.write(f"/etc/craftcache/{path.name}", path.read_text())
        booted.write(f"/etc/systemd/system/{UNIT}", (EXAMPLES / UNIT).read_text())
        booted.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        booted.systemctl("daemon-reload")
        yield booted


def answers(machine: Machine) -> bool:
    """Whether the mirror answers on the port that it is shipped with."""
    fetch = "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080); "
    ask = "c.request('GET', '/.health'); print(c.getresponse().status)"
    told = machine.run("/usr/bin/python3", "-c", fetch + ask, check=False)
    return told.stdout.strip() == "204"


def wait_until(machine: Machine, condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
    raise AssertionError(machine.journal(UNIT))


def wait_answers(machine: Machine) -> None:
    wait_until(machine, lambda: answers(machine))


def test_it_starts_and_is_there_again_after_it_was_killed(machine: Machine) -> None:
    machine.systemctl("enable", "--now", UNIT)
    wait_answers(machine)
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
