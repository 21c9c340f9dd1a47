"""Which sources a node may fetch: the patterns of the settings ``allow`` and ``deny``.

In a pattern ``*`` stands for any characters and ``?`` for one; nothing else is special. What a
source consists of is matched apart, so that no wildcard reaches from one part into the next:

- ``*`` alone allows everything.
- ``scheme://host[:port][/path]`` allows URLs. A ``*`` in the host stays in it, one in the path
  crosses slashes, and a pattern without a path allows all of the host. Queries do not count.
- Anything else allows Hub ids: ``org/name`` at every revision, ``org/name@revision`` at those. A
  ``*`` in the id does not cross its slash.

What is denied is denied in every spelling that a server takes for the same: a Hub id in capitals,
a path with percent-encoded letters or steps upwards in it.
"""

from __future__ import annotations

import re
from posixpath import normpath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from craftcache.errors import PolicyDenied
from craftcache.sources import HubSource, UrlSource

if TYPE_CHECKING:
    from craftcache.sources import RemoteSource

__all__ = ["FetchPolicy", "is_allowed", "is_denied"]

SHOWN_PATTERNS = 8
"""Of many patterns, those that an error names."""

DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class FetchPolicy:
    """Which sources this node may fetch.

    Args:
        allow: Patterns of sources that it may.
        deny: Patterns of sources that it may not, though ``allow`` has them.
    """

    def __init__(self, allow: tuple[str, ...], deny: tuple[str, ...] = ()) -> None:
        self._allow = allow
        self._deny = deny

    def change(self, allow: tuple[str, ...], *, deny: tuple[str, ...]) -> None:
        """Use these patterns from now on; running warms are not stopped."""
        self._allow = allow
        self._deny = deny

    def check(self, source: RemoteSource) -> None:
        """Raise PolicyDenied unless this node may fetch ``source``."""
        denies = next((pattern for pattern in self._deny if is_denied(source, pattern)), None)
        if denies is not None:
            raise PolicyDenied(
                f"this node is told not to fetch it, by {denies!r} in the setting deny",
                source=source.shown,
                hint="Ask the administrator to take that pattern out of deny",
            )
        if not any(is_allowed(source, pattern) for pattern in self._allow):
            raise PolicyDenied(
                f"this node does not fetch it: {_no_pattern(self._allow)} in the setting allow",
                source=source.shown,
                hint="Ask the administrator to add a pattern for it to allow",
            )


def _no_pattern(patterns: tuple[str, ...]) -> str:
    """Words for patterns none of which means a source."""
    if not patterns:
        return "there is no pattern"
    shown = ", ".join(map(repr, patterns[:SHOWN_PATTERNS]))
    more = f" and {len(patterns) - SHOWN_PATTERNS} more" if len(patterns) > SHOWN_PATTERNS else ""
    return f"it is none of {shown}{more}"


def is_allowed(source: RemoteSource, pattern: str) -> bool:
    """Whether ``pattern`` allows to fetch ``source``."""
    if pattern == "*":
        return True
    match source:
        case UrlSource(url) if "://" in pattern:
            return _is_url_allowed(url, pattern)
        case HubSource(repo_id, revision) if "://" not in pattern:
            repo_pattern, at, revision_pattern = pattern.partition("@")
            return _matches(repo_id, repo_pattern, any_character="[^/]") and (
                not at or _matches(revision, revision_pattern)
            )
    return False


def is_denied(source: RemoteSource, pattern: str) -> bool:
    """Whether ``pattern`` forbids to fetch ``source``."""
    match source:
        case UrlSource(url) if "://" in pattern:
            parts = urlsplit(url)
            path = normpath(unquote(parts.path).replace("\\", "/"))
            path += "/" if parts.path.endswith("/") and path != "/" else ""
            host = f"{parts.hostname or ''}".rstrip(".") + (f":{parts.port}" if parts.port else "")
            plain = parts._replace(netloc=host, path=path.replace("//", "/"), query="")
            return is_allowed(source, pattern) or _is_url_allowed(plain.geturl(), pattern)
        case HubSource(repo_id, revision) if "://" not in pattern:
            lowered = HubSource(repo_id.lower(), revision)
            repo_pattern, at, revision_pattern = pattern.partition("@")
            return is_allowed(lowered, f"{repo_pattern.lower()}{at}{revision_pattern}")
    return pattern == "*"


def _is_url_allowed(url: str, pattern: str) -> bool:
    parts = urlsplit(url)
    scheme, _, rest = pattern.partition("://")
    host, slash, path = rest.partition("/")
    return (
        parts.scheme.lower() == scheme.lower()
        and _matches(_host(scheme, parts.netloc), _host(scheme, host))
        and (not slash or (_is_plain(parts.path) and _matches(parts.path, f"/{path}")))
    )


def _host(scheme: str, authority: str) -> str:
    """Host and port as they compare: in lower case, without the scheme's own port."""
    return authority.lower().removesuffix(DEFAULT_PORTS.get(scheme.lower(), ":"))


def _is_plain(path: str) -> bool:
    """Whether a server sees the path that is written: no step of it leads upwards."""
    return not {".", ".."} & set(unquote(path).replace("\\", "/").split("/"))


def _matches(text: str, pattern: str, *, any_character: str = ".") -> bool:
    kinds = {"*": f"{any_character}*", "?": any_character}
    expression = "".join(kinds.get(character) or re.escape(character) for character in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None
