"""A model as a lock holds it: exactly these files at exactly this revision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from craftcache.digests import Promise

__all__ = ["LockEntry", "LockedRevision"]


@dataclass(frozen=True, slots=True)
class LockEntry:
    """A file that must be this one.

    Attributes:
        filename: Name as the source lists it.
        sha256: Digest of all its bytes, in hex.
        size: Size in bytes.
        etag: The name of its blob in huggingface_hub's cache; None of a file that is not the Hub's.
    """

    filename: str
    sha256: str
    size: int
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class LockedRevision:
    """The one revision of a source that may be warmed, and all files of it that are wanted.

    Attributes:
        revision: Commit of the repository; of a URL the digest over its files.
        files: The files.
        needed_only: Whether they are wanted for the sake of another model alone.
    """

    revision: str
    files: tuple[LockEntry, ...]
    needed_only: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files."""
        return tuple(file.filename for file in self.files)

    def file(self, filename: str) -> LockEntry | None:
        """The file of that name; None where the lock has no such file."""
        return next((file for file in self.files if file.filename == filename), None)

    def is_met_by(self, revision: str, digests: Mapping[str, str], *, has_commits: bool) -> bool:
        """Whether a model of that revision is the locked one.

        Args:
            revision: Its revision.
            digests: The sha256 of each of its files, by name; it may have more than the lock.
            has_commits: Whether its revision is a commit. Of a URL only the files count.
        """
        if has_commits and revision != self.revision:
            return False
        return all(digests.get(file.filename) == file.sha256 for file in self.files)

    def check(self, filename: str, sha256: str, *, source: str) -> None:
        """Raise IntegrityError unless a file of that name and digest is the locked one."""
        file = self.file(filename)
        if file is not None and file.sha256 == sha256:
            return
        wanted = "no such file" if file is None else file.sha256
        raise IntegrityError(
            f"sha256 of {filename} at {self.revision} is {sha256} where the lock has {wanted}",
            source=source,
            hint="Nothing of it was published. Make the lock anew if the change is wanted",
        )

    def check_promise(self, filename: str, promise: Promise, *, source: str) -> None:
        """Raise IntegrityError where an origin promises another file than the locked one."""
        if promise.digest is not None and promise.digest.algorithm == "sha256":
            self.check(filename, promise.digest.hex, source=source)
