"""huggingface_hub's own cache layout, read and written as that library does.

    <cache>/models--org--name/blobs/<etag>               the bytes
    <cache>/models--org--name/snapshots/<commit>/<file>  a relative link to the blob
    <cache>/models--org--name/refs/<revision>            the commit, as text
    <cache>/.locks/models--org--name/<etag>.lock         held while a blob is made or linked

A reader that is offline goes from the ref to the snapshot to the blob, so the order of writing is
the reverse: blobs, then the links of a whole snapshot, and last the ref, each step by one rename
or link. A reader at any moment, and after a kill at any moment, finds the old snapshot or the new.

The library's download function could link for us, but it asks the Hub again, and would fetch
without verifying if the answer had changed in between; it also reads a process-wide HTTP client
that is not ours to replace in a worker. The layout is its documented interface; a test holds the
tree that we write against the one that the unmodified library writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache.logger import log

from .durable import beside, file_mode, make_directory, staging_name, sync_directory, write_file
from .ownership import make_ours
from .paths import real_path
from .placing import TreeObstacle, link_or_copy, move_away, put_in_place
from .plain_file import read_plain
from .stamps import FileStamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from craftcache.digests import HashedFile, Promise

    from .stamps import Stamps

__all__ = ["HubTree", "LOCK_SECONDS"]

MAX_REF_BYTES = 256
"""Bytes of a ref that are read: many more than a commit has."""


LOCK_SECONDS = 5.0
"""Time to wait for a lock of huggingface_hub. The lock only saves a second download: links do not
overwrite and renames are atomic, so a process that holds it for longer is passed by."""


@dataclass(frozen=True, slots=True)
class HubTree:
    """The part of a cache directory that belongs to one repository.

    Attributes:
        cache_dir: The cache directory.
        repo_id: The repository, exactly as named.
        staging: Directory, on the same file system, of files without a final name.
        quarantine: Directory that a blob with wrong content is moved to.
        is_ours: Returns whether only trusted users can have written a file with that stat.
        stamps: The stamps of hashed files.
    """

    cache_dir: Path
    repo_id: str
    staging: Path
    quarantine: Path
    is_ours: Callable[[os.stat_result], bool]
    stamps: Stamps

    @property
    def folder(self) -> str:
        """The repository's directory name below the cache directory."""
        return "--".join(("models", *self.repo_id.split("/")))

    @property
    def root(self) -> Path:
        """The repository's directory."""
        return self.cache_dir / self.folder

    def blob(self, etag: str) -> Path:
        """Where the blob named ``etag`` stands."""
        return self.root / "blobs" / etag

    def lock_path(self, etag: str) -> Path:
        """The file whose flock is huggingface_hub's lock of the blob named ``etag``."""
        return self.cache_dir / ".locks" / self.folder / f"{etag}.lock"

    def pointer(self, commit: str, filename: str) -> Path:
        """Where ``filename`` stands in the snapshot of ``commit``."""
        return self.root / "snapshots" / commit / filename

    def commit_of(self, revision: str) -> str | None:
        """The commit that ``revision`` names offline, or None where no ref does.

        As huggingface_hub reads it, to which a newline at the end is a part of the name.
        """
        try:
            return read_plain(self.root / "refs" / revision, MAX_REF_BYTES).decode("ascii")
        except (OSError, UnicodeDecodeError):
            return None

    def etag_of(self, commit: str, filename: str) -> str | None:
        """The name of the blob that a snapshot's file links to, or None where it links to none."""
        try:
            target = Path(os.readlink(self.pointer(commit, filename)))
        except OSError:
            return None
        return target.name if target.parent.name == "blobs" else None

    @contextlib.contextmanager
    def lock(self, etag: str, *, seconds: float = LOCK_SECONDS) -> Iterator[bool]:
        """Hold huggingface_hub's lock of a blob, if it can be acquired in time.

        Args:
            etag: The blob's name.
            seconds: Time to wait for it.

        Yields:
            Whether it is held. Without it, publishing is as safe, only maybe done twice.
        """
        # Documented as importable from there, though the package does not list it.
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        path = self.lock_path(etag)
        with contextlib.ExitStack() as stack:
            try:
                make_directory(path.parent)
                stack.enter_context(WeakFileLock(path, timeout=seconds))
            except OSError:  # another process holds it too long, or this user may not make it
                yield False
                return
            yield True

    def adopt(self, etag: str, promise: Promise) -> HashedFile | None:
        """Hash the blob that already stands under ``etag``; None where none keeps the promise.

        Blocking: about a second per gigabyte. A blob that others can write to is made ours first:
        it must not change after it is hashed. One that breaks the promise is left in place until
        :meth:`publish_blob` replaces it with a right one.
        """
        path = self.blob(etag)
        try:
            status = path.stat()
            if not self._is_within(real_path(path)):
                return None
            if not stat.S_ISREG(status.st_mode):
                return None
            if promise.size is not None and status.st_size != promise.size:
                return None
            if not self.is_ours(status):
                make_ours(path, mode=file_mode())
            git = promise.digest is not None and promise.digest.algorithm == "git-sha1"
            hashed = self.stamps.hash(path, git=git)
        except OSError:
            return None
        return hashed if promise.is_kept_by(hashed.digests) else None

    def check_place(self) -> None:
        """Check that blobs can be published here, before they are fetched.

        Raises:
            TreeObstacle: A file, or a link to nothing, is where a directory must be.
        """
        for directory in (self.root, self.root / "blobs", self.root / "snapshots"):
            self._make_directory(directory)

    def publish_blob(self, file: HashedFile, etag: str, promise: Promise) -> HashedFile:
        """Give a verified file the name ``etag``; the caller holds the lock if it could get it.

        The caller still removes its own name for the file.

        A blob that is already there is kept if it keeps the promise too; a wrong one goes to
        quarantine and is replaced in one step.

        Returns:
            The file that has that name now, with its digests.

        Raises:
            IntegrityError: The file was changed after it was verified.
            TreeObstacle: A file or directory is in the way that cannot be moved away.
        """
        verified, final = file.path, self.blob(etag)
        file.check_untouched(partial(self.stamps.has, file.digests.sha256))
        self._make_directory(final.parent)
        _tag_cache_dir(self.cache_dir)
        if self._is_unpublished(verified):
            os.chmod(verified, file_mode())
        try:
            published = link_or_copy(file, final)
        except FileExistsError:
            if _is_same(verified, final):
                return replace(file, path=final)
            if (present := self.adopt(etag, promise)) is not None:
                return present
            published = self._replace(file, final)
        # A second name in staging is the caller's and goes next, which changes the stamp.
        is_passing = published.stamp == file.stamp and verified.is_relative_to(self.staging)
        stamp = FileStamp.of(final.stat())
        self.stamps.record(file.digests.sha256, stamp, is_passing=is_passing)
        return published

    def link_snapshot(self, commit: str, etags: dict[str, str]) -> None:
        """Make the snapshot of ``commit`` hold each file, given the names of their blobs.

        Its directories hold nothing but links, so one that is a link itself is replaced: written
        through it, the links would be another snapshot's.
        """
        for filename, etag in etags.items():
            pointer = self.pointer(commit, filename)
            self._unlink_directories(pointer)
            self._make_directory(pointer.parent)
            blob = self.blob(etag)
            target = os.path.relpath(blob, pointer.parent)
            if not (pointer.parent / target).exists():  # snapshots were linked elsewhere by hand
                target = str(blob)
            self._link_pointer(target, pointer)
        for directory in {self.pointer(commit, filename).parent for filename in etags}:
            sync_directory(directory)

    def unlink_pointer(self, commit: str, filename: str) -> None:
        """Take a file out of the snapshot of ``commit``, and of no other."""
        pointer = self.pointer(commit, filename)
        self._unlink_directories(pointer)
        pointer.unlink(missing_ok=True)

    def move_ref(self, revision: str, commit: str) -> None:
        """Make ``revision`` name ``commit``; the last step, once the snapshot is complete."""
        if revision == commit or self.commit_of(revision) == commit:
            return
        ref = self.root / "refs" / revision
        self._make_directory(ref.parent)
        self._clear_directory(ref)
        write_file(ref, commit.encode("ascii"), staging=self.staging, mode=file_mode())

    def _link_pointer(self, target: str, pointer: Path) -> None:
        try:
            os.symlink(target, pointer)
        except FileExistsError:
            with contextlib.suppress(OSError):
                if os.readlink(pointer) == target:
                    return
            self._clear_directory(pointer)
            try:
                _replace_link(target, self.staging / staging_name(), pointer)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _replace_link(target, beside(pointer), pointer)

    def _is_unpublished(self, verified: Path) -> bool:
        """Whether a verified file's only name is the one in staging."""
        return verified.is_relative_to(self.staging) and verified.stat().st_nlink == 1

    def _is_within(self, resolved: Path) -> bool:
        """Whether a blob is in the cache, or where its directories were linked to by hand."""
        homes = (self.cache_dir, self.root, self.root / "blobs")
        return any(resolved.is_relative_to(home.resolve()) for home in homes)

    def _replace(self, file: HashedFile, final: Path) -> HashedFile:
        """Put a verified file in place of another, which goes to quarantine if possible."""
        self._clear_directory(final)
        with contextlib.suppress(OSError):  # another's, or on another file system
            aside = make_directory(self.quarantine) / f"{final.name}-{staging_name()}"
            os.link(final, aside, follow_symlinks=False)
        return put_in_place(file, final, staging=self.staging)

    def _clear_directory(self, path: Path) -> None:
        """Move a directory away that is where a file or a link must be."""
        if path.is_dir() and not path.is_symlink():
            try:
                aside = make_directory(self.quarantine) / f"{path.name}-{staging_name()}"
                moved = move_away(path, aside)
            except OSError as error:
                raise TreeObstacle(
                    f"{path} is a directory where a file must stand, and it cannot be moved away: "
                    f"{error.strerror}"
                ) from error
            log.warning("%s is a directory where a file must stand; it is now %s", path, moved)

    def _unlink_directories(self, pointer: Path) -> None:
        """Remove the links that stand for a snapshot's directories on the way to one of its files.

        A link further up, as of ``snapshots``, is a person's who has moved all that is below.
        """
        above = pointer.relative_to(self.root / "snapshots").parents
        for step in reversed(above[:-1]):
            place = self.root / "snapshots" / step
            if place.is_symlink():
                log.warning("%s was a link to %s, and is replaced", place, os.readlink(place))
                place.unlink()

    def _make_directory(self, path: Path) -> None:
        """Make a directory of the tree and its parents; a file that is in the way is moved away.

        Raises:
            TreeObstacle: Something is in the way that is not ours to move; the message names it.
        """
        for step in (self.root, *reversed(path.relative_to(self.root).parents), path):
            place = self.root / step
            if stat.S_ISREG(_mode(place)):
                self._move_file_away(place)
        _make_directory(path)

    def _move_file_away(self, path: Path) -> None:
        """Move a file away, if it is one still; what stays is named when a directory is made.

        Not by a rename: another thread may have made the directory by now, and it would go.
        """
        with contextlib.suppress(OSError):
            aside = make_directory(self.quarantine) / f"{path.name}-{staging_name()}"
            os.link(path, aside, follow_symlinks=False)
            os.unlink(path)
            log.warning("%s is a file where a directory must stand; it is now %s", path, aside)


