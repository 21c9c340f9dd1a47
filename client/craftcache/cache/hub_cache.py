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
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .durable import file_mode, link_file, make_directory, staging_name, sync_directory, write_file
from .ownership import make_ours
from .stamps import FileStamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from craftcache.digests import HashedFile, Promise

    from .stamps import Stamps

__all__ = ["HubTree", "LOCK_SECONDS"]

LOCK_SECONDS = 5.0
"""How long a lock of huggingface_hub is waited for. Nothing rests on it but economy: links do not
overwrite and renames are whole, so whoever holds a lock for longer is passed by."""


@dataclass(frozen=True, slots=True)
class HubTree:
    """The part of a cache directory that belongs to one repository.

    Attributes:
        cache_dir: The cache directory.
        repo_id: The repository, exactly as named.
        staging: A directory on the same file system, for what is not yet under its final name.
        quarantine: Where a blob goes that does not hold what its name says.
        is_ours: Whether a file with that stat can be written by trusted owners only.
        stamps: Remember what was hashed.
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
        """The commit that ``revision`` names offline, or None where no ref does."""
        try:
            return (self.root / "refs" / revision).read_text("ascii").strip()
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
        """Hold huggingface_hub's lock of a blob, as far as it can be had.

        Args:
            etag: The blob's name.
            seconds: How long to wait for it.

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
            except OSError:  # held for too long by somebody else, or not ours to make
                yield False
                return
            yield True

    def adopt(self, etag: str, promise: Promise) -> HashedFile | None:
        """Hash the blob that already stands under ``etag``; None where none keeps the promise.

        Blocking: about a second per gigabyte. A blob that somebody else can write to is made ours
        first, for what was hashed must stay what it is. One that breaks the promise is left
        where it is until :meth:`publish_blob` puts a right one in its place.
        """
        path = self.blob(etag)
        try:
            if not path.resolve(strict=True).is_relative_to(self.cache_dir.resolve()):
                return None
            status = path.stat()
            if promise.size is not None and status.st_size != promise.size:
                return None
            if not self.is_ours(status):
                make_ours(path, staging=self.staging, mode=file_mode())
            git = promise.digest is not None and promise.digest.algorithm == "git-sha1"
            hashed = self.stamps.hash(path, git=git)
        except OSError:
            return None
        return hashed if promise.is_kept_by(hashed.digests) else None

    def publish_blob(self, file: HashedFile, etag: str, promise: Promise) -> HashedFile:
        """Give a verified file the name ``etag``; the caller holds the lock if it could get it.

        The caller still removes its own name for the file.

        A blob that is already there is kept if it keeps the promise too; a wrong one goes to
        quarantine and is replaced in one step.

        Returns:
            What has that name now, as it was hashed.

        Raises:
            IntegrityError: The file was changed after it was verified.
        """
        verified, final = file.path, self.blob(etag)
        file.check_untouched()
        make_directory(final.parent)
        _tag_cache_dir(self.cache_dir)
        if self._is_unpublished(verified):
            os.chmod(verified, file_mode())
        try:
            link_file(verified, final)
        except FileExistsError:
            if _is_same(verified, final):
                return replace(file, path=final)
            if (present := self.adopt(etag, promise)) is not None:
                return present
            self._replace(verified, final)
        sync_directory(final.parent)
        self.stamps.record(file.digests.sha256, FileStamp.of(final.stat()))
        return replace(file, path=final)

    def link_snapshot(self, commit: str, etags: dict[str, str]) -> None:
        """Make the snapshot of ``commit`` hold each file, given the names of their blobs."""
        for filename, etag in etags.items():
            pointer = self.pointer(commit, filename)
            make_directory(pointer.parent)
            target = os.path.relpath(self.blob(etag), pointer.parent)
            self._link_pointer(target, pointer)
            sync_directory(pointer.parent)

    def move_ref(self, revision: str, commit: str) -> None:
        """Let ``revision`` name ``commit``; the last step, after all that it leads to stands."""
        if revision == commit or self.commit_of(revision) == commit:
            return
        ref = self.root / "refs" / revision
        make_directory(ref.parent)
        write_file(ref, commit.encode("ascii"), staging=self.staging, mode=file_mode())

    def _link_pointer(self, target: str, pointer: Path) -> None:
        try:
            os.symlink(target, pointer)
        except FileExistsError:
            with contextlib.suppress(OSError):
                if os.readlink(pointer) == target:
                    return
            staged = self.staging / staging_name()
            os.symlink(target, staged)
            os.replace(staged, pointer)

    def _is_unpublished(self, verified: Path) -> bool:
        """Whether a verified file has no name yet but its own in staging."""
        return verified.is_relative_to(self.staging) and verified.stat().st_nlink == 1

    def _replace(self, verified: Path, final: Path) -> None:
        make_directory(self.quarantine)
        with contextlib.suppress(FileNotFoundError):
            os.link(
                final, self.quarantine / f"{final.name}-{staging_name()}", follow_symlinks=False
            )
        staged = self.staging / staging_name()
        link_file(verified, staged)
        os.replace(staged, final)


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
