"""``craftcache doctor`` on installations in every state of repair."""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from craftcache.doctor.service import check_admin_group, check_interpreter
from tests.support.daemons import DaemonProcess

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub


def doctor(socket_dir: Path, cache_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = ("--socket-dir", str(socket_dir), "--cache-dir", str(cache_dir))
    return subprocess.run(
        [sys.executable, "-m", "craftcache.cli", *places, "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def states(finished: subprocess.CompletedProcess[str]) -> dict[str, str]:
    findings = json.loads(finished.stdout)["findings"]
    assert all(finding["remedy"] for finding in findings if finding["state"] != "ok")
    return {finding["check"]: finding["state"] for finding in findings}


def test_what_works_is_ok(
    daemon: DaemonProcess, threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    examined = doctor(daemon.socket_dir, daemon.cache_dir, "--json")
    found = states(examined)
    assert examined.returncode == 0
    for check in ("worker socket", "administration socket", "daemon", "version", "token", "hub"):
        assert found[check] == "ok"
    assert (found["cache agreement"], found["cache directory"]) == ("ok", "ok")


def test_a_client_of_another_cache_is_told_so(daemon: DaemonProcess, base: Path) -> None:
    (base / "other").mkdir()
    examined = doctor(daemon.socket_dir, base / "other", "--json")
    assert examined.returncode == 1
    assert states(examined)["cache agreement"] == "problem"


def test_a_daemon_that_is_gone_is_told_from_one_that_never_was(
    daemon: DaemonProcess, base: Path
) -> None:
    daemon.kill()
    gone = doctor(daemon.socket_dir, daemon.cache_dir)
    never = doctor(base / "nothing", daemon.cache_dir)
    assert (gone.returncode, never.returncode) == (1, 1)
    assert "FAIL  worker socket" in gone.stdout
    assert "Connection refused" in gone.stdout
    assert f"{base}/nothing/worker/handles.sock does not exist" in never.stdout


def test_a_hung_daemon_is_found_out(daemon: DaemonProcess) -> None:
    daemon.pause()
    examined = doctor(daemon.socket_dir, daemon.cache_dir, "--json")
    assert examined.returncode == 1
    assert states(examined)["daemon"] == "problem"


def test_a_cache_that_others_may_write_to_is_warned_of(daemon: DaemonProcess) -> None:
    daemon.cache_dir.chmod(0o777)
    found = states(doctor(daemon.socket_dir, daemon.cache_dir, "--json"))
    assert found["cache directory"] == "warning"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("file", "cache is a file, not a directory"),
        ("link", "cache is a link to {base}/nowhere, which does not exist"),
        ("below a file", "cache cannot exist: {base}/place is a file"),
        ("nothing", "cache does not exist"),
    ],
)
def test_what_is_in_the_place_of_the_cache_directory_is_said(
    base: Path, what: str, message: str
) -> None:
    place = base / "place"
    cache = place / "cache"
    if what == "below a file":
        place.touch()
    else:
        place.mkdir()
    if what == "file":
        cache.touch()
    elif what == "link":
        cache.symlink_to(base / "nowhere")
    examined = doctor(base / "run", cache)
    assert examined.returncode == 1
    assert f"FAIL  cache directory: {place}/{message.format(base=base)}\n" in examined.stdout


def test_the_hub_that_is_asked_is_the_daemons(
    daemon: DaemonProcess, threaded_hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    shown = doctor(daemon.socket_dir, daemon.cache_dir).stdout
    assert f"ok    hub: {threaded_hub.endpoint}, which the daemon asks, answers" in shown
    daemon.kill()
    shown = doctor(daemon.socket_dir, daemon.cache_dir).stdout
    assert "WARN  hub: http://127.0.0.1:9 cannot be reached" in shown


def test_what_turned_out_wrong_is_told_once(daemon: DaemonProcess) -> None:
    assert (
        "ok    quarantine: nothing turned out wrong"
        in doctor(daemon.socket_dir, daemon.cache_dir).stdout
    )
    quarantine = daemon.cache_dir / ".craftcache" / "quarantine"
    quarantine.mkdir(exist_ok=True)
    (quarantine / "wrong.bin").write_bytes(b"wrong")
    examined = doctor(daemon.socket_dir, daemon.cache_dir)
    assert examined.stdout.count("turned out wrong") == 1
    assert "1 file of 5 bytes turned out wrong, set aside in " in examined.stdout
    assert "craftcache quarantine ls" in examined.stdout


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """Of a daemon in an environment whose interpreter is in somebody's home."""
    for directory in ("home/python/bin", "opt/bin"):
        (tmp_path / directory).mkdir(parents=True)
    python = tmp_path / "home/python/bin/python3"
    python.write_bytes(b"\x7fELF")
    python.chmod(0o755)
    (tmp_path / "opt/bin/python").symlink_to("python3")
    (tmp_path / "opt/bin/python3").symlink_to(python)
    program = tmp_path / "opt/bin/craftcached"
    program.write_text(f"#!{tmp_path}/opt/bin/python -I\nimport craftcached\n")
    program.chmod(0o755)
    unit = tmp_path / "craftcached.service"
    unit.write_text(f"[Service]\nExecStart={program} --log-level info\nUser=nobody\n")
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o011)
    return unit


def test_an_interpreter_that_the_service_may_execute_is_ok(unit: Path) -> None:
    finding = check_interpreter(unit)
    assert finding is not None
    assert finding.state == "ok"


@pytest.mark.parametrize(
    ("at", "mode"), [("home", 0o700), ("home/python", 0o750), ("home/python/bin/python3", 0o744)]
)
def test_an_interpreter_that_the_service_may_not_execute_is_named(
    unit: Path, at: str, mode: int
) -> None:
    """systemd says 203/EXEC of it, and no more."""
    obstacle = unit.parent / at
    obstacle.chmod(mode)
    finding = check_interpreter(unit)
    assert finding is not None
    assert finding.state == "problem"
    assert f"opt/bin/python: it is stopped at {obstacle}," in finding.message
    assert "/usr/bin/python3" in finding.remedy


def test_a_program_that_is_not_there_is_named(unit: Path) -> None:
    (unit.parent / "opt/bin/craftcached").unlink()
    finding = check_interpreter(unit)
    assert finding is not None
    assert finding.state == "problem"


def test_administrators_who_may_not_connect_are_told_so(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    other = next(entry.gr_name for entry in grp.getgrall() if entry.gr_gid != os.getgid())
    with DaemonProcess(base) as daemon:
        path = daemon.socket_dir / "craftcache.sock"
        for name, state in ((group, "ok"), (other, "problem"), ("no-such-group", "problem")):
            finding = check_admin_group(name, path)
            assert finding is not None
            assert finding.state == state
            assert name in finding.message
        monkeypatch.setenv("CRAFTCACHE_ADMIN_GROUP", other)
        examined = doctor(daemon.socket_dir, daemon.cache_dir, "--json")
        assert states(examined)["administrators"] == "problem"
        path.chmod(0o666)
        examined = doctor(daemon.socket_dir, daemon.cache_dir, "--json")
        assert states(examined)["administrators"] == "ok"


def test_an_unreadable_configuration_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(base))
    (base / "craftcache").mkdir()
    (base / "craftcache" / "config.toml").write_text("not toml")
    examined = doctor(base, base)
    assert examined.returncode == 1
    assert f"FAIL  configuration: {base}/craftcache/config.toml is not TOML" in examined.stdout
