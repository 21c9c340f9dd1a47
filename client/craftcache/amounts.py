"""Amounts as people read them: ``1 model``, ``3 models``, ``2.2 MB``."""

from __future__ import annotations

__all__ = ["counted", "exact_size_text", "size_text"]

_UNITS = ("kB", "MB", "GB", "TB", "PB")

_HISSING = ("s", "x", "ch", "sh")
"""Ends of the nouns whose plural has a syllable more."""


def counted(count: int, noun: str) -> str:
    """``count`` things: the noun, of which the last word is the thing, in its singular."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{count} {noun[:-1]}ies"
    return f"{count} {noun}{'es' if noun.endswith(_HISSING) else 's'}"


def exact_size_text(count: int) -> str:
    """``count`` bytes as size_text has them, and to the last one: for what is compared or set."""
    exact = counted(count, "byte")
    return exact if count < 1000 else f"{size_text(count)} ({exact})"


def size_text(count: float) -> str:
    """``count`` bytes in decimal units, as disks and networks are measured."""
    if count < 1000:
        return counted(round(count), "byte")
    for unit in _UNITS:
        count /= 1000
        if count < 999.95 or unit == _UNITS[-1]:
            break
    return f"{count:.1f} {unit}"
