"""The Hub token as it was meant, wherever it is written."""

from __future__ import annotations

import codecs
import contextlib
from typing import TYPE_CHECKING, Final

from craftcache.errors import AccessDenied

if TYPE_CHECKING:
    import os

__all__ = [
    "DAEMONS_PLACE",
    "OWN_PLACE",
    "UNITS_PLACE",
    "authorization",
    "find_token",
    "read_token",
]

_AROUND = " \t\r\n\0\f\v\N{NO-BREAK SPACE}\N{ZERO WIDTH NO-BREAK SPACE}\N{ZERO WIDTH SPACE}"
_QUOTES = "\"'"

OWN_PLACE: Final = "HF_TOKEN or its file"
DAEMONS_PLACE: Final = "the daemon's HF_TOKEN or HF_TOKEN_PATH, which it reads as it starts"
UNITS_PLACE: Final = "/etc/credstore/hf-token, which craftcached.service reads as it starts"
"""Where a token belongs, for people: of a process's own user, of a daemon, of systemd's daemon."""


def find_token() -> str | None:
    """The token of this process's user, as huggingface_hub finds it; None where there is none.

    A file of tokens that this user may not read, as where ``HOME`` is another user's, is none.
    """
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_TOKEN_PATH

    token = None
    # UnicodeError: a file in an encoding that huggingface_hub does not expect.
    with contextlib.suppress(UnicodeError, PermissionError):
        token = _cleaned(get_token() or "")
    if token is None or not token.isascii():
        with contextlib.suppress(OSError):
            return read_token(HF_TOKEN_PATH) or token
    return token


def read_token(path: str | os.PathLike[str]) -> str | None:
    """The token in a file, in whichever encoding an editor wrote it; None of an empty one.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(64 * 1024)
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            return _cleaned(data[len(mark) :].decode(encoding, "replace"))
    return _cleaned(data.decode("utf-8", "replace"))


def authorization(
    token: str | None, *, source: str | None = None, place: str = OWN_PLACE
) -> dict[str, str]:
    """The header that carries ``token``; none where there is none.

    Args:
        token: The token.
        source: Named in the error.
        place: Where the token belongs, for whoever has to correct it.

    Raises:
        AccessDenied: No header can carry it; its text is not shown.
    """
    if not token:
        return {}
    if not token.isascii() or not token.isprintable() or " " in token:
        raise AccessDenied(
            "the Hub token is invalid: it has characters in it that no token has",
            source=source,
            hint=f"Write the token alone into {place}, on one line",
        )
    return {"Authorization": f"Bearer {token}"}


def _cleaned(text: str) -> str | None:
    """What of ``text`` is the token: no byte order mark, space, newline or quotes around it."""
    token = text.strip(_AROUND)
    if len(token) > 1 and token[0] == token[-1] and token[0] in _QUOTES:
        token = token[1:-1].strip(_AROUND)
    return token or None
