"""The sockets, and what the daemon behind them says of itself."""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from craftcache.config import choose_cache_dir, choose_socket_dir
from craftcache.daemon.client import DaemonClient
from craftcache.daemon.transport import Call, DaemonUnavailable
from craftcache.errors import CraftcacheError
from craftcache.network.token import DAEMONS_PLACE
from craftcache.version import VERSION
from craftcache.wire import Status

from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from craftcache.wire import DaemonStatus

__all__ = ["check_sockets", "DaemonReport"]

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 10.0
"""Also for a daemon that systemd starts just now, on a node that is busy."""

START = "systemctl enable --now craftcache.socket, or run craftcached"


def check_sockets(socket_dir: Path | None) -> Iterator[Finding]:
    """Whether both sockets are there, and may be connected to by this user."""
    chosen = choose_socket_dir(socket_dir)
    if chosen is None:
        message = "this machine has no socket directory"
        yield Finding("worker socket", "problem", message, START)
        return
    worker = chosen / "worker" / "handles.sock"
    yield _check_socket("worker socket", worker, socket.SOCK_SEQPACKET, "problem")
    # Loading works without this one.
    admin = chosen / "craftcache.sock"
    yield _check_socket("administration socket", admin, socket.SOCK_STREAM, "warning")


def _check_socket(
    check: str, path: Path, kind: socket.SocketKind, refused: Literal["warning", "problem"]
) -> Finding:
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISSOCK(mode):
            return Finding(check, "problem", f"{path} is no socket", f"Remove it, then {START}")
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.settimeout(CONNECT_SECONDS)
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return Finding(check, "problem", f"{path} does not exist", START)
    except PermissionError:
        return Finding(
            check,
            refused,
            f"uid {os.geteuid()} may not connect to {path}",
            f"Join its group ({_group(path)}), or ask as root",
        )
    except OSError as error:
        remedy = "journalctl -u craftcached says why"
        if error.errno == errno.ECONNREFUSED:
            remedy = START
        return Finding(check, "problem", f"{path}: {error.strerror or error}", remedy)
    return Finding(check, "ok", f"{path}, mode {stat.S_IMODE(mode):04o}")


def _group(path: Path) -> str:
    try:
        return path.group()
    except (KeyError, OSError):
        return "unknown"


@dataclass(frozen=True, slots=True)
class DaemonReport:
    """What the daemon says of itself; or why it says nothing.

    Attributes:
        status: Status of the daemon; None where it does not answer.
        error: Why it does not answer; empty where it does.
    """

    status: DaemonStatus | None
    error: str = ""

    @classmethod
    def ask(cls, socket_dir: Path | None) -> DaemonReport:
        """Ask the daemon on its worker socket, as loads do."""
        daemon = DaemonClient(choose_socket_dir(socket_dir), lambda _: ANSWER_SECONDS)
        try:
            return cls(daemon.handle(Status(), Call()))
        except (DaemonUnavailable, CraftcacheError) as error:
            return cls(None, str(error))
        finally:
            daemon.close()

    @property
    def pid(self) -> int | None:
        """The daemon's process id."""
        return self.status.pid if self.status else None

    def finding(self) -> Finding:
        """Whether it answers."""
        if self.error:
            remedy = "journalctl -u craftcached says why"
            return Finding("daemon", "problem", self.error, remedy)
        return Finding("daemon", "ok", f"answers, pid {self.pid}")

    def check(self, cache_dir: Path | None) -> Iterator[Finding]:
        """Whether it is of this release, on this cache, and has what it needs."""
        if self.status is not None:
            yield _check_version(self.status.version)
            yield _check_cache_dir(choose_cache_dir(cache_dir), Path(self.status.cache_dir))
            yield _check_token(self.status)
            yield _check_verity(has_verity=self.status.has_verity)
            if not self.status.quarantined:  # else it is among the problems
                yield Finding("quarantine", "ok", "nothing turned out wrong")
            for problem in self.status.problems:
                yield Finding("what the daemon reports", "problem", problem)


def _check_version(theirs: str) -> Finding:
    if theirs == VERSION:
        return Finding("version", "ok", f"{VERSION} on both sides")
    return Finding(
        "version",
        "warning",
        f"the daemon is {theirs}, this client {VERSION}",
        "Restart the daemon after an upgrade; neighbouring releases understand each other",
    )


def _check_cache_dir(ours: Path, theirs: Path) -> Finding:
    if ours == theirs or (ours.exists() and theirs.exists() and ours.samefile(theirs)):
        return Finding("cache agreement", "ok", f"both use {ours}")
    return Finding(
        "cache agreement",
        "problem",
        f"the daemon uses {theirs}, this client {ours}",
        f"Set AUDIOCRAFT_CACHE_DIR={theirs}, or cache_dir in /etc/craftcache/config.toml",
    )


def _check_token(status: DaemonStatus) -> Finding:
    if status.has_token:
        return Finding("token", "ok", "the daemon has a Hub token")
    return Finding(
        "token",
        "ok",
        "the daemon has no Hub token: public repositories only",
        f"For gated and private ones put a token into {status.token_place or DAEMONS_PLACE}",
    )


def _check_verity(*, has_verity: bool) -> Finding:
    if has_verity:
        message = "the cache's file system has it: the kernel checks published files at each read"
        return Finding("fs-verity", "ok", message)
    return Finding(
        "fs-verity",
        "ok",
        "the cache's file system has none: rot is found by the scrub, within scrub_days",
        "tune2fs -O verity DEVICE, for ext4 on a kernel that has fs-verity; nothing needs it",
    )
