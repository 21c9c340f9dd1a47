"""The daemon's settings: one frozen value, read once at start and again on reload.

Order: command line, ``CRAFTCACHE_*`` in the environment, the configuration file, defaults. Lists
in the environment are separated by commas. An unknown or ill-typed setting is an error that
names it and where it stands.

A setting is defined in one place: what it is called, is for, is by default and must be at least
stand with its field in :class:`Settings`, and the help of the command line is made from there.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import Field, dataclass, field, fields, replace
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
from craftcache.file_maps import MAP_CHOICES, MapChoice
from craftcache.network.token import find_token, read_token
from craftcache.origins.hub import DEFAULT_ENDPOINT, hub_endpoint
from craftcache.watch_rule import WatchRule

from .address import Address
from .min_free import MinFree
from .mirror_rule import MirrorRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Settings", "Setting", "SETTINGS", "LIVE", "settings_faults"]

PREFIX = "CRAFTCACHE_"
"""Prefix of the variables in the environment."""

_SERVICE_LINK = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)?)"
)
"""Variables that Kubernetes sets in every pod for each service of its namespace, such as one of
the name craftcache or craftcache-metrics."""

_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
"""Words for true and false in the environment."""

LIVE = frozenset(
    {
        *("admin_group", "allow", "deny", "evict_others", "insecure_hosts", "max_bytes"),
        *("max_daily_bytes_per_uid", "max_hold", "max_queued_per_uid"),
        *("max_requests_per_minute_per_uid", "max_requests_per_uid", "min_free"),
        *("private_hosts", "quarantine_bytes", "quarantine_days", "scrub_days", "watches"),
    }
)
"""Settings that a reload puts in force; all others take a restart."""


def _about(
    meaning: str, *, least: float = 0, shown: str | None = None, option: str | None = None
) -> dict[str, Any]:
    """What a field of Settings says of itself; see Setting.

    Args:
        meaning: Purpose of the setting, for people.
        least: Least value of a number.
        shown: The default, where it is more than the field's.
        option: On the command line, where it is not the field's name.
    """
    return {"meaning": meaning, "least": least, "shown": shown, "option": option}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of the daemon.

    Attributes:
        hub_token: The token for gated and private repositories; from ``HF_TOKEN``, the file that
            ``HF_TOKEN_PATH`` names or systemd's credential ``hf-token``, and from nowhere else.
    """

    cache_dir: Path = field(
        metadata=_about(
            "The shared cache directory.",
            shown="AUDIOCRAFT_CACHE_DIR, or /var/cache/craftcache where it exists, or HF_HUB_CACHE",
        )
    )
    read_only: bool = field(
        default=False,
        metadata=_about(
            "Whether the cache directory is another daemon's: it is served from, verified and "
            "followed, and never written to."
        ),
    )
    overlay_dir: Path | None = field(
        default=None,
        metadata=_about(
            "Where a daemon with read_only keeps what is its own, as a cache directory of its own.",
            shown="overlay in state_dir",
        ),
    )
    socket_dir: Path = field(
        metadata=_about(
            "Where both sockets are made.", shown="/run/craftcache, or $XDG_RUNTIME_DIR/craftcache"
        )
    )
    state_dir: Path = field(
        metadata=_about(
            "Where the daemon keeps its own records; local disk.",
            shown="/var/lib/craftcache, or $XDG_STATE_HOME/craftcache",
        )
    )
    allow: tuple[str, ...] = field(
        default=("*",),
        metadata=_about("Pattern of sources that may be fetched, like 'facebook/*'."),
    )
    deny: tuple[str, ...] = field(
        default=(),
        metadata=_about("Pattern of sources that may not be fetched, whatever allow says."),
    )
    insecure_hosts: tuple[str, ...] = field(
        default=(),
        metadata=_about("Host that plain http:// is allowed for.", option="--insecure-host"),
    )
    private_hosts: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Host that URLs may name although its address is private, loopback or link-local, "
            "beside those that plain http:// is allowed for.",
            option="--private-host",
        ),
    )
    hub_endpoint: str = field(
        default=DEFAULT_ENDPOINT,
        metadata=_about("The Hub's address.", shown=f"HF_ENDPOINT, or {DEFAULT_ENDPOINT}"),
    )
    hub_token: str | None = field(default=None, repr=False)
    mirrors: tuple[MirrorRule, ...] = field(
        default=(),
        metadata=_about(
            "Mirror that is asked before the origin that it stands for, like "
            "'hub=https://mirror.example'; the configuration file can say more of each.",
            option="--mirror",
        ),
    )
    hub_timeout: float = field(
        default=10.0,
        metadata=_about(
            "Seconds that the Hub may take to answer for a file's metadata.", least=0.1
        ),
    )
    admin_group: str = field(
        default="",
        metadata=_about(
            "Group whose members may delete, pin, watch and evict, beside root and the daemon's "
            "user."
        ),
    )
    user: str = field(
        default="craftcache",
        metadata=_about(
            "The user that the daemon is meant to run as, whose files workers trust; its name or "
            "its uid."
        ),
    )
    worker_socket_mode: int = field(default=0o666, metadata=_about("Mode of worker/handles.sock."))
    admin_socket_mode: int = field(default=0o660, metadata=_about("Mode of craftcache.sock."))
    max_connections: int = field(
        default=16, metadata=_about("Connections of downloads, to all origins.", least=1)
    )
    max_connections_per_host: int = field(
        default=8, metadata=_about("Connections of downloads, to one origin.", least=1)
    )
    max_bytes_per_second: int = field(
        default=0, metadata=_about("Bytes a second of all downloads together; 0 is no limit.")
    )
    max_uplink_bytes_per_second: int = field(
        default=0,
        metadata=_about(
            "Bytes a second of all downloads together from origins that have a mirror, while it "
            "does not serve them; 0 is no limit."
        ),
    )
    max_bytes: int = field(
        default=0,
        metadata=_about(
            "Bytes of all that craftcache put into the cache directory, each file once; 0 is no "
            "limit. What does not fit is not fetched; room for what does is made by removing the "
            "models that were not used for longest and are not pinned, held, in use or needed."
        ),
    )
    min_free: str = field(
        default="15%",
        metadata=_about(
            "The part of the disk that no fetch may use: a percentage of it, or a number of bytes."
        ),
    )
    evict_others: bool = field(
        default=False,
        metadata=_about(
            "Whether snapshots that other tools put into the cache directory are removed too where "
            "the disk lacks room."
        ),
    )
    max_hold: float = field(
        default=86400.0,
        metadata=_about(
            "Longest time in seconds for which any user may hold what it warms; 0 allows none."
        ),
    )
    scrub_days: float = field(
        default=7.0,
        metadata=_about(
            "Days within which every cached file is hashed again in the background; 0 does it "
            "never."
        ),
    )
    quarantine_days: float = field(
        default=30.0,
        metadata=_about("Days that a file which turned out wrong is kept; 0 is no limit."),
    )
    quarantine_bytes: int = field(
        default=20_000_000_000,
        metadata=_about(
            "Bytes of files that turned out wrong and are kept, of which the oldest go first; 0 "
            "is no limit. They are not counted in max_bytes."
        ),
    )
    serve_dir: Path | None = field(
        default=None,
        metadata=_about(
            "A read-only mount of the cache directory, below which files are opened for workers, "
            "so that root in a container cannot write to them."
        ),
    )
    map: MapChoice = field(
        default="auto",
        metadata=_about(
            "Whether workers map cached files: always, never, or auto, that is not on network and "
            "FUSE file systems, where they are read."
        ),
    )
    max_clients_per_uid: int = field(
        default=256, metadata=_about("Connections of one user to the worker socket.", least=1)
    )
    metrics_listen: str = field(
        default="",
        metadata=_about(
            "Address for Prometheus to scrape /metrics from, like 127.0.0.1:9464; whoever can "
            "connect there can read it. They are on craftcache.sock in any case."
        ),
    )
    max_requests_per_uid: int = field(
        default=0,
        metadata=_about(
            "Requests that take work of one user, other than root and the daemon's own, at once; "
            "0 is no limit."
        ),
    )
    max_requests_per_minute_per_uid: int = field(
        default=0,
        metadata=_about(
            "Requests that take work of one user, other than root and the daemon's own, in any "
            "minute; 0 is no limit."
        ),
    )
    max_daily_bytes_per_uid: int = field(
        default=0,
        metadata=_about("Bytes that one user may have fetched on a day, UTC; 0 is no limit."),
    )
    max_queued_per_uid: int = field(
        default=0, metadata=_about("Queued warms of one user; 0 is no limit but that of the queue.")
    )
    tokens_dir: Path | None = field(
        default=None,
        metadata=_about(
            "A directory with a file for each host that URLs need a token for, named by the host "
            "(and :port), for the daemon's user alone."
        ),
    )
    drain_seconds: float = field(
        default=4.0,
        metadata=_about(
            "Seconds that running requests may take to finish when the daemon stops; all of the "
            "stop, downloads included, takes less than a second more."
        ),
    )
    watches: tuple[WatchRule, ...] = field(
        default=(),
        metadata=_about(
            "Export directory that is watched; the configuration file can say more of each.",
            option="--watch",
        ),
    )

    @property
    def own_cache_dir(self) -> Path:
        """The cache directory that the daemon writes to."""
        if not self.read_only:
            return self.cache_dir
        return self.overlay_dir or self.state_dir / "overlay"

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
            ConfigError: A setting is unknown or ill-typed; it tells of all that are.
        """
        chosen, faults = _gathered(arguments, environment, config_file)
        if faults:
            raise _as_one(faults)
        return cls(**chosen)


def settings_faults(
    arguments: Mapping[str, Any],
    *,
    environment: Mapping[str, str] = os.environ,
    config_file: Path | None = None,
) -> tuple[ConfigError, ...]:
    """All that keeps settings from being read, each with the place, the key and what is allowed.

    Args:
        arguments: See Settings.load.
        environment: See Settings.load.
        config_file: See Settings.load.
    """
    return _gathered(arguments, environment, config_file)[1]


@dataclass(frozen=True, slots=True)
class Setting:
    """The description of one setting.

    Attributes:
        name: Name in the configuration file.
        kind: Type of its values: an annotation of Settings, without its ``None``.
        meaning: One sentence or more for people.
        default: Default as shown to people.
        least: Least value of a number.
        option: Name of its option on the command line.
    """

    name: str
    kind: str
    meaning: str
    default: str
    least: float
    option: str

    @property
    def variable(self) -> str:
        """In the environment."""
        return f"{PREFIX}{self.name.upper()}"

    @property
    def is_list(self) -> bool:
        """Whether it may be given more than once."""
        return self.kind.startswith("tuple")

    @property
    def allowed(self) -> str:
        """What its values are, in words."""
        match self.kind:
            case "int" | "float":
                number = "a whole number" if self.kind == "int" else "a number"
                return f"{number} of at least {self.least:g}"
            case "Path":
                return "a path"
            case "str":
                return "a string"
            case "bool":
                return "true or false"
            case "MapChoice":
                return f"one of {', '.join(MAP_CHOICES)}"
            case "tuple[str, ...]":
                return "a list of strings"
            case "tuple[WatchRule, ...]":
                return "a list of paths or tables"
        return "a list of tables"

    @property
    def is_octal(self) -> bool:
        """Whether it is a file's mode."""
        return self.name.endswith("_mode")


def _defined(item: Field[Any]) -> Setting:
    name, given = item.name, item.metadata
    match item.default:
        case tuple(items):
            default = ",".join(items)
        case int(mode) if name.endswith("_mode"):
            default = f"{mode:04o}"
        case value:
            default = "" if value is None else str(value)
    return Setting(
        name,
        str(item.type).removesuffix(" | None"),
        given["meaning"],
        given["shown"] or default or "none",
        given["least"],
        given["option"] or f"--{name.replace('_', '-')}",
    )


SETTINGS = {item.name: _defined(item) for item in fields(Settings) if item.name != "hub_token"}
"""All that can be set, by name; the token is no setting, for settings are read by everybody."""


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
