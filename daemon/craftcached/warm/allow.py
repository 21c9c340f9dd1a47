"""Which sources a node may fetch: the patterns of the setting ``allow``.

In a pattern ``*`` stands for any characters and ``?`` for one; nothing else is special. What a
source consists of is matched apart, so that no wildcard reaches from one part into the next:

- ``*`` alone allows everything.
- ``scheme://host[:port][/path]`` allows URLs. A ``*`` in the host stays in it, one in the path
  crosses slashes, and a pattern without a path allows all of the host. Queries do not count.
- Anything else allows Hub ids: ``org/name`` at every revision, ``org/name@revision`` at those. A
  ``*`` in the id does not cross its slash.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from craftcache.sources import HubSource, UrlSource

if TYPE_CHECKING:
    from craftcache.sources import RemoteSource

__all__ = ["is_allowed"]

DEFAULT_PORTS = {"http": ":80", "https": ":443"}


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
