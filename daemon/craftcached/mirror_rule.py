"""What an administrator says of a mirror: what it stands for, where it is, who trusts it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from craftcache.config import ConfigError
from craftcache.network.locations import origin_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HUB", "MirrorRule", "below"]

HUB = "hub"
"""What a mirror of the Hub and of the hosts that the Hub redirects to stands for."""

MIB = 1024 * 1024

LARGEST_SLICE_BYTES = 1024 * MIB

_SHORT = re.compile(r"(?P<of>.+?)=(?P<url>https?://.*)", re.IGNORECASE | re.DOTALL)
"""A mirror in one line, as the environment and the command line have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorRule:
    """One mirror; it serves the same paths as what it stands for.

    Attributes:
        of: ``hub``, a host, or the beginning of URLs; what it stands for.
        url: Address of the mirror, without a slash at its end.
        ca: Path of the certificates that its own is signed by; None for those of all origins.
        insecure: Whether plain http:// is allowed to it.
        weight: Share of the bytes among the mirrors of one thing; one of weight 0 is asked only
            while no other can be.
        forward_token: Whether it is trusted with what opens files to this node: the Hub token, and
            the query of a URL. The signature in a redirect of the Hub is sent in any case.
        metadata: Whether it is believed what files there are and which digests they have, while
            the origin cannot be asked.
        slice_bytes: Bytes that it fetches and keeps as one; requests end where one ends.
        patience: Seconds without an answer, or with next to no bytes, after which it is passed by.
        grace: Seconds for which what it should bring waits when it is lost, before it comes from
            elsewhere: as long as it takes to be started again.
    """

    of: str
    url: str
    ca: str | None = None
    insecure: bool = False
    weight: float = 1.0
    forward_token: bool = False
    metadata: bool = True
    slice_bytes: int = 8 * MIB
    patience: float = 30.0
    grace: float = 4.0

    def __post_init__(self) -> None:
        parts = _address(self.url, "url")
        if parts.scheme == "http" and not self.insecure:
            raise _wrong(f"{self.url} is not https://", "Say insecure = true if that is meant")
        if self.url.endswith("/") or parts.query or parts.fragment:
            raise _wrong(f"{self.url} is no plain address", "Leave out what follows its path")
        if self.of != HUB and not self.of.endswith("/"):
            raise _wrong(f"{self.of} does not end with a slash", "Add one")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise _wrong(f"weight is {self.weight}", "Give a number from 0 on")
        if not 4096 <= self.slice_bytes <= LARGEST_SLICE_BYTES:
            raise _wrong(f"slice_bytes is {self.slice_bytes}", "Give 4096 to a gigabyte")
        if not (math.isfinite(self.patience) and self.patience > 0):
            raise _wrong(f"patience is {self.patience}", "Give seconds")
        if not (math.isfinite(self.grace) and self.grace >= 0):
            raise _wrong(f"grace is {self.grace}", "Give seconds, or 0 for none")

    @property
    def name(self) -> str:
        """Host and port, as logs, events and metrics name it."""
        return urlsplit(self.url).netloc

    def address(self, url: str, *, hub_endpoint: str) -> str | None:
        """Where the mirror has what is at ``url``; None where it stands for something else.

        Args:
            url: An address of the origin.
            hub_endpoint: The Hub's address.
        """
        rest = below(url, hub_endpoint + "/" if self.of == HUB else self.of)
        return None if rest is None else f"{self.url}/{rest}"

    def rehosted(self, url: str) -> str:
        """Where a mirror of the Hub has what is at ``url``, which the Hub has redirected to."""
        parts = urlsplit(url)
        query = f"?{parts.query}" if parts.query else ""
        return f"{self.url}/.cdn/{parts.netloc}{parts.path}{query}"

    @classmethod
    def parse(cls, raw: str | Mapping[str, object]) -> MirrorRule:
        """The mirror that a table says, or ``of=url`` in one line.

        Raises:
            ConfigError: A key is unknown or missing, or a value ill-typed or out of bounds.
        """
        if isinstance(raw, str):
            match = _SHORT.fullmatch(raw)
            if match is None:
                raise _wrong(f"{raw!r} is no mirror", "Write hub=https://mirror.example.com")
            # Whoever writes http:// there means it: there is no other place to say so.
            return cls.parse({**match.groupdict(), "insecure": match["url"].startswith("http:")})
        given = {key: _typed(key, value) for key, value in raw.items()}
        if missing := {"of", "url"} - given.keys():
            raise _wrong(f"it lacks {min(missing)}", "Say what it stands for and where it is")
        return cls(**given | {"of": _standing_for(given["of"]), "url": given["url"].rstrip("/")})


def below(url: str, prefix: str) -> str | None:
    """What follows ``prefix`` in ``url``; None where that is no address below it.

    Scheme, host and port are compared as such: ``https://host`` is ``https://HOST:443/``.
    """
    if origin_of(url) != origin_of(prefix):
        return None
    parts, wanted = urlsplit(url), urlsplit(prefix).path
    if not parts.path.startswith(wanted) or "/../" in f"{parts.path}/":
        return None
    query = f"?{parts.query}" if parts.query else ""
    return parts.path[len(wanted) :] + query


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
}


def _typed(key: str, value: object) -> Any:  # noqa: ANN401  # of the field's own type
    kinds = {item.name: str(item.type) for item in fields(MirrorRule)}
    if key not in kinds:
        raise _wrong(f"unknown key {key}", f"There are {', '.join(kinds)}")
    allowed = _KINDS[kinds[key]]
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise _wrong(f"{key} must not be {value!r}", "Correct it")
    return value


def _standing_for(of: str) -> str:
    if of == HUB:
        return HUB
    prefix = of if "://" in of else f"https://{of}"
    parts = _address(prefix, "of")
    if parts.query or parts.fragment:
        raise _wrong(f"{of} has a query", "Name the beginning of URLs up to a slash")
    return prefix if prefix.endswith("/") else f"{prefix}/"


def _address(url: str, key: str) -> Any:  # noqa: ANN401  # urllib's own
    try:
        parts = urlsplit(url)
        is_sound = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_sound = False
    if not is_sound or not url.isprintable() or " " in url:
        raise _wrong(f"{key} {url!r} is no address", "Write https://host:port")
    if parts.scheme not in ("http", "https") or "@" in parts.netloc:
        raise _wrong(f"{key} {url!r} is neither http:// nor https:// or names a user", "Correct it")
    return parts


def _wrong(message: str, hint: str) -> ConfigError:
    return ConfigError(message, hint=hint)
