"""A worker's own download: one plain stream into a private staging file, hashed as it comes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import httpx

from craftcache.amounts import counted
from craftcache.cache.durable import staging_name
from craftcache.cache.foreign_writes import ForeignWrites
from craftcache.daemon.transport import shut
from craftcache.digests import HashedFile, Hasher, Promise, Stamp, hash_descriptor
from craftcache.errors import (
    AccessDenied,
    CraftcacheError,
    IntegrityError,
    NotFound,
    Unavailable,
)
from craftcache.full_disk import storage_full
from craftcache.logger import log
from craftcache.network.content_encoding import check_uncompressed
from craftcache.network.exchange import Exchange
from craftcache.network.locations import origin_of
from craftcache.origins.etags import strong_etag
from craftcache.origins.hub import invalid_token
from craftcache.sources import shown_url

from .abandonable import call_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from io import FileIO
    from pathlib import Path

    from craftcache.daemon.transport import Cancellation

__all__ = ["Download", "Downloaded", "download"]


CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Time without a byte after which a stream counts as dead."""

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Download:
    """One file to fetch.

    Attributes:
        source: The source, named in errors.
        url: URL of the file; may redirect.
        promise: Size and digest that the origin promised, as far as it did.
        headers: Credentials, for the URL's own origin only.
        attempt: Number of the attempt, from 1; a later one goes past caches on the way.
    """

    source: str
    url: str
    promise: Promise
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A fetched file: complete, durable and verified against its promise.

    Attributes:
        file: The file in staging; the caller links or removes it.
        etag: The strong ETag that came with it, unquoted, or None.
    """

    file: HashedFile
    etag: str | None


def download(
    wanted: Download,
    *,
    staging: Path,
    check_url: Callable[[str], None],
    report: Callable[[int, int | None], None],
    cancellation: Cancellation,
) -> Downloaded:
    """Fetch one file.

    Wrong bytes are fetched once more, from the beginning, before they are an error: over a new
    connection, and past caches on the way.

    Args:
        wanted: The file to fetch.
        staging: Directory that it is written to.
        check_url: Called with each URL before it is requested, redirect targets included.
        report: Called with the bytes so far and the total, None where unknown. An exception from
            it ends the download.
        cancellation: Cancels the download at once, whatever it waits for.

    Raises:
        NotFound, AccessDenied, PolicyDenied, IntegrityError, StorageFull, Unavailable, Cancelled:
            Nothing is left in ``staging``.
    """
    path = staging / staging_name()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(path.unlink, missing_ok=True)
        try:
            try:
                downloaded = _stream(wanted, path, check_url, report, cancellation)
            except IntegrityError as error:
                path.unlink(missing_ok=True)
                again = replace(wanted, attempt=wanted.attempt + 1)
                downloaded = _second(again, path, error.message, check_url, report, cancellation)
        except CraftcacheError as error:
            error.source = wanted.source
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            needed = wanted.promise.size or 0
            raise storage_full(staging, needed, source=wanted.source, error=error) from error
        cleanup.pop_all()
    return downloaded


def _second(
    wanted: Download,
    path: Path,
    first: str,
    check_url: Callable[[str], None],
    report: Callable[[int, int | None], None],
    cancellation: Cancellation,
) -> Downloaded:
    """The second attempt; its error says what was seen in both."""
    log.warning("%s: %s; it is fetched once more", wanted.source, first)
    try:
        return _stream(wanted, path, check_url, report, cancellation)
    except IntegrityError as error:
        seen = error.message
        outcome = "with the same result" if seen == first else f"after a first time: {first}"
        error.message = f"{seen}; fetched twice, the second time past caches on the way, {outcome}"
        raise


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer whose head has come and whose body is unread."""

    exchange: Exchange
    response: httpx.Response

    def close(self) -> None:
        self.response.close()
        self.exchange.close()

    def shut(self) -> None:
        """Shut its connection down, which ends a read that another thread waits in."""
        shut(self.response.extensions["network_stream"].get_extra_info("socket"))


