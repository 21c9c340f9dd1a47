"""What the service's unit asks of the machine: an interpreter to run, a group that may connect."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.config import DEFAULT_USER, choose_socket_dir, config_path, read_config

from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["check", "check_interpreter", "check_admin_group"]

UNIT_DIRECTORIES = (
    Path("/etc/systemd/system"),
    Path("/run/systemd/system"),
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
)
"""Where systemd finds units, the first that has one wins."""

UNIT = "craftcached.service"

MAX_LINKS = 40
"""Followed at most on the way to an interpreter, as the kernel does."""


def check(socket_dir: Path | None) -> Iterator[Finding]:
    """Look at the unit, where there is one, and at who may connect to the administration socket."""
    unit = next((d / UNIT for d in UNIT_DIRECTORIES if os.path.isfile(d / UNIT)), None)
    if unit is not None and (finding := check_interpreter(unit)):
        yield finding
    config = read_config(config_path())
    group = os.environ.get("CRAFTCACHE_ADMIN_GROUP") or config.get("admin_group")
    chosen = choose_socket_dir(socket_dir)
    if (
        group
        and chosen is not None
        and (finding := check_admin_group(str(group), chosen / "craftcache.sock"))
    ):
        yield finding


def check_interpreter(unit: Path) -> Finding | None:
    """Whether the unit's user may execute its program; None where that cannot be told."""
    command, user = _read_unit(unit)
    identity = _identity(user)
    if command is None or identity is None:
        return None
    for path in (command, *_interpreters(command)):
        if obstacle := _obstacle(path, *identity):
            return Finding(
                "interpreter",
                "problem",
                f"the service's user {user} may not execute {path}: it is stopped at {obstacle}, "
                "and systemd says 203/EXEC",
                "Make the virtual environment with an interpreter that all users may execute, such "
                "as /usr/bin/python3, not with one below a home directory",
            )
    return Finding("interpreter", "ok", f"{user} may execute {command}")


def check_admin_group(group: str, path: Path) -> Finding | None:
    """Whether members of the setting admin_group may connect at all; None where none is there."""
    try:
        status = path.stat()
    except OSError:
        return None
    mode = stat.S_IMODE(status.st_mode)
    shown = f"{path} (mode {mode:04o}, group {_group_name(status.st_gid)})"
    try:
        entry = grp.getgrnam(group)
    except KeyError:
        return Finding(
            "administrators",
            "problem",
            f"admin_group {group} does not exist",
            f"groupadd {group}, or correct admin_group",
        )
    if mode & stat.S_IWOTH or (status.st_gid == entry.gr_gid and mode & stat.S_IWGRP):
        return Finding("administrators", "ok", f"members of {group} may connect to {shown}")
    return Finding(
        "administrators",
        "problem",
        f"admin_group is {group}, and its members may not connect to {shown}",
        "With systemd, see drop-ins/admin-group.conf for SocketGroup=; without it, restart the "
        "daemon, which gives the socket to that group if its user is a member",
    )


def _read_unit(unit: Path) -> tuple[Path | None, str]:
    """The program that a unit runs, and as whom."""
    command, user = None, DEFAULT_USER
    drop_ins = sorted(
        path for d in UNIT_DIRECTORIES for path in (d / f"{unit.name}.d").glob("*.conf")
    )
    for path in (unit, *drop_ins):
        try:
            lines = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition("=")
            if name.strip() == "ExecStart" and value.strip():
                words = shlex.split(value.strip().lstrip("-@:+!"), comments=False)
                command = Path(words[0]) if words else None
            elif name.strip() == "User" and value.strip():
                user = value.strip()
    return command, user


def _identity(user: str) -> tuple[int, Sequence[int]] | None:
    """A user's uid and groups; None where there is no such user."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        return None
    return entry.pw_uid, os.getgrouplist(entry.pw_name, entry.pw_gid)


def _interpreters(command: Path) -> list[Path]:
    """What the first line of a script names."""
    try:
        with command.open("rb") as file:
            first = file.readline(512)
    except OSError:
        return []
    if not first.startswith(b"#!"):
        return []
    words = os.fsdecode(first[2:]).split()
    return [Path(words[0])] if words else []


def _obstacle(path: Path, uid: int, groups: Sequence[int]) -> Path | None:
    """What on the way to ``path``, links followed, a user may not pass or execute."""
    for _ in range(MAX_LINKS):
        for step in (*reversed(path.parents), path):
            try:
                status = step.lstat()
            except OSError:
                return step
            if stat.S_ISLNK(status.st_mode):
                rest = path.relative_to(step)
                path = Path(os.path.normpath(step.parent / os.readlink(step))) / rest
                break
            if not _may_execute(status, uid, groups):
                return step
        else:
            return None
    return path


def _may_execute(status: os.stat_result, uid: int, groups: Sequence[int]) -> bool:
    """By the mode alone, which an access control list may widen."""
    if uid == 0:
        return bool(status.st_mode & 0o111)
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid in groups:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
