"""The daemon's settings: one frozen value; settings_reading reads it at start and on reload.

A setting is defined in one place: what it is called, is for, is by default and must be at least
stand with its field in :class:`Settings`, and the help of the command line is made from there.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path  # noqa: TC003  # config_schema reads the annotations
from typing import Any

from craftcache.file_maps import MAP_CHOICES, MapChoice
from craftcache.network.token import DAEMONS_PLACE
from craftcache.origins.hub import DEFAULT_ENDPOINT
from craftcache.watch_rule import WatchRule  # noqa: TC001  # likewise

from .mirror_rule import MirrorRule  # noqa: TC001  # likewise

__all__ = ["Settings", "Setting", "SETTINGS", "LIVE", "PREFIX"]

PREFIX = "CRAFTCACHE_"
"""Prefix of the variables in the environment."""

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
        hub_token_place: Where that token belongs in this daemon, for whoever lacks one.
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
    hub_token_place: str = DAEMONS_PLACE
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
    gpu_max_bytes: int = field(
        default=0,
        metadata=_about(
            "Bytes of a GPU's memory that models may take which its service holds there for all "
            "workers; 0 is half of the card.",
        ),
    )
    gpu_ttl: float = field(
        default=600.0,
        metadata=_about(
            "Seconds for which a model stays in a GPU's memory that no process there uses any more."
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


SETTINGS = {
    item.name: _defined(item) for item in fields(Settings) if not item.name.startswith("hub_token")
}
"""All that can be set, by name; the token is no setting, for settings are read by everybody."""