def _stream(
    wanted: Download,
    path: Path,
    check_url: Callable[[str], None],
    report: Callable[[int, int | None], None],
    cancellation: Cancellation,
) -> Downloaded:
    answer = call_apart(
        partial(_ask, wanted, check_url), cancellation=cancellation, discard=_Answer.close
    )
    with contextlib.closing(answer):
        _check_status(answer.response, wanted)
        try:
            with cancellation.ending(answer.shut):
                file = _receive(answer.response, wanted, path, report)
        except httpx.HTTPError as error:
            raise answer.exchange.failure(error, str(answer.response.url)) from error
        finally:
            cancellation.check()  # a connection that shut ended looks like a failed one
    wanted.promise.check(file.digests, source=wanted.source)
    return Downloaded(file, strong_etag(answer.response.headers.get("ETag")))


def _ask(wanted: Download, check_url: Callable[[str], None]) -> _Answer:
    exchange = Exchange(
        wanted.source,
        read_seconds=READ_SECONDS,
        connect_seconds=CONNECT_SECONDS,
        check_url=check_url,
    )
    try:
        headers = {"Cache-Control": "no-cache"} if wanted.attempt > 1 else {}
        return _Answer(exchange, exchange.follow("GET", wanted.url, headers, wanted.headers))
    except BaseException:
        exchange.close()
        raise


def _receive(
    response: httpx.Response,
    wanted: Download,
    path: Path,
    report: Callable[[int, int | None], None],
) -> HashedFile:
    length = response.headers.get("Content-Length")
    total = wanted.promise.size if length is None else int(length)
    _check_space(wanted, path.parent, total)
    # A sha1 over "blob <size>" needs the size first: the origin promised it with the digest.
    hasher = Hasher.for_promise(wanted.promise)
    done = 0
    with open(path, "x+b", buffering=0, opener=_private) as file:
        foreign = ForeignWrites(file.fileno())
        for chunk in response.iter_raw(CHUNK_BYTES):
            with foreign.writing():
                _write(file, chunk)
            hasher.update(chunk)
            done += len(chunk)
            report(done, total)
        if total is not None and done < total:
            raise Unavailable(
                f"the connection ended after {done} of {counted(total, 'byte')}",
                source=wanted.source,
                hint="Try again",
            )
        os.fsync(file.fileno())
        digests, stamp = hasher.digests(), Stamp.of(os.fstat(file.fileno()))
        if foreign.were_seen() and hash_descriptor(file.fileno()).sha256 != digests.sha256:
            raise IntegrityError(
                f"other hands have written to {path} while it came",
                source=wanted.source,
                hint="See who changes files in the cache",
                retryable=True,
            )
    return HashedFile(path, digests, stamp)


def _write(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _check_space(wanted: Download, directory: Path, total: int | None) -> None:
    if (total or 0) > shutil.disk_usage(directory).free:
        raise storage_full(directory, total or 0, source=wanted.source)


def _check_status(response: httpx.Response, wanted: Download) -> None:
    status = response.status_code
    if status == 200:
        encodings = response.headers.get_list("Content-Encoding")
        check_uncompressed(encodings, url=str(response.url), source=wanted.source)
        return
    where = shown_url(str(response.url))
    if status == 401 and wanted.headers and origin_of(str(response.url)) == origin_of(wanted.url):
        raise invalid_token(where, source=wanted.source)
    if status in (401, 403):
        raise AccessDenied(
            f"{where} answers {status}",
            source=wanted.source,
            hint="Check that the address is still valid and that you may read it",
        )
    if status in (404, 410):
        raise NotFound(f"{where} answers {status}", source=wanted.source, hint="Check the address")
    after = response.headers.get("Retry-After", "")
    raise Unavailable(
        f"{where} answers {status}",
        source=wanted.source,
        hint="Try again later",
        retryable=status in (408, 425, 429) or status >= 500,
        retry_after=float(after) if after.isdecimal() else None,
    )
