"""``craftcache doctor`` on installations in every state of repair."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support.daemons import DaemonProcess
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


def test_an_unreadable_configuration_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(base))
    (base / "craftcache").mkdir()
    (base / "craftcache" / "config.toml").write_text("not toml")
    examined = doctor(base, base)
    assert examined.returncode == 1
    assert f"FAIL  configuration: {base}/craftcache/config.toml is not TOML" in examined.stdout
