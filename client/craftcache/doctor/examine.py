"""All checks, in the order in which their failures explain each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from craftcache.config import ConfigError, config_path, read_config

from . import daemon, hub, machine, service, storage
from .finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["examine"]


def examine(socket_dir: Path | None, cache_dir: Path | None) -> Iterator[Finding]:
    """Examine the installation that a client with these arguments would use.

    Args:
        socket_dir: As given on the command line; None to look it up.
        cache_dir: As given on the command line; None to look it up.
    """
    path = config_path()
    try:
        read_config(path)
    except ConfigError as error:
        yield Finding("configuration", "problem", error.message, error.hint or "")
        return  # nothing can be looked up in it
    yield Finding("configuration", "ok", str(path) if path else "no file, so the defaults")
    yield from service.check(socket_dir)
    yield from daemon.check_sockets(socket_dir)
    report = daemon.DaemonReport.ask(socket_dir)
    yield report.finding()
    yield from report.check(cache_dir)
    yield from storage.check(cache_dir)
    yield from machine.check(report.pid)
    yield hub.check(report.status.hub_endpoint if report.status else None)
