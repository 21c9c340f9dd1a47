"""Reading the daemon's settings from the command line, the environment and the configuration file.

Order: command line, ``CRAFTCACHE_*`` in the environment, the configuration file, defaults. Lists
in the environment are separated by commas. An unknown or ill-typed setting is an error that
names it and where it stands.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from craftcache.config import (
    NO_HOME,
    SYSTEM_SOCKET_DIR,
    ConfigError,
    choose_cache_dir,
    choose_socket_dir,
    config_path,
    in_home,
    read_config,
)
from craftcache.errors import InvalidSource
from craftcache.file_maps import MAP_CHOICES
from craftcache.network.token import UNITS_PLACE, find_token, read_token
from craftcache.origins.hub import hub_endpoint
from craftcache.watch_rule import WatchRule

from .address import Address
from .min_free import MinFree
from .mirror_rule import MirrorRule
from .settings import PREFIX, SETTINGS, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["load_settings", "settings_faults"]

_SERVICE_LINK = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)?)"
)
"""Variables that Kubernetes sets in every pod for each service of its namespace, such as one of
the name craftcache or craftcache-metrics."""

_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
"""Words for true and false in the environment."""


def load_settings(
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
        ConfigError: A setting is unknown or ill-typed; it tells of all that are.
    """
    chosen, faults = _gathered(arguments, environment, config_file)
    if faults:
        raise _as_one(faults)
    return Settings(**chosen)


def settings_faults(
    arguments: Mapping[str, Any],
    *,
    environment: Mapping[str, str] = os.environ,
    config_file: Path | None = None,
) -> tuple[ConfigError, ...]:
    """All that keeps settings from being read, each with the place, the key and what is allowed.

    Args:
        arguments: See load_settings.
        environment: See load_settings.
        config_file: See load_settings.
    """
    return _gathered(arguments, environment, config_file)[1]


class _Faults:
    """What is wrong with settings, noted so that the rest is read all the same."""

    def __init__(self) -> None:
        self.found: list[ConfigError] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self.found.append(error)


def _gathered(
    arguments: Mapping[str, Any], environment: Mapping[str, str], config_file: Path | None
) -> tuple[dict[str, Any], tuple[ConfigError, ...]]:
    """The settings in force as far as they can be read, and what is wrong with the others."""
    faults = _Faults()
    path = config_file or config_path()
    chosen: dict[str, Any] = {}
    with faults.noted():
        chosen |= _from_file(read_config(path), path, faults)
    chosen |= _from_environment(environment, faults)
    with faults.noted():
        chosen |= _from_arguments(arguments)
    chosen["cache_dir"] = choose_cache_dir(arguments.get("cache_dir"), config_file=path)
    chosen["socket_dir"] = choose_socket_dir(
        arguments.get("socket_dir"), config_file=path
    ) or _new_socket_dir(environment)
    chosen["state_dir"] = Path(
        chosen.get("state_dir") or _default_state_dir(environment)
    ).absolute()
    for name in ("cache_dir", "state_dir"):
        if chosen[name].is_relative_to(NO_HOME):
            faults.found.append(
                ConfigError(
                    f"there is no {name}: uid {os.geteuid()} has no home directory",
                    hint=f"Set {SETTINGS[name].variable}",
                )
            )
    chosen.setdefault("hub_endpoint", hub_endpoint())
    with faults.noted():
        chosen["hub_token"] = _hub_token(environment)
    if "CREDENTIALS_DIRECTORY" in environment:
        chosen["hub_token_place"] = UNITS_PLACE
    if not faults.found:
        with faults.noted():
            _check_overlay(Settings(**chosen))
    return chosen, tuple(faults.found)


def _as_one(faults: Sequence[ConfigError]) -> ConfigError:
    if len(faults) == 1:
        return faults[0]
    return ConfigError(
        f"{len(faults)} settings are wrong: " + "; ".join(fault.message for fault in faults),
        hint="craftcached --check-config says of each what is allowed",
    )


def _from_file(config: dict[str, Any], path: Path | None, faults: _Faults) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, value in config.items():
        with faults.noted():
            if name not in SETTINGS:
                raise ConfigError(
                    f"unknown setting {name} in {path}",
                    hint=f"There are {', '.join(sorted(SETTINGS))}",
                )
            chosen[name] = _typed(name, value, f"{name} in {path}")
    return chosen


def _from_environment(environment: Mapping[str, str], faults: _Faults) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for variable, text in environment.items():
        name = variable.removeprefix(PREFIX)
        if name == variable or not text:
            continue
        is_setting = name.lower() in SETTINGS
        if not is_setting and _SERVICE_LINK.fullmatch(variable):
            continue
        with faults.noted():
            if not is_setting:
                raise ConfigError(
                    f"unknown setting {variable} in the environment",
                    hint=f"There are {', '.join(sorted(s.variable for s in SETTINGS.values()))}",
                )
            chosen[name.lower()] = _typed(name.lower(), _parsed(name.lower(), text), variable)
    return chosen


