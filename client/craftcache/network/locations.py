"""Where a redirect leads, also where its Location is not written as the standard wants it."""

from __future__ import annotations

from urllib.parse import quote, urldefrag, urljoin, urlsplit

from craftcache.errors import Unavailable
from craftcache.sources import shown_url

__all__ = ["MAX_REDIRECTS", "REDIRECTS", "origin_of", "redirect_target"]

MAX_REDIRECTS = 10

REDIRECTS = frozenset({301, 302, 303, 307, 308})
"""Status codes whose Location is followed."""

_LEGAL = "".join(map(chr, set(range(0x21, 0x7F)) - set(b'"<>\\^`{|}')))
"""Characters of a URL that are sent as they are; percent signs too, as they may be signed."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


def redirect_target(base: str, location: bytes | None, *, source: str) -> str:
    """Where the answer of ``base`` leads that has this Location.

    Spaces, UTF-8 and whatever else stands there raw is percent-encoded byte by byte, as browsers
    and curl do; all that is encoded already stays as it is, for it may be signed.

    Args:
        base: The address that was asked.
        location: The header's bytes; None where there is none.
        source: As errors name it.

    Raises:
        Unavailable: It leads to no URL that could be asked.
    """
    shown = shown_url(base)
    if location is None or not location.strip():
        raise _refused(source, f"{shown} redirects to nowhere")
    try:
        target = urldefrag(urljoin(base, quote(location.strip(), safe=_LEGAL))).url
        parts = urlsplit(target)
        is_sound = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_sound = False
    if not is_sound:
        raise _refused(source, f"{shown} redirects to a malformed URL")
    if parts.scheme not in _DEFAULT_PORTS:
        raise _refused(source, f"{shown} redirects to {parts.scheme}:")
    return target


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of ``url``: what credentials are for; port 0 of one that is none."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    try:
        port = parts.port or _DEFAULT_PORTS.get(scheme, 0)
    except ValueError:
        port = 0
    return scheme, parts.hostname or "", port


def _refused(source: str, message: str) -> Unavailable:
    return Unavailable(
        message, source=source, hint="Check the URL with the publisher", retryable=False
    )
