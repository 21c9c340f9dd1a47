"""Tokens for the servers of URLs: a file for each host, which nobody but the daemon can read.

A file's name is a host, or ``host:port`` where that is not the scheme's own; its content is a
token, sent as a bearer token to that very host and port, and to no other. A file that its group or
others can read or write is not used, and the log says so: what it holds is no secret any more.
systemd's credentials ``token-<host>`` are used as well. ``.netrc`` is never read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.network.locations import origin_of
from craftcache.network.token import authorization, read_token

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HostTokens"]

log = logging.getLogger("craftcached")

CREDENTIAL_PREFIX = "token-"
"""Beginning of the names of systemd's credentials that are tokens for hosts."""

_PORTS = {"https": 443, "http": 80}


class HostTokens:
    """The tokens by host; read anew for each use, so that one can be replaced at any time.

    The mutable state: which files were warned about already.

    Args:
        directory: Directory of the files; None for none.
        environment: The process's environment, which names the directory of systemd's credentials.
    """

    def __init__(self, directory: Path | None, environment: Mapping[str, str] = os.environ) -> None:
        credentials = environment.get("CREDENTIALS_DIRECTORY")
        self._directory = directory
        self._credentials = Path(credentials) if credentials else None
        self._warned: set[Path] = set()

    async def headers(self, url: str, *, source: str) -> dict[str, str]:
        """HTTP headers with the credentials for the host that ``url`` names.

        Raises:
            AccessDenied: No header can carry the token; its text is not shown.
        """
        if self._directory is None and self._credentials is None:
            return {}
        token = await asyncio.to_thread(self._token, url)
        return authorization(token, source=source)

    def _token(self, url: str) -> str | None:
        scheme, host, port = origin_of(url)
        names = [f"{host}:{port}"] + ([host] if port == _PORTS.get(scheme) else [])
        for name in names:
            if "/" in name or name.startswith("."):
                continue
            if self._credentials is not None:
                path = self._credentials / f"{CREDENTIAL_PREFIX}{name}"
                if path.is_file():  # systemd sees to who can read it
                    return read_token(path)
            if self._directory is not None and self._is_usable(self._directory / name):
                return read_token(self._directory / name)
        return None

    def _is_usable(self, path: Path) -> bool:
        """Whether a file is there that only the daemon's user, or root, can read and write."""
        try:
            status = os.lstat(path)
        except OSError:
            return False
        problem = None
        if not stat.S_ISREG(status.st_mode):
            problem = "is no regular file"
        elif status.st_uid not in (0, os.geteuid()):
            problem = f"belongs to uid {status.st_uid}"
        elif status.st_mode & 0o077:
            problem = f"has mode {stat.S_IMODE(status.st_mode):04o}, and others may read it"
        if problem is not None and path not in self._warned:
            self._warned.add(path)
            log.warning("the token file %s %s, so it is not used; chmod 600 it", path, problem)
        return problem is None
