"""The few settings that daemon and client must read alike: where the cache and the sockets are.

Both look them up in the same order: an argument, ``CRAFTCACHE_*`` in the environment, the
configuration file, then what the machine offers. Everything else in the file is the daemon's.

A file that cannot be read, or says nonsense, stops no worker: it goes on with environment and
defaults, and says so once. The daemon reads it strictly, with ``read_config``, and does not start.
"""

from __future__ import annotations

import functools
import os
import pwd
import sys
from pathlib import Path
from typing import Any

from craftcache.logger import log

from .errors import CraftcacheError
from .file_maps import MAP_CHOICES, MapChoice

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "ConfigError",
    "config_path",
    "read_config",
    "choose_cache_dir",
    "choose_socket_dir",
    "choose_insecure_hosts",
    "choose_map",
    "default_hub_cache",
    "daemon_uid",
    "in_home",
    "NO_HOME",
]


SYSTEM_CONFIG = Path("/etc/craftcache/config.toml")
SYSTEM_CACHE_DIR = Path("/var/cache/craftcache")
SYSTEM_SOCKET_DIR = Path("/run/craftcache")
DEFAULT_USER = "craftcache"

NO_HOME = Path("/dev/null/no-home-directory")
"""What stands for directories below a home where this user has none: there is nothing, and nobody
can make anything. ``~`` itself would be a directory of that name wherever the process happens to
be."""


class ConfigError(CraftcacheError):
    """A setting is unknown, ill-typed or unreadable; the message names it and where it stands."""


def config_path() -> Path | None:
    """The configuration file in force: the user's own where there is one, else the system's."""
    home = os.environ.get("XDG_CONFIG_HOME") or in_home("~/.config")
    for path in (Path(home, "craftcache", "config.toml"), SYSTEM_CONFIG):
        if os.path.isfile(path):  # False too where it cannot be looked at
            return path
    return None


def read_config(path: Path | None) -> dict[str, Any]:
    """The tables and keys of the configuration file; empty where there is none.

    Raises:
        ConfigError: The file cannot be read or is not TOML.
    """
    if path is None:
        return {}
    try:
        parsed: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="Check that the file is readable"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="Correct the file") from error
    return parsed


def choose_cache_dir(
    argument: str | os.PathLike[str] | None = None, *, config_file: Path | None = None
) -> Path:
    """The shared cache directory, absolute; it need not exist.

    Order: argument, ``CRAFTCACHE_CACHE_DIR``, ``AUDIOCRAFT_CACHE_DIR``, ``cache_dir`` in the
    configuration file, ``$CACHE_DIRECTORY`` (systemd), ``/var/cache/craftcache`` where it exists,
    huggingface_hub's own default.
    """
    chosen = (
        argument
        or os.environ.get("CRAFTCACHE_CACHE_DIR")
        or os.environ.get("AUDIOCRAFT_CACHE_DIR")
        or _setting("cache_dir", config_file)
        or os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]  # systemd may list several
        or (SYSTEM_CACHE_DIR if os.path.isdir(SYSTEM_CACHE_DIR) else default_hub_cache())
    )
    return _absolute(chosen)


def choose_socket_dir(
    argument: str | os.PathLike[str] | None = None, *, config_file: Path | None = None
) -> Path | None:
    """The directory of the daemon's sockets, or None on a machine that has none.

    Order: argument, ``CRAFTCACHE_SOCKET_DIR``, ``socket_dir`` in the configuration file,
    ``/run/craftcache`` where it exists, ``$XDG_RUNTIME_DIR/craftcache`` where that exists.
    """
    chosen = (
        argument or os.environ.get("CRAFTCACHE_SOCKET_DIR") or _setting("socket_dir", config_file)
    )
    if chosen:
        return _absolute(chosen)
    if os.path.isdir(SYSTEM_SOCKET_DIR):
        return SYSTEM_SOCKET_DIR
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(own := Path(runtime, "craftcache")):
        return own
    return None


def choose_insecure_hosts() -> frozenset[str]:
    """The hosts that plain ``http://`` is allowed for, as a worker's own fetch reads them."""
    if listed := os.environ.get("CRAFTCACHE_INSECURE_HOSTS"):
        return frozenset(host.strip() for host in listed.split(",") if host.strip())
    path = config_path()
    hosts = _read_leniently(path).get("insecure_hosts", [])
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        _say_once(f"insecure_hosts in {path} is not a list of strings")
        return frozenset()
    return frozenset(hosts)


def choose_map() -> MapChoice | None:
    """Whether this process maps cached files: ``CRAFTCACHE_MAP``, then ``map`` in the file.

    None where neither says it: then it is the daemon's to say, where that serves the files.
    """
    chosen = os.environ.get("CRAFTCACHE_MAP") or _setting("map")
    for choice in MAP_CHOICES:
        if chosen == choice:
            return choice
    if chosen is not None:
        _say_once(f"map is {chosen!r}, not one of {', '.join(MAP_CHOICES)}")
    return None


def default_hub_cache() -> Path:
    """huggingface_hub's own cache directory, found as it finds it, without importing it."""
    if chosen := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(os.environ.get("HF_HOME") or f"{home}/huggingface") / "hub"


def daemon_uid() -> int | None:
    """The uid of the user that the daemon is configured to run as, where it exists.

    Order: ``CRAFTCACHE_USER``, ``user`` in the configuration file, ``craftcache``. A container
    need not know the name: a number is a uid.
    """
    user = os.environ.get("CRAFTCACHE_USER") or _setting("user") or DEFAULT_USER
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def in_home(path: str) -> Path:
    """``path`` with the user's home directory for its ``~``; below NO_HOME where there is none."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):  # neither HOME nor an entry in the user database
        return NO_HOME / path.removeprefix("~").lstrip("/")
    return Path(expanded)


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(in_home(path)))


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(in_home(os.fspath(path))))


def _setting(name: str, config_file: Path | None = None) -> str | None:
    path = config_file or config_path()
    value = _read_leniently(path).get(name)
    if name == "user" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        _say_once(f"{name} in {path} is not a string")
        return None
    return value


def _read_leniently(path: Path | None) -> dict[str, Any]:
    try:
        return read_config(path)
    except ConfigError as error:
        _say_once(error.message)
        return {}


@functools.cache
def _say_once(problem: str) -> None:
    log.warning("%s; going on with the environment and defaults", problem)
