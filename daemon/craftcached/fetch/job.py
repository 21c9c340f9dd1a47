"""One fetch, from finding what an earlier run left to handing out the sealed file.

An *attempt* is for one version of the file, in one of two ways: by ranges, or, where the server
has no reliable ones, as one plain answer. When the file at the origin changes during an attempt,
all of it is thrown away before the next begins: bytes of two versions never meet in one file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.amounts import counted
from craftcache.digests import HashedFile
from craftcache.errors import IntegrityError
from craftcache.full_disk import FULL
from craftcache.sources import shown_url

from .faults import BEGIN_AGAIN, Fault, Trouble
from .journal import Identity, PartRecord
from .partial_file import Names, PartialFile, WholeFile, find_record, take_over_xet
from .pieces import Pieces
from .provenance import evidence, wrong_ranges
from .ranges import RangedDownload
from .spans import Span
from .transfer import host_of
from .types import Fetched
from .writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from craftcache.digests import Digests

    from .context import FetchContext, FetchRequest
    from .reply import RangeReply
    from .xet import Xet

__all__ = ["Job"]

log = logging.getLogger("craftcached")

PROBE_BYTES = 1024 * 1024
"""Bytes asked for in the first request, which shows whether the server speaks ranges."""

ROOM_AHEAD_BYTES = 64 * 1024 * 1024
"""Bytes of disk space that are reserved at a time for a body of unknown length."""

MAX_CHANGES = 4
"""Changes of the file at the origin after which the fetch is given up."""

MAX_FILLINGS = 3
"""Times that the disk may fill up under a fetch before it is given up."""

PLAIN_AFTER_CHANGES = 2
"""Changes after which the file is asked for in one answer, which cannot mix versions: some names
belong to several servers that disagree about the validator of the same bytes."""


class Job:
    """Carries out one fetch.

    It has no lock: Engine.fetch holds the lock of the file's key, so that there is one job a key.

    Args:
        request: The file, its claimant and its reporter.
        context: The limits, threads and connections that all downloads share.
    """

    def __init__(self, request: FetchRequest, context: FetchContext) -> None:
        self._request = request
        self._file = request.file
        self._context = context
        self._names = Names.of(context.staging, request.file.key)
        self._plain = request.file.promise.size == 0  # there is no range of an empty file
        self._changes = 0
        self._failures = 0
        self._fillings = 0
        self._xet = context.xet

    async def run(self) -> Fetched:
        """Fetch the file; see Fetcher.fetch for what is raised."""
        context = self._context
        context.mirrors.provenance.begin(self._file)
        try:
            while True:
                try:
                    # Attempts run in task groups, whose ExceptionGroup no except clause here knows.
                    with _sole_error():
                        return await self._taken(await self._attempt())
                # Another attempt may help. It resumes what this one left on the disk, unless
                # _part removed that; when patience ends, _prepare_another raises.
                except Fault as fault:
                    await self._prepare_another(fault)
                # Network errors are Faults by now, so this is the disk: full, or failing.
                except OSError as error:
                    await self._make_room(error)
        finally:
            self._context.space.release(self._file.key)
            context.mirrors.provenance.end(self._file)

    async def _make_room(self, error: OSError) -> None:
        """Have room made on a full disk, so that the fetch goes on where it was, or give up."""
        space, key, source = self._context.space, self._file.key, self._file.source
        self._fillings += 1
        may_go_on = self._fillings <= MAX_FILLINGS
        if may_go_on and await space.recover(key, error, source=source):
            log.info("%s: the disk was full; room is made, and the fetch goes on", source)
            return
        raised = await space.error_for(error, key, source=source)
        # What could be resumed would only keep the disk full.
        await self._context.threads.run(self._names.remove)
        raise raised from error

    async def _attempt(self) -> Fetched:
        record = await self._context.threads.run(self._find_record)
        # Resume: the journal holds size and validator, so no first request has to ask for them.
        if record is not None and not self._plain:
            return await self._by_ranges(record, self._file.url)
        async with self._first_request() as reply:
            # The server ignored the range, or none was asked for: this one answer is the file.
            if reply.is_whole_file:
                return await self._as_one_stream(reply)
            record = self._record_of(reply)
            # The Xet client checks no validator, so only a digest makes its bytes trustworthy. It
            # knows of no mirrors.
            xet = self._xet if reply.is_xet and self._file.promise.digest else None
            if self._request.route.has_mirrors:
                xet = None
            head: list[bytes] = []
            # The first range's bytes are kept, and written once there is a file to write to.
            while xet is None and (chunks := await reply.block()):
                head += chunks
        # Outside the request, whose connection counts against the limits while it is open.
        if xet is not None:
            return await self._by_xet(xet, record)
        if sum(map(len, head)) == record.identity.size:
            return await self._as_it_came(head, reply.etag)
        # Ask where the first request was redirected to: each range saves that round trip.
        return await self._by_ranges(record, reply.url, head)

    @asynccontextmanager
    async def _first_request(self) -> AsyncIterator[RangeReply]:
        """The first request of an attempt that has nothing to resume."""
        request, file = self._request, self._file
        span = None if self._plain else Span(0, request.route.slice_bytes or PROBE_BYTES)
        async with (
            self._context.connections.one(
                host_of(request.route.address(file.url, 0)), request.claimant
            ),
            self._context.transfer.open(
                file, request.route, url=file.url, span=span, etag=None, claimant=request.claimant
            ) as reply,
        ):
            # Before the body is read: gigabytes of a wrong file need not come to be refused.
            total, promised = reply.total, file.promise.size
            if total is not None and promised not in (None, total):
                has = f"{shown_url(reply.url)} has {counted(total, 'byte')}"
                raise Fault(Trouble.CHANGED, f"{has} where the origin promised {promised}")
            yield reply

    def _record_of(self, reply: RangeReply) -> PartRecord:
        """The record to begin with, if this version can be put together from ranges."""
        promise = self._file.promise
        size = promise.size if reply.total is None else reply.total
        # Without a digest or a validator nothing shows whether two ranges are of one version.
        if size is None or (promise.digest is None and reply.etag is None):
            raise Fault(
                Trouble.UNSPLITTABLE, f"{shown_url(reply.url)} says too little about the file"
            )
        return PartRecord(Identity.of(promise, size=size, etag=reply.etag), (), ())

    async def _by_ranges(self, record: PartRecord, url: str, head: Sequence[bytes] = ()) -> Fetched:
        """Fetch the bytes that ``record`` lacks; ``head`` holds the file's first bytes, if any."""
        request, context, present = self._request, self._context, record.present
        size, etag = record.identity.size, record.identity.etag
        reused = sum(span.size for span in present)
        async with self._part(record, size - reused, reused) as part:
            writer = Writer(request, context, part, total=size, present=present)
            async with writer.at_work():
                if head:
                    present = (*present, await writer.put(0, head))
                pieces = Pieces(size, present)
                await RangedDownload(request, context, pieces, writer, etag=etag, url=url).run()
                digests = await writer.finish()
            return await self._sealed(part, digests, etag, reused)

    async def _as_it_came(self, chunks: Sequence[bytes], etag: str | None) -> Fetched:
        """Keep a small file that one answer held whole: there is nothing to resume, no journal."""
        request, context, file = self._request, self._context, self._file
        size = sum(map(len, chunks))
        await context.space.reserve(file.key, size, source=file.source, present=0)
        await context.bandwidth.take(size, request.claimant)
        whole = WholeFile(self._names)
        try:
            # In one call: what takes time with files this small is the way to a thread and back.
            digests, stamp = await context.syncing.run(whole.write, chunks, file.promise)
            context.space.written(file.key, size)
            request.report(size, size)
            await self._check(whole.descriptor, digests)
        except BaseException:
            await context.threads.run(whole.remove)
            raise
        whole.close()
        return Fetched(whole.path, digests, stamp, etag, request.claimant.received, 0)

    async def _by_xet(self, xet: Xet, record: PartRecord) -> Fetched:
        """Let huggingface_hub's own client fetch the file, once; if it fails, HTTP is next."""
        request, context, size = self._request, self._context, record.identity.size
        self._xet = None  # a further attempt goes by HTTP
        await context.space.reserve(self._file.key, size, source=self._file.source, present=0)
        present = 0

        def tell(done: int) -> None:
            nonlocal present
            done = min(done, size)
            context.space.written(self._file.key, done - present)
            present = done
            request.report(done, size)

        try:
            await xet.fetch(self._file, self._names.xet, size, tell)
            if not await context.threads.run(take_over_xet, self._names, size):
                raise Fault(Trouble.LOST, "the Xet client brought too little")
        finally:
            await context.threads.run(self._names.xet.unlink, missing_ok=True)
        # All bytes are present, so none is downloaded, but all are hashed and checked as ever.
        whole = PartRecord(record.identity, (), (Span(0, size),))
        request.claimant.received += size
        fetched = await self._by_ranges(whole, self._file.url)
        return replace(fetched, bytes_reused=0)

    async def _as_one_stream(self, reply: RangeReply) -> Fetched:
        promised = self._file.promise.size
        total = promised if reply.total is None else reply.total
        if total is not None and total <= PROBE_BYTES:
            return await self._as_it_came(await self._whole_body(reply, total), reply.etag)
        async with self._part(None, ROOM_AHEAD_BYTES if total is None else total) as part:
            writer = Writer(self._request, self._context, part, total=total)
            async with writer.at_work():
                position = 0
                while chunks := await reply.block():
                    position = (await writer.put(position, chunks)).stop
                    # Its length is unknown, so its space is reserved as it comes, not at the start.
                    if total is None:
                        await self._context.space.keep_ahead(
                            self._file.key, ROOM_AHEAD_BYTES, source=self._file.source
                        )
                    else:
                        _check_length(reply, position, total)
                if total is not None:
                    _check_length(reply, position, total, has_ended=True)
                digests = await writer.finish()
            return await self._sealed(part, digests, reply.etag, 0)

    async def _whole_body(self, reply: RangeReply, total: int) -> Sequence[bytes]:
        """All bytes of a small body whose length is known."""
        body: list[bytes] = []
        size = 0
        while chunks := await reply.block():
            body += chunks
            size += sum(map(len, chunks))
            _check_length(reply, size, total)
        _check_length(reply, size, total, has_ended=True)
        return body

    def _find_record(self) -> PartRecord | None:
        """What an earlier run left; makes staging anew, for a cache may have been emptied."""
        self._context.staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        return find_record(self._names, self._file.promise, self._context.boot_id)

    @asynccontextmanager
    async def _part(
        self, record: PartRecord | None, needed: int, present: int = 0
    ) -> AsyncIterator[PartialFile]:
        """The open partial file, with disk space reserved; removed if it cannot be resumed."""
        context = self._context
        await context.space.reserve(
            self._file.key, needed, source=self._file.source, present=present
        )
        part = PartialFile(self._names, record, context.boot_id)
        try:
            await context.threads.run(part.open)
            yield part
        except BaseException as error:
            # Without a record the next attempt could not tell which version the bytes are of.
            if record is None or _is_worthless_after(_sole(error)):
                await context.threads.run(self._names.remove)
            raise
        finally:
            await context.threads.run(
                part.close
            )  # frees the space of what was removed: may take long

    async def _sealed(
        self, part: PartialFile, digests: Digests, etag: str | None, reused: int
    ) -> Fetched:
        await self._check(part.descriptor, digests, reused)
        stamp = await self._context.syncing.run(part.seal)
        # After the stamp was taken: what comes later moves the time that it has.
        if not await self._context.threads.run(part.holds, digests):
            raise Fault(Trouble.CHANGED, f"other hands have written to {part.path}")
        return Fetched(part.path, digests, stamp, etag, self._request.claimant.received, reused)

    async def _check(self, descriptor: int, digests: Digests, reused: int = 0) -> None:
        """Raise IntegrityError for a wrong file; of each find out who sent what was wrong."""
        try:
            self._file.promise.check(digests, source=self._file.source)
        except IntegrityError as error:
            if reused:  # the bytes of an earlier run may be the wrong ones: begin without them
                raise Fault(Trouble.CHANGED, error.message) from None
            await self._keep_evidence(descriptor)
            raise
        await self._convict(descriptor)

    async def _keep_evidence(self, descriptor: int) -> None:
        """Note what mirrors have sent of a file that is wrong."""
        provenance, file = self._context.mirrors.provenance, self._file
        sent = provenance.sent(file)
        if any(mirror for mirror, _ in sent):
            kept = await self._context.threads.run(evidence, descriptor, file.attempt, sent)
            provenance.keep(file, kept)

    async def _convict(self, descriptor: int) -> None:
        """Name what was wrong in earlier attempts, now that the bytes are right."""
        mirrors, file = self._context.mirrors, self._file
        if suspects := mirrors.provenance.take(file):
            wrong = await self._context.threads.run(wrong_ranges, descriptor, suspects)
            mirrors.convict(file, wrong)
            self._context.repairs.begin(file, self._request.route, wrong)

    async def _taken(self, sealed: Fetched) -> Fetched:
        """Give the file a name that no later fetch of its key touches; the last step of all."""
        if sealed.path != self._names.part:  # it has one
            return sealed
        threads = self._context.threads
        whole = self._names.new_whole()
        try:
            return await threads.run(_renamed, sealed, whole)
        except asyncio.CancelledError:  # no caller gets the new name: leave the file to its key
            await threads.run(whole.rename, sealed.path)
            raise

    async def _prepare_another(self, fault: Fault) -> None:
        """Wait as the policy says and choose how to try again, or give up."""
        if fault.trouble is Trouble.ELSEWHERE:  # the mirror that failed is left out now
            return
        # A changed file is not the network's failure: it has a count and a limit of its own.
        if fault.trouble in BEGIN_AGAIN:
            self._context.mirrors.provenance.begin(self._file)
            self._changes += 1
            failures = self._changes
            self._plain |= (
                fault.trouble is Trouble.UNSPLITTABLE or self._changes >= PLAIN_AFTER_CHANGES
            )
        else:
            self._failures += 1
            failures = self._failures
        jitter = random.random()  # noqa: S311  # no secret: it only spreads retries out
        wait = self._context.policy.wait(fault, failures, jitter)
        if wait is None or self._changes > MAX_CHANGES:
            raise fault.to_error(self._file.source)
        log.info("%s: %s; next try in %.1f s", self._file.source, fault.message, wait)
        await asyncio.sleep(wait)


def _renamed(sealed: Fetched, whole: Path) -> Fetched:
    """The sealed file under another name."""
    file = HashedFile(sealed.path, sealed.digests, sealed.stamp).named(whole, os.rename)
    return replace(sealed, path=whole, stamp=file.stamp)


def _check_length(reply: RangeReply, size: int, total: int, *, has_ended: bool = False) -> None:
    """Raise a Fault if a body of ``total`` bytes has ``size`` by now, or in the end."""
    if size > total:
        raise Fault(Trouble.CHANGED, f"{shown_url(reply.url)} sends too much")
    if has_ended and size < total:
        raise Fault(Trouble.LOST, f"{shown_url(reply.url)} ended early")


def _is_worthless_after(error: BaseException) -> bool:
    """Whether nothing of a partial file may be used after ``error``."""
    if isinstance(error, Fault):
        return error.trouble in BEGIN_AGAIN
    if isinstance(error, OSError) and error.errno in FULL:
        return False  # Job._make_room decides
    return isinstance(error, IntegrityError | OSError)


@contextmanager
def _sole_error() -> Iterator[None]:
    """Raise the first of a group of errors in the group's place."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _sole(group) from None


def _sole(error: BaseException) -> BaseException:
    """The first error of a group, which the others follow from; or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
