"""Watches over HTTP and on the command line, of a real daemon."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from craftcache.daemon.admin import AdminClient
from craftcache.errors import InvalidSource, NotFound, PolicyDenied
from craftcache.watch_rule import WatchRule
from craftcached.settings_reading import load_settings
from tests.support.daemons import DaemonProcess
from tests.support.watching import SETTLE, write_pair

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def admin(daemon: DaemonProcess) -> AdminClient:
    return AdminClient(daemon.socket_dir)


def craftcache(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line against the daemon."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "craftcache.cli", "--socket-dir", str(daemon.socket_dir)),
            *("--cache-dir", str(daemon.cache_dir), *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ,
    )


@contextmanager
def http(daemon: DaemonProcess) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(daemon.socket_dir / "craftcache.sock"))
    with httpx.Client(transport=transport, base_url="http://node/v1", timeout=30) as client:
        yield client


def test_a_watch_is_put_shown_and_deleted(
    daemon: DaemonProcess, admin: AdminClient, base: Path
) -> None:
    rule = WatchRule(name="other", directory=str(base / "other"), settle=SETTLE, keep=5)
    admin.put_watch(rule)
    admin.put_watch(rule)
    write_pair(base / "other", 1)
    generation = next(daemon.client().follow("other"))
    with http(daemon) as client:
        shown = client.get("/watches/other").json()
    assert shown["served"]["generation"] == 1
    assert shown["served"]["sha256"] == generation.sha256
    assert (shown["directory"], shown["keep"], shown["held"]) == (rule.directory, 5, False)
    assert {watch.rule.name for watch in admin.watches().watches} == {"run", "other"}
    assert admin.remove_watch("other") > 0
    with pytest.raises(NotFound):
        admin.remove_watch("other")
    with pytest.raises(PolicyDenied, match="configuration file"):
        admin.remove_watch("run")


def test_a_list_of_watches_says_in_each_row_why_it_is_so(
    daemon: DaemonProcess, admin: AdminClient, base: Path
) -> None:
    assert craftcache(daemon, "watch", "add", str(base / "late"), "--name", "late").returncode == 0
    listed = craftcache(daemon, "watch", "ls")
    assert (listed.returncode, listed.stderr) == (0, "")
    header, *rows = listed.stdout.splitlines()
    assert header.split() == ["NAME", "STATE", "SERVED", "GENERATIONS", "DIRECTORY", "WHY"]
    [late] = [row for row in rows if row.startswith("late ")]
    assert late.split(maxsplit=5)[:5] == ["late", "absent", "-", "-", str(base / "late")]
    assert late.split(maxsplit=5)[5].startswith("the directory is not there yet")
    [seen] = [watch for watch in admin.watches().watches if watch.rule.name == "late"]
    assert seen.detail in late


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"directory": "relative"},
        {"directory": "/x", "settle": "10"},
        {"directory": "/x", "a": 1},
    ],
)
def test_a_malformed_watch_is_a_problem_with_a_hint(
    daemon: DaemonProcess, body: dict[str, Any]
) -> None:
    with http(daemon) as client:
        answer = client.put("/watches/other", json=body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "InvalidSource"
    assert answer.headers["Content-Type"].startswith("application/problem+json")


def test_a_model_that_is_watched_is_not_removed_as_a_model(
    daemon: DaemonProcess, admin: AdminClient, export: Path
) -> None:
    write_pair(export, 1)
    next(daemon.client().follow("run"))
    with pytest.raises(PolicyDenied, match="it is watched"):
        admin.remove("watch:run")
    assert admin.evict(10**12).removed == ()


def test_events_tell_what_becomes_of_a_watch_and_end_with_the_daemon(
    daemon: DaemonProcess, export: Path
) -> None:
    events: list[dict[str, Any]] = []
    ready = threading.Event()

    def listen() -> None:
        with http(daemon) as client, client.stream("GET", "/events") as response:
            ready.set()
            events.extend(map(json.loads, response.iter_lines()))

    listener = threading.Thread(target=listen)
    listener.start()
    ready.wait()
    write_pair(export, 1)
    next(daemon.client().follow("run"))
    assert daemon.terminate() == 0
    listener.join()
    states = [event["state"] for event in events if event["event"] == "watch"]
    assert [state for state in states if state != "partial"][:2] == ["settling", "verifying"]
    assert {"name": "run", "generation": 1}.items() <= next(
        event for event in events if event["event"] == "generation"
    ).items()


def test_the_command_line_adds_lists_rolls_back_and_removes(
    daemon: DaemonProcess, base: Path
) -> None:
    directory = base / "mine" / "export"
    added = craftcache(daemon, "watch", "add", str(directory), "--settle", str(SETTLE))
    assert added.stdout == f"{directory}: watched as watch:mine\n"
    following = daemon.client().follow("mine")
    for number in (1, 2):
        write_pair(directory, number)
        next(following)
    listed = json.loads(craftcache(daemon, "watch", "ls", "--json").stdout)
    (mine,) = [watch for watch in listed["watches"] if watch["name"] == "mine"]
    assert mine["generations"] == [1, 2]
    rolled = craftcache(daemon, "watch", "rollback", "mine")
    assert rolled.stdout == "watch:mine: serves 1 (held)\n"
    resumed = craftcache(daemon, "watch", "resume", "mine")
    assert resumed.stdout == "watch:mine: serves 2\n"
    assert "mine  " in craftcache(daemon, "watch", "ls").stdout
    assert craftcache(daemon, "watch", "rm", "mine").returncode == 0
    missing = craftcache(daemon, "watch", "rm", "mine")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "no such watch" in missing.stderr


def test_follow_runs_a_command_for_each_generation(daemon: DaemonProcess, export: Path) -> None:
    write_pair(export, 1)
    done = craftcache(
        daemon, "follow", "run", "--once", "--", "sh", "-c", "echo got $CRAFTCACHE_SOURCE; exit 3"
    )
    assert done.returncode == 3
    line, got = done.stdout.splitlines()
    assert line.startswith("watch:run@1 lm=")
    assert got == "got watch:run@1"
    write_pair(export, 2)
    found = craftcache(daemon, "follow", "run", "--once", "--after", "1", "--json")
    assert found.stdout.count("\n") == 1  # a stream has one object a line
    assert json.loads(found.stdout)["number"] == 2


def test_settings_name_directories_or_tables(base: Path) -> None:
    config = base / "config.toml"
    config.write_text(
        'watches = ["/runs/a/export", {directory = "/b", settle = 3, name = "bee"}]\n'
    )
    settings = load_settings({}, environment={}, config_file=config)
    assert [(rule.name, rule.settle) for rule in settings.watches] == [("a", 10.0), ("bee", 3.0)]
    listed = {"CRAFTCACHE_WATCHES": "/runs/*/export, /x/exports"}
    settings = load_settings({}, environment=listed, config_file=config)
    assert [rule.name for rule in settings.watches] == ["runs", "x"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("watches = [3]", "must be a list of paths or tables"),
        ('watches = ["export"]', "no absolute path"),
        ('watches = [{directory = "/a", setle = 3}]', "unknown key 'setle'"),
        ('watches = ["/a", "/b/a"]', "two of the name a"),
    ],
)
def test_a_wrong_setting_is_named(base: Path, text: str, words: str) -> None:
    from craftcache.config import ConfigError

    config = base / "config.toml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_settings({}, environment={}, config_file=config)


def test_names_are_those_of_runs() -> None:
    def name(directory: str) -> str:
        return WatchRule.parse({"directory": directory}).name

    assert name("/runs/my run/export") == "my_run"
    assert name("/runs/a/") == "a"
    assert name("/") == "watch"
    with pytest.raises(InvalidSource):
        WatchRule.parse({"directory": "/a", "name": "x/y"})


SET_GATE = """
import os, sys, httpx
transport = httpx.HTTPTransport(uds=sys.argv[1])
with httpx.Client(transport=transport) as client:
    os.setgroups([])
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[2]))
    for gate in (None, "true"):
        body = {"directory": "/tmp/nowhere/export", "gate": gate}
        answer = client.put("http://node/v1/watches/other", json=body)
        print(answer.status_code, answer.json().get("code"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_administrator_may_watch_and_only_the_daemons_user_may_set_a_gate(base: Path) -> None:
    """A gate is a command that the daemon's user runs."""
    base.chmod(0o755)
    nobody, group = pwd.getpwnam("nobody").pw_uid, grp.getgrnam("nogroup")
    with DaemonProcess(base, "--admin-group", group.gr_name) as daemon:
        done = subprocess.run(
            [
                *(sys.executable, "-c", SET_GATE, str(daemon.socket_dir / "craftcache.sock")),
                *(str(nobody), str(group.gr_gid)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout == "200 None\n403 PolicyDenied\n", done.stderr
