"""A repository at the Hub as the origin of files: their commit, digests and addresses."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from craftcache.errors import NotFound
from craftcache.origins.hub import commit_origin
from craftcache.sources import is_commit
from craftcached.fetch import RemoteFile

from .description import DescribedFile, Description, HubBlob
from .tasks import all_results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.origins.hub import HubFile, Listing
    from craftcache.sources import HubSource

    from .hub import Hub, HubSite

__all__ = ["HubOrigin"]


class HubOrigin:
    """A repository at the Hub; an Origin.

    Args:
        source: The repository.
        hub: The Hub.
    """

    def __init__(self, source: HubSource, hub: Hub) -> None:
        self._source = source
        self._hub = hub

    async def describe(
        self,
        filenames: Sequence[str],
        *,
        known: Manifest | None,
        refresh: bool,
        commit: str = "",
    ) -> Description:
        """See Origin.describe. Only the first question names the revision, the others its commit.

        So all files are of one commit, even if the revision moves between two answers. What a
        published name means is the Hub's own word only; of files that are missing of a published
        commit, as of what is not published, a mirror's is taken where the Hub cannot be asked.
        """

        async def questions(site: HubSite) -> Description:
            return await self._describe_at(site, filenames, known, refresh=refresh, commit=commit)

        return await self._hub.ask(self._source, questions, of_mirrors=known is None or not refresh)

    async def _describe_at(
        self,
        site: HubSite,
        filenames: Sequence[str],
        known: Manifest | None,
        *,
        refresh: bool,
        commit: str,
    ) -> Description:
        source = self._source
        revision = commit or (source.revision if refresh or known is None else known.revision)
        first = await site.describe(source, filenames[0], revision)
        # A mirror is asked for a file by its commit, so it must know the file under that as well.
        if site.mirror is not None and first.commit != revision:
            first = await site.describe(source, filenames[0], first.commit)
        rest = await all_results(
            site.describe(source, name, first.commit) for name in filenames[1:]
        )
        found = [first, *rest]
        if known is not None and refresh:
            found += await self._describe_others(site, known, filenames, first.commit)
        is_mirrors = site.mirror is not None
        return Description(
            source,
            tuple(self._described(file, known, is_mirrors=is_mirrors) for file in found),
            first.commit,
            # If not asked for just now, the revision may have moved on since the commit was known.
            is_named=revision == source.revision,
            mirror=commit_origin(site.api.endpoint, source, first.commit) if is_mirrors else "",
        )

    async def filenames(self) -> tuple[str, ...]:
        """See Origin.filenames."""
        source = self._source
        return await self._hub.ask(source, lambda site: site.filenames(source), of_mirrors=True)

    async def listing(self, revision: str, /) -> Listing:
        """See Origin.listing."""
        source = self._source
        # A commit's files are the same wherever they are listed; what a name means the Hub says.
        return await self._hub.ask(
            source, lambda site: site.listing(source, revision), of_mirrors=is_commit(revision)
        )

    def shown(self, commit: str) -> str:
        """See Origin.shown."""
        return commit_origin(self._hub.endpoint, self._source, commit)

    async def _describe_others(
        self, site: HubSite, known: Manifest, filenames: Sequence[str], commit: str
    ) -> list[HubFile]:
        """The published files that are not asked for now, if the new commit still has them."""
        found = []
        for record in known.files:
            if record.filename not in filenames:
                with contextlib.suppress(NotFound):
                    found.append(await site.describe(self._source, record.filename, commit))
        return found

    def _described(
        self, file: HubFile, known: Manifest | None, *, is_mirrors: bool
    ) -> DescribedFile:
        record = known.file(file.filename) if known else None
        remote = RemoteFile(
            source=self._source.shown,
            url=file.url,
            promise=file.promise,
            key=file.etag,
            headers=self._hub.headers(self._source),
            is_origin_away=is_mirrors,
        )
        return DescribedFile(
            file.filename,
            remote,
            HubBlob(self._source, file.etag),
            record if record and record.etag == file.etag else None,
        )
