"""What systemd hears of the daemon, and what the daemon hears of systemd."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from craftcache.errors import NotFound, PolicyDenied
from craftcached.job_log import JOB_MESSAGE_ID
from tests.support.hub import Drip, Valve

from .conftest import LARGE, SERVICE, Node

WHO_AM_I = """
import os
from craftcache import Client
from craftcache.daemon.admin import AdminClient
client = Client()
export = client.load("org/model")
for process in AdminClient(client.socket_dir).processes():
    print(process.pid == os.getpid(), *(use.is_open for use in process.models))
"""
"""Says which processes the daemon knows, by the process that has a model."""

WEDGE = "import signal, time\nsignal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600))\n"
"""Lets a signal hang the daemon's event loop in the middle of whatever it does."""

CONFIG = "/etc/craftcache/config.toml"


def test_a_wedged_loop_is_ended_with_a_traceback_and_started_anew(node: Node) -> None:
    node.machine.write("/srv/wedge/sitecustomize.py", WEDGE)
    node.machine.drop_in(SERVICE, "[Service]\nWatchdogSec=2s\nEnvironment=PYTHONPATH=/srv/wedge\n")
    with node.client() as client:
        wedged = client.status().pid
    node.machine.systemctl("kill", "--kill-whom=main", "--signal=USR1", SERVICE)
    with node.client() as client:
        assert client.status().pid not in (wedged, 0)
    journal = node.machine.journal(SERVICE)
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal
    assert 'File "/srv/wedge/sitecustomize.py", line 2 in <lambda>' in journal


def test_a_busy_loop_is_left_alone(node: Node) -> None:
    node.machine.drop_in(SERVICE, "[Service]\nWatchdogSec=2s\n")
    node.hub.repo("org/large").commit({"state_dict.bin": LARGE})
    with node.client() as client:
        client.load_state_dict("org/large", "state_dict.bin")
    assert node.machine.property(SERVICE, "NRestarts") == "0"
    assert node.machine.property(SERVICE, "WatchdogUSec") == "2s"


def test_its_status_says_what_is_being_fetched(node: Node) -> None:
    node.hub.repo("org/large").commit({"state_dict.bin": LARGE})
    valve = Valve(len(LARGE) // 2)
    node.hub.inject(Drip(valve), path="*/state_dict.bin", origin="cdn", times=None)
    with ThreadPoolExecutor(1) as threads, node.client() as client:
        loading = threads.submit(client.load_state_dict, "org/large", "state_dict.bin")
        while not (status := node.machine.property(SERVICE, "StatusText")).startswith("Fetching"):
            assert not loading.done(), status
        assert status.startswith("Fetching org/large state_dict.bin, ")
        valve.open()
        loading.result()
    while node.machine.property(SERVICE, "StatusText") != "Idle":
        pass


def test_a_reload_puts_in_force_what_it_can_and_names_the_rest(node: Node) -> None:
    with node.client() as client:
        before = client.status().pid
        node.machine.write(CONFIG, 'allow = ["facebook/*"]\nmax_connections = 3\n')
        node.machine.systemctl("reload", SERVICE)
        node.machine.wait_journal(SERVICE, "reloaded: allow")
        node.machine.wait_journal(SERVICE, "only after a restart: max_connections")
        with pytest.raises(PolicyDenied):
            client.warm(["org/model"])
        node.machine.write(CONFIG, "")
        node.machine.systemctl("reload", SERVICE)
        node.machine.wait_journal(SERVICE, "Reloaded")
        client.warm(["org/model"])
        assert client.status().pid == before
    assert node.machine.property(SERVICE, "ActiveState") == "active"


def test_a_reload_of_a_wrong_setting_changes_nothing(node: Node) -> None:
    with node.client() as client:
        before = client.status().pid
        node.machine.write(CONFIG, "allow = 1\n")
        node.machine.systemctl("reload", SERVICE)
        line = node.machine.wait_journal(SERVICE, "not reloaded")
        assert f"allow in {CONFIG} must be a list of strings" in line
        client.warm(["org/model"])
        assert client.status().pid == before


def test_a_wrong_setting_at_the_start_is_said_and_mended_without_a_reset(node: Node) -> None:
    node.machine.write(CONFIG, "no_such_setting = 1\n")
    with ThreadPoolExecutor(1) as threads, node.client() as client:
        asked = threads.submit(client.status)
        line = node.machine.wait_journal(SERVICE, "cannot start")
        assert f"unknown setting no_such_setting in {CONFIG}" in line
        node.machine.write(CONFIG, "")
        assert asked.result().pid == node.main_pid()


def test_the_journal_knows_how_bad_a_line_is(node: Node) -> None:
    node.machine.write(CONFIG, "allow = 1\n")
    node.machine.run("/opt/craftcache/bin/python", "-c", "pass")
    node.machine.systemctl("start", "craftcache.socket")
    with ThreadPoolExecutor(1) as threads, node.client() as client:
        asked = threads.submit(client.status)
        node.machine.wait_journal(SERVICE, "cannot start")
        node.machine.write(CONFIG, "")
        asked.result()
    entries = map(json.loads, node.machine.journal(SERVICE, "--output=json").splitlines())
    priorities = {
        entry["MESSAGE"].split(":")[0].split(" ")[0]: entry["PRIORITY"] for entry in entries
    }
    assert priorities["cannot"] == "3"
    assert priorities["serving"] == "6"


def test_the_journal_has_the_values_of_a_job_and_of_a_refusal_as_fields(node: Node) -> None:
    with node.client() as client:
        client.warm(["org/model"])
        with pytest.raises(NotFound):
            client.warm(["org/none"])
    node.machine.wait_journal(SERVICE, "refused warm of org/none")
    entries = [
        json.loads(line)
        for line in node.machine.journal(SERVICE, "--output=json").splitlines()
        if "CRAFTCACHE_EVENT" in line
    ]
    told = {entry["CRAFTCACHE_EVENT"]: entry for entry in entries}
    assert told["warmed"]["CRAFTCACHE_SOURCE"] == "org/model"
    assert told["warmed"]["_TRANSPORT"] == "journal"
    assert told["warmed"]["PRIORITY"] == "6"
    assert int(told["warmed"]["CRAFTCACHE_BYTES_FETCHED"]) > 0
    assert told["warm_failed"]["CRAFTCACHE_CODE"] == "NotFound"
    assert told["refused"]["CRAFTCACHE_UID"] == "0"
    assert told["warmed"]["MESSAGE_ID"] == JOB_MESSAGE_ID


def test_a_confined_daemon_knows_who_has_what(node: Node) -> None:
    done = node.python("root", WHO_AM_I)
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr
    shown = node.craftcache("ps")
    assert (shown.returncode, len(shown.stdout.splitlines())) == (0, 1)  # it has ended by now
