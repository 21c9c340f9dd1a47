"""The daemon's settings: one frozen value, read once at start and again on reload.

Order: command line, ``CRAFTCACHE_*`` in the environment, the configuration file, defaults. Lists
in the environment are separated by commas. An unknown or ill-typed setting is an error that
names it and where it stands.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craftcache.config import (
    SYSTEM_SOCKET_DIR,
    ConfigError,
    choose_cache_dir,
    choose_socket_dir,
    config_path,
    read_config,
)
from craftcache.errors import InvalidSource
from craftcache.hub import hub_endpoint
from craftcache.watch_rule import WatchRule

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Settings", "LIVE"]

LIVE = frozenset({"admin_group", "allow", "insecure_hosts", "max_bytes", "watches"})
"""Settings that a reload puts in force; all others take a restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of the daemon.

    Attributes:
        cache_dir: The shared cache directory.
        socket_dir: Where both sockets are made.
        state_dir: Where the daemon keeps its own records; local disk.
        allow: Patterns of sources that may be fetched; see craftcached.bring.allow.
        insecure_hosts: Hosts that plain ``http://`` is allowed for.
        hub_endpoint: The Hub's address.
        hub_token: The token for gated and private repositories; from ``HF_TOKEN``, the file that
            ``HF_TOKEN_PATH`` names or systemd's credential ``hf-token``, never the command line.
        hub_timeout: Seconds that the Hub may take to answer for a file's metadata.
        admin_group: Members may delete, pin, watch and evict, beside root and the daemon's user.
        user: The user that the daemon is meant to run as; its files are trusted by workers.
        worker_socket_mode: Of ``worker/handles.sock``.
        admin_socket_mode: Of ``craftcache.sock``.
        max_connections: Of the fetch engine, to all origins.
        max_connections_per_host: Of the fetch engine.
        max_bytes_per_second: Of all downloads together; 0 is no limit.
        max_bytes: Of all cached models together, each blob once; 0 is no limit. Beyond it, those go
            that were not used for longest and are neither pinned nor in use.
        serve_dir: A read-only mount of the cache directory (BindReadOnlyPaths=), below which files
            are opened for workers, so that root in a container cannot write to them.
        max_clients_per_uid: Connections of one user to the worker socket.
        drain_seconds: How long running requests may take to finish when the daemon stops; all of
            the stop, downloads included, takes less than a second more.
        watches: Export directories that are watched: each a path, or a table with ``directory``
            and what else a WatchRule has.
    """

    cache_dir: Path
    socket_dir: Path
    state_dir: Path
    allow: tuple[str, ...] = ("*",)
    insecure_hosts: tuple[str, ...] = ()
    hub_endpoint: str = "https://huggingface.co"
    hub_token: str | None = field(default=None, repr=False)
    hub_timeout: float = 10.0
    admin_group: str = ""
    user: str = "craftcache"
    worker_socket_mode: int = 0o666
    admin_socket_mode: int = 0o660
    max_connections: int = 16
    max_connections_per_host: int = 8
    max_bytes_per_second: int = 0
    max_bytes: int = 0
    serve_dir: Path | None = None
    max_clients_per_uid: int = 256
    drain_seconds: float = 4.0
    watches: tuple[WatchRule, ...] = ()

    def with_live(self, other: Settings) -> Settings:
        """These settings with those of ``other`` that may change while the daemon runs."""
        return replace(self, **{name: getattr(other, name) for name in LIVE})

    def differing(self, other: Settings) -> frozenset[str]:
        """The names of the settings that ``other`` has differently."""
        names = (item.name for item in fields(self))
        return frozenset(n for n in names if getattr(self, n) != getattr(other, n))

    @classmethod
    def load(
        cls,
        arguments: Mapping[str, Any],
        *,
        environment: Mapping[str, str] = os.environ,
        config_file: Path | None = None,
    ) -> Settings:
        """Read the settings in force.

        Args:
            arguments: From the command line, by name; those that are None were not given.
            environment: The process's environment.
            config_file: Instead of the one in its usual places.

        Raises:
            ConfigError: A setting is unknown or ill-typed.
        """
        path = config_file or config_path()
        chosen = _from_file(read_config(path), path)
        chosen |= _from_environment(environment)
        chosen |= {name: value for name, value in arguments.items() if value is not None}
        chosen["cache_dir"] = choose_cache_dir(arguments.get("cache_dir"), config_file=path)
        chosen["socket_dir"] = choose_socket_dir(
            arguments.get("socket_dir"), config_file=path
        ) or _new_socket_dir(environment)
        chosen["state_dir"] = Path(
            chosen.get("state_dir") or _default_state_dir(environment)
        ).absolute()
        chosen.setdefault("hub_endpoint", hub_endpoint())
        chosen["hub_token"] = _hub_token(environment)
        return cls(**chosen)


_KINDS = {
    item.name: str(item.type).removesuffix(" | None")
    for item in fields(Settings)
    if item.name != "hub_token"
}


def _from_file(config: dict[str, Any], path: Path | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, value in config.items():
        if name not in _KINDS:
            raise ConfigError(
                f"unknown setting {name} in {path}", hint=f"There are {', '.join(sorted(_KINDS))}"
            )
        chosen[name] = _typed(name, value, f"{name} in {path}")
    return chosen


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for variable, text in environment.items():
        name = variable.removeprefix("CRAFTCACHE_")
        if name == variable or not text:
            continue
        if name.lower() not in _KINDS:
            raise ConfigError(
                f"unknown setting {variable} in the environment",
                hint="There are "
                + ", ".join(f"CRAFTCACHE_{name.upper()}" for name in sorted(_KINDS)),
            )
        chosen[name.lower()] = _typed(name.lower(), _parsed(name.lower(), text), variable)
    return chosen


def _parsed(name: str, text: str) -> object:
    """``text`` as the configuration file would have given it; unchanged where it does not fit."""
    try:
        match _KINDS[name]:
            case "tuple[str, ...]" | "tuple[WatchRule, ...]":
                return [item.strip() for item in text.split(",") if item.strip()]
            case "int":
                return int(text, 8 if name.endswith("_mode") else 10)
            case "float":
                return float(text)
    except ValueError:
        pass
    return text


_LEAST = {
    "hub_timeout": 0.1,
    "max_connections": 1,
    "max_connections_per_host": 1,
    "max_clients_per_uid": 1,
}
"""What a number must be at least, where that is not nothing."""


def _typed(name: str, value: object, where: str) -> object:
    kind = _KINDS[name]
    match kind, value:
        case "Path" | "str", str():
            return Path(os.path.expanduser(value)) if kind == "Path" else value
        case "int", int() if not isinstance(value, bool):
            return _large_enough(name, value, where)
        case "float", int() | float() if not isinstance(value, bool):
            return _large_enough(name, float(value), where)
        case "tuple[str, ...]", list() if all(isinstance(item, str) for item in value):
            return tuple(value)
        case "tuple[WatchRule, ...]", list() if all(isinstance(item, str | dict) for item in value):
            return _watches(value, where)
    wanted = {
        "Path": "a path",
        "str": "a string",
        "int": "a whole number",
        "float": "a number",
        "tuple[WatchRule, ...]": "a list of paths or tables",
    }
    raise ConfigError(
        f"{where} must be {wanted.get(kind, 'a list of strings')}, not {value!r}",
        hint="Correct it",
    )


def _large_enough(name: str, value: float, where: str) -> float:
    least = _LEAST.get(name, 0)
    if not value >= least:  # not a number, among others
        raise ConfigError(f"{where} must be at least {least}, not {value!r}", hint="Correct it")
    return value


def _watches(items: list[str | dict[str, Any]], where: str) -> tuple[WatchRule, ...]:
    try:
        rules = [
            WatchRule.parse({"directory": item} if isinstance(item, str) else item)
            for item in items
        ]
    except InvalidSource as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error
    names = [rule.name for rule in rules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{where} has two of the name {twice}", hint="Give each a name")
    return tuple(rules)


def _new_socket_dir(environment: Mapping[str, str]) -> Path:
    runtime = environment.get("XDG_RUNTIME_DIR")
    if os.geteuid() != 0 and runtime:
        return Path(runtime, "craftcache")
    return SYSTEM_SOCKET_DIR


def _default_state_dir(environment: Mapping[str, str]) -> Path:
    if systemd := environment.get("STATE_DIRECTORY"):
        return Path(systemd.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/craftcache")
    state = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "craftcache")


def _hub_token(environment: Mapping[str, str]) -> str | None:
    """The token as huggingface_hub finds it, after systemd's credential."""
    if credentials := environment.get("CREDENTIALS_DIRECTORY"):
        path = Path(credentials, "hf-token")
        if path.is_file():
            return path.read_text("utf-8").strip() or None
    from huggingface_hub import get_token

    return get_token()