def _make_directory(path: Path) -> None:
    """Make a directory and its parents; if a file is in the way, the error names it."""
    try:
        make_directory(path)
    except (FileExistsError, NotADirectoryError) as error:
        for step in (path, *path.parents):
            if os.path.islink(step) and not step.exists():
                raise TreeObstacle(
                    f"{step} is a link to {os.readlink(step)}, which is not there"
                ) from error
            if step.exists() and not step.is_dir():
                raise TreeObstacle(f"{step} stands where a directory must") from error
        raise


def _mode(path: Path) -> int:
    """The mode of what stands there itself, links not followed; 0 of nothing."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _replace_link(target: str, staged: Path, pointer: Path) -> None:
    os.symlink(target, staged)
    try:
        os.replace(staged, pointer)
    finally:
        staged.unlink(missing_ok=True)


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # a link to nowhere
        return False


def _tag_cache_dir(cache_dir: Path) -> None:
    """Write the CACHEDIR.TAG that this release of huggingface_hub writes, if it writes one."""
    if (cache_dir / "CACHEDIR.TAG").exists():
        return
    with contextlib.suppress(ImportError):
        # Private, but the text is that library's to choose; older releases write no such file.
        from huggingface_hub._local_folder import _create_cachedir_tag

        _create_cachedir_tag(cache_dir)
