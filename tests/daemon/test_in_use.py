"""Whether a file is in use, for everything that keeps a file's bytes alive."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from craftcached.in_use import is_in_use


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file on which leases work."""
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    path.chmod(0o444)
    if is_in_use(path) is None:
        pytest.skip("leases do not work on this file system")
    return path


def test_a_file_that_nobody_has_open_is_not_in_use(path: Path) -> None:
    assert is_in_use(path) is False
    assert is_in_use(path) is False  # and asking leaves nothing behind


def test_an_open_file_is_in_use_under_each_of_its_names(path: Path, tmp_path: Path) -> None:
    os.link(path, tmp_path / "other")
    with path.open("rb"):
        assert is_in_use(path) is True
        assert is_in_use(tmp_path / "other") is True
    assert is_in_use(path) is False


def test_a_map_keeps_a_file_in_use_after_its_descriptor_is_closed(path: Path) -> None:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
    with mapped:
        assert is_in_use(path) is True
    assert is_in_use(path) is False


def test_a_descriptor_in_flight_keeps_a_file_in_use(path: Path) -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sender, receiver:
        with path.open("rb") as file:
            socket.send_fds(sender, [b"x"], [file.fileno()])
        assert is_in_use(path) is True
    assert is_in_use(path) is False


def test_another_process_keeps_a_file_in_use(path: Path) -> None:
    hold = "import sys; f = open(sys.argv[1], 'rb'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_in_use(path) is True
        process.communicate()
    assert is_in_use(path) is False


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        is_in_use(tmp_path / "missing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_of_another_user_s_file_it_is_not_known(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.chmod(0o755)
    monkeypatch.chdir(path.parent)  # whose own parents are private to root
    os.seteuid(65534)
    try:
        assert is_in_use(Path(path.name)) is None
    finally:
        os.seteuid(0)
