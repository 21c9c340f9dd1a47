"""Other hands in the cache directory: one change at a time, of any file, drawn from a seed."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["mutate"]


def mutate(random: random.Random, root: Path) -> str:
    """Change one file below ``root``; returns what was done, to be shown where it did harm."""
    # The daemon removes directories of its own meanwhile, which Path.rglob does not get over.
    found = (Path(top, name) for top, *names in os.walk(root) for name in chain(*names))
    files = sorted(path for path in found if path.is_symlink() or path.is_file())
    path, other = random.choice(files), random.choice(files)
    change = random.choice(_CHANGES)
    try:
        change(random, path, other)
    except OSError as error:  # a link to nowhere, for one
        return f"{change.__name__} of {path.relative_to(root)} failed: {error.strerror}"
    return f"{change.__name__} of {path.relative_to(root)} (and {other.relative_to(root)})"


def flip(random: random.Random, path: Path, _: Path) -> None:
    """One bit, in place."""
    _overwrite(path, _flipped(random, path.read_bytes()))


def flip_unseen(random: random.Random, path: Path, _: Path) -> None:
    """One bit, in place, with the times put back."""
    status = path.stat()
    _overwrite(path, _flipped(random, path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def edit_digit(random: random.Random, path: Path, _: Path) -> None:
    """Another digit in a text, which stays well formed."""
    content = bytearray(path.read_bytes())
    digits = [match.start() for match in re.finditer(rb"[0-9]", bytes(content))]
    if digits:
        content[random.choice(digits)] = ord(random.choice("0123456789"))
    _overwrite(path, bytes(content))


def swap_fields(random: random.Random, path: Path, _: Path) -> None:
    """Two values of 64 hex digits in one text."""
    content = path.read_bytes()
    values = sorted(set(re.findall(rb"[0-9a-f]{64}", content)))
    if len(values) > 1:
        one, two = random.sample(values, 2)
        parts = content.split(one)
        content = one.join(part.replace(two, one) for part in parts)
    _overwrite(path, content)


def truncate(random: random.Random, path: Path, _: Path) -> None:
    """Cut off, anywhere."""
    path.chmod(0o644)
    os.truncate(path, random.randrange(path.stat().st_size + 1))


def extend(random: random.Random, path: Path, _: Path) -> None:
    """Something appended."""
    _overwrite(path, path.read_bytes() + random.randbytes(random.randrange(1, 100)))


def copy_over(_: random.Random, path: Path, other: Path) -> None:
    """The content of another file, in place."""
    _overwrite(path, other.read_bytes())


def replace_by_copy(_: random.Random, path: Path, other: Path) -> None:
    """A copy of another file, with its times, by rename."""
    staged = path.with_name(f"mutation-{secrets.token_hex(4)}")
    shutil.copy2(other, staged)
    os.replace(staged, path)


def replace_by_link(_: random.Random, path: Path, other: Path) -> None:
    """Another name for another file."""
    path.unlink()
    os.link(other, path)


def replace_by_symlink(_: random.Random, path: Path, other: Path) -> None:
    """A link to another file."""
    path.unlink()
    path.symlink_to(other)


def exchange(_: random.Random, path: Path, other: Path) -> None:
    """Two files change places."""
    staged = path.with_name(f"mutation-{secrets.token_hex(4)}")
    os.rename(path, staged)
    os.rename(other if other != path else staged, path)
    if other != path:
        os.rename(staged, other)


def remove(_: random.Random, path: Path, __: Path) -> None:
    """No file."""
    path.unlink()


def open_to_all(_: random.Random, path: Path, __: Path) -> None:
    """A mode that lets everybody write."""
    path.chmod(0o666)


def copy_anew(_: random.Random, path: Path, __: Path) -> None:
    """The same bytes in another file, as a restored backup has them."""
    staged = path.with_name(f"mutation-{secrets.token_hex(4)}")
    shutil.copy2(path, staged)
    os.replace(staged, path)


def _flipped(random: random.Random, content: bytes) -> bytes:
    flipped = bytearray(content)
    if flipped:
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    return bytes(flipped)


def _overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


_CHANGES: tuple[Callable[[random.Random, Path, Path], None], ...] = (
    *(flip, flip_unseen, edit_digit, swap_fields, truncate, extend, copy_over, replace_by_copy),
    *(replace_by_link, replace_by_symlink, exchange, remove, open_to_all, copy_anew),
)