def _from_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value for name, value in arguments.items() if value is not None}
    if (watches := chosen.get("watches")) is not None:
        chosen["watches"] = _watches(list(watches), SETTINGS["watches"].option)
    if (min_free := chosen.get("min_free")) is not None:
        chosen["min_free"] = _min_free(min_free, SETTINGS["min_free"].option)
    if (address := chosen.get("metrics_listen")) is not None:
        chosen["metrics_listen"] = _address(address, SETTINGS["metrics_listen"].option)
    if (mirrors := chosen.get("mirrors")) is not None:
        chosen["mirrors"] = _mirrors(list(mirrors), SETTINGS["mirrors"].option)
    return chosen


def _parsed(name: str, text: str) -> object:
    """``text`` as the configuration file would have given it; unchanged where it does not fit."""
    try:
        match SETTINGS[name].kind:
            case kind if kind.startswith("tuple"):
                return [item.strip() for item in text.split(",") if item.strip()]
            case "bool":
                return _FLAGS.get(text.lower(), text)
            case "int":
                return int(text, 8 if SETTINGS[name].is_octal else 10)
            case "float":
                return float(text)
    except ValueError:
        pass
    return text


def _typed(name: str, value: object, where: str) -> object:
    kind = SETTINGS[name].kind
    match kind, value:
        case "str", str() if name == "min_free":
            return _min_free(value, where)
        case "str", str() if name == "metrics_listen":
            return _address(value, where)
        case "Path" | "str", str():
            return in_home(value) if kind == "Path" else value
        case "str", int() if name == "user" and not isinstance(value, bool):
            return str(value)  # a uid, where there is no name for it
        case "str", int() if name == "min_free" and not isinstance(value, bool):
            return _min_free(str(value), where)
        case "bool", bool():
            return value
        case "MapChoice", str() if value in MAP_CHOICES:
            return value
        case "int", int() if not isinstance(value, bool):
            return _large_enough(name, value, where)
        case "float", int() | float() if not isinstance(value, bool):
            return _large_enough(name, float(value), where)
        case "tuple[str, ...]", list() if all(isinstance(item, str) for item in value):
            return tuple(value)
        case "tuple[WatchRule, ...]", list() if all(isinstance(item, str | dict) for item in value):
            return _watches(value, where)
        case "tuple[MirrorRule, ...]", list() if all(
            isinstance(item, str | dict) for item in value
        ):
            return _mirrors(value, where)
    raise _not_allowed(name, value, where)


def _large_enough(name: str, value: float, where: str) -> float:
    if not value >= SETTINGS[name].least:  # not a number, among others
        raise _not_allowed(name, value, where)
    return value


def _min_free(text: str, where: str) -> str:
    try:
        MinFree.parse(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}", hint="Correct it") from error
    return text


def _address(text: str, where: str) -> str:
    """An address as it was written; empty is none."""
    try:
        return str(Address.parse(text)) if text else text
    except ValueError as error:
        raise ConfigError(f"{where}: {error}", hint="Correct it") from error


def _not_allowed(name: str, value: object, where: str) -> ConfigError:
    setting = SETTINGS[name]
    return ConfigError(
        f"{where} must be {setting.allowed}, not {value!r}",
        hint=f"{setting.meaning} The default is {setting.default}",
    )


def _watches(items: list[str | dict[str, Any]], where: str) -> tuple[WatchRule, ...]:
    rules: list[WatchRule] = []
    wrong: list[InvalidSource] = []
    for item in items:
        try:
            rules.append(WatchRule.parse({"directory": item} if isinstance(item, str) else item))
        except InvalidSource as error:
            wrong.append(error)
    if wrong:
        raise ConfigError(
            f"{where}: {'; '.join(error.message for error in wrong)}",
            hint=". ".join(dict.fromkeys(error.hint for error in wrong if error.hint)),
        ) from wrong[0]
    names = [rule.name for rule in rules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{where} has two of the name {twice}", hint="Give each a name")
    return tuple(rules)


def _mirrors(items: list[str | dict[str, Any]], where: str) -> tuple[MirrorRule, ...]:
    try:
        return tuple(MirrorRule.parse(item) for item in items)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error


def _check_overlay(settings: Settings) -> None:
    """Raise ConfigError where two daemons would write to one directory."""
    if not settings.read_only:
        if settings.overlay_dir is not None:
            raise ConfigError(
                "overlay_dir is for a daemon with read_only",
                hint="Set read_only, or leave overlay_dir out",
            )
        return
    own, owners = os.path.realpath(settings.own_cache_dir), os.path.realpath(settings.cache_dir)
    if Path(own).is_relative_to(owners) or Path(owners).is_relative_to(own):
        raise ConfigError(
            f"overlay_dir {own} and the owner's cache directory {owners} are not apart",
            hint="Give overlay_dir a directory of this node's own, on a local disk",
        )


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
    state = environment.get("XDG_STATE_HOME") or in_home("~/.local/state")
    return Path(state, "craftcache")


def _hub_token(environment: Mapping[str, str]) -> str | None:
    """The token as huggingface_hub finds it, after systemd's credential."""
    if credentials := environment.get("CREDENTIALS_DIRECTORY"):
        path = Path(credentials, "hf-token")
        if path.is_file():
            return read_token(path)
    return find_token()
