"""A snapshot of an export directory: names and stamps of its files, never their content.

Links are not followed: whoever may write into a watched directory could lead the daemon anywhere
by one. All calls block.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from craftcache.sources import FILENAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from craftcache.watch_rule import WatchRule

__all__ = ["Pair", "MAX_DIRECTORIES", "Target", "Snapshot", "look", "stamp", "expand", "matching"]

Pair: TypeAlias = tuple[tuple[str, str], ...]
"""Each file of an export and its stamp: two equal pairs are the same files, untouched."""

MAX_ENTRIES = 1000
"""Other files of a directory that are looked at."""

_UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".incomplete", ".filepart", ".crdownload", "~")

MAX_DIRECTORIES = 1000
"""Directories that one pattern stands for at most; anybody may be able to make more."""


@dataclass(frozen=True, slots=True)
class Target:
    """A directory to look at.

    Attributes:
        root: Part of the path in which links are followed, because the administrator named it.
        steps: Path components below ``root``, none of which may be a link.
    """

    root: str
    steps: tuple[str, ...]

    @classmethod
    def of(cls, directory: str) -> Target:
        """The target that an absolute path names."""
        parent, name = os.path.split(directory)
        return cls(parent, (name,) if name else ())

    @property
    def path(self) -> str:
        """The directory's absolute path."""
        return os.path.join(self.root, *self.steps)

    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the directory as it is now; None where there is none."""
        try:
            descriptor = self.open()
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            return status.st_dev, status.st_ino
        finally:
            os.close(descriptor)

    def open(self) -> int:
        """A descriptor of the directory.

        Raises:
            OSError: It is not there, not readable, no directory, or behind a link.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        descriptor = os.open(self.root, flags)
        for step in self.steps:
            try:
                inner = os.open(step, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = inner
        return descriptor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a directory at one moment.

    Attributes:
        directory: Device and inode of the directory; None where there is none.
        pair: The export's files that are there.
        missing: Names that a generation waits for.
        fault: Why nothing here can become a generation as it is; empty where something can.
        beside: What stands beside the pair and has to do with it, with stamps: the marker, and what
            looks like a file on its way to one of its names, as rsync's ``.state_dict.bin.Xa81fp``.
        others: Digest of the names and stamps of all other files in the directory.
    """

    directory: tuple[int, int] | None = None
    pair: Pair = ()
    missing: tuple[str, ...] = ()
    fault: str = ""
    beside: Pair = ()
    others: str = ""

    @property
    def without_bystanders(self) -> Snapshot:
        """The snapshot without the files beside the pair: what a copy must find unchanged."""
        return replace(self, beside=(), others="")

    @property
    def awaits_more(self) -> bool:
        """Whether a file stands there that one of the pair's names is meant for."""
        names = FILENAMES.values()
        return any(name in beside for beside, _ in self.beside for name in names)

    @property
    def is_complete(self) -> bool:
        """Whether all that a generation needs is there."""
        return self.directory is not None and not self.missing and not self.fault


def look(target: Target, marker: str | None = None) -> Snapshot:
    """Look at a directory once."""
    try:
        descriptor = target.open()
    except FileNotFoundError:
        return Snapshot()
    except NotADirectoryError:
        return Snapshot(fault=f"{target.path} is a link or no directory")
    except OSError as error:
        return Snapshot(fault=f"{target.path} cannot be opened: {error.strerror}")
    try:
        return _look_into(descriptor, marker)
    except OSError as error:
        return Snapshot(fault=f"{target.path} cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)


def stamp(status: os.stat_result) -> str:
    """Stamp of a file, which changes whenever it is written to or replaced, also across reboots."""
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"


def expand(rule: WatchRule) -> tuple[list[tuple[str, Target]], list[str]]:
    """The directories that a pattern stands for now.

    Returns:
        The targets, each with what is to be added to the rule's name, at most MAX_DIRECTORIES; and
        the directories in which a new one would appear.
    """
    root, parts = _split(rule.directory)
    parents = [root]
    level: list[tuple[str, ...]] = [()]
    for depth, part in enumerate(parts):
        inner = [(*steps, name) for steps in level for name in _matching(root, steps, part)]
        level = inner[:MAX_DIRECTORIES]
        if depth < len(parts) - 1:
            parents += (os.path.join(root, *steps) for steps in level)
    wild = [n for n, part in enumerate(parts) if set(part) & set("*?[")]
    return [("-".join(steps[n] for n in wild), Target(root, steps)) for steps in level], parents


def matching(rule: WatchRule, directory: str) -> Target | None:
    """The target that ``directory`` is if a pattern stands for it, whether it is there or not."""
    root, wanted = _split(rule.directory)
    steps = tuple(os.path.relpath(directory, root).split("/"))
    is_one = len(steps) == len(wanted) and all(map(fnmatch.fnmatchcase, steps, wanted))
    return Target(root, steps) if is_one and ".." not in steps else None


def _split(pattern: str) -> tuple[str, tuple[str, ...]]:
    """The part of a pattern that is none, and the steps from there on."""
    parts = pattern.strip("/").split("/")
    first = next(n for n, part in enumerate(parts) if set(part) & set("*?["))
    return "/" + "/".join(parts[:first]), tuple(parts[first:])


def _look_into(directory: int, marker: str | None) -> Snapshot:
    status = os.fstat(directory)
    identity = (status.st_dev, status.st_ino)
    files: dict[str, os.stat_result] = {}
    missing = []
    for name in FILENAMES.values():
        found = _stat(directory, name)
        if found is None:
            missing.append(name)
        elif not stat.S_ISREG(found.st_mode):
            kind = "a link" if stat.S_ISLNK(found.st_mode) else "no regular file"
            return Snapshot(identity, fault=f"{name} is {kind}")
        else:
            files[name] = found
    if marker is not None and not missing:
        newest = max(found.st_mtime_ns for found in files.values())
        mark = _stat(directory, marker)
        if mark is None or mark.st_mtime_ns < newest:
            missing.append(marker)
    pair = tuple((name, stamp(found)) for name, found in files.items())
    beside, others = _beside(directory, marker)
    return Snapshot(identity, pair, tuple(missing), beside=beside, others=others)


def _beside(directory: int, marker: str | None) -> tuple[Pair, str]:
    """The other files in the directory: those that belong to the pair, and a digest of the rest.

    In a directory with very many files only MAX_ENTRIES are looked at: no writer of exports has
    that many in a directory of its own.
    """
    with os.scandir(directory) as entries:
        listed = sorted(itertools.islice(entries, MAX_ENTRIES), key=lambda entry: entry.name)
        beside, rest = [], hashlib.sha256()
        for entry in listed:
            if entry.name in FILENAMES.values():
                continue
            try:
                seen = stamp(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                seen = "gone"
            if entry.name == marker or (_is_file(entry) and _may_become_one_of_a_pair(entry.name)):
                beside.append((entry.name, seen))
            else:
                rest.update(f"{entry.name}\0{seen}\0".encode("utf-8", "surrogateescape"))
            if entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                beside += _arriving_in(directory, entry.name)
    return tuple(beside), rest.hexdigest()


def _arriving_in(directory: int, name: str) -> list[tuple[str, str]]:
    """What a hidden directory holds of the pair, as rsync's --partial-dir and --delay-updates."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        inner = os.open(name, flags, dir_fd=directory)
    except OSError:  # gone, or not ours to read
        return []
    try:
        found = ((filename, _stat(inner, filename)) for filename in FILENAMES.values())
        return [(f"{name}/{filename}", stamp(seen)) for filename, seen in found if seen is not None]
    except OSError:
        return []
    finally:
        os.close(inner)


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _may_become_one_of_a_pair(name: str) -> bool:
    """Whether a writer may be about to rename a file of that name.

    rsync, rclone, s3 and gsutil add to the name of the file that they bring; torch.save's callers
    take tempfile's names; browsers and downloaders have endings of their own.
    """
    lowered = name.lower()
    return (
        any(filename in name for filename in FILENAMES.values())
        or lowered.startswith((".", "tmp", "~"))
        or lowered.endswith(_UNFINISHED)
    )


def _stat(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _matching(root: str, steps: tuple[str, ...], part: str) -> Iterator[str]:
    """Names of directories, links left out; a name that is no pattern need not exist yet."""
    if not set(part) & set("*?["):
        yield part
        return
    try:
        with os.scandir(os.path.join(root, *steps)) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except OSError:
        return
    hidden = part.startswith(".")
    yield from (n for n in fnmatch.filter(names, part) if hidden or not n.startswith("."))
