"""The explanation of a load in words: what it would do here; changes and fetches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from craftcache.cache.opened import FileInfo
from craftcache.errors import Unavailable
from craftcache.sources import (
    FILENAMES,
    HubSource,
    LocalDirectory,
    LocalFile,
    UrlSource,
    WatchSource,
    locate,
    wanted_files,
)
from craftcache.wire import Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from craftcache.cache.opened import ServedBy
    from craftcache.daemon.transport import Call
    from craftcache.plan import PlanStep
    from craftcache.sources import RemoteSource, Source
    from craftcache.wire import CachedModel

    from .loader import Loader

__all__ = ["Explanation", "Kind", "explain"]

Kind: TypeAlias = Literal["file", "directory", "url", "hub", "watch"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of what a load of a source would do.

    Attributes:
        source: The source as shown to people.
        kind: Kind of source that the name was taken for.
        steps: Sentences that say what was looked at, in order, and what was found.
        served_by: The server of the files, as in Export; None if the load would fail.
        revision: Revision that would be served; None where only the origin knows it.
        files: The files that would be served, as far as they are known.
    """

    source: str
    kind: Kind
    steps: tuple[str, ...]
    served_by: ServedBy | None
    revision: str | None
    files: tuple[FileInfo, ...]


def explain(loader: Loader, text: str, call: Call) -> Explanation:
    """Explain what ``loader`` would do with ``text``: its plan, and the outcome of each step.

    Raises:
        InvalidSource: ``text`` is not a source.
        NotFound: ``text`` is written as a path, and there is no such file or directory.
    """
    source = locate(text)
    foresight = _Foresight(loader, source, call)
    for step in loader.plan(source):
        if foresight.look(step):
            break
    return foresight.explanation()


class _Foresight:
    """The findings about a load, step by step of its plan; nothing is changed or fetched."""

    def __init__(self, loader: Loader, source: Source, call: Call) -> None:
        self._loader = loader
        self._source = source
        self._call = call
        self._kind, *self._said = _KINDS[type(source)]
        self._served_by: ServedBy | None = None
        self._revision: str | None = None
        self._files: tuple[FileInfo, ...] = ()

    def look(self, step: PlanStep) -> bool:
        """Find the outcome of one step; True if the load would end with it, in success or not.

        An obstacle that several steps share is mentioned once.
        """
        if step.obstacle is not None:
            if step.obstacle not in self._said:
                self._said.append(step.obstacle)
            return False
        match self._source:
            case LocalFile():
                self._served_by = "local"
                return True
            case LocalDirectory() as directory if step.way == "watched directory":
                return self._look_at_watch(directory)
            case LocalDirectory() as directory:
                return self._look_at_directory(directory)
            case HubSource() | UrlSource() | WatchSource() as source:
                return self._look_for(step, source)

    def explanation(self) -> Explanation:
        """The explanation from the findings so far."""
        return Explanation(
            self._source.shown,
            self._kind,
            tuple(self._said),
            self._served_by,
            self._revision,
            self._files,
        )

    def _look_at_watch(self, directory: LocalDirectory) -> bool:
        names = tuple(FILENAMES.values())
        watch = self._loader.watch_of(directory.path, names, self._call)
        if watch is None:
            return False
        self._said.append(
            f"the daemon watches it as {watch}, and serves its last verified generation"
        )
        if (model := self._cached(watch, names)) is not None:
            self._serve("daemon", model.revision, model.files)
        return True

    def _look_at_directory(self, directory: LocalDirectory) -> bool:
        missing = [name for name in FILENAMES.values() if not (directory.path / name).is_file()]
        self._said += [f"{name} is missing in it" for name in missing]
        self._served_by = None if missing else "local"
        return True

    def _look_for(self, step: PlanStep, source: RemoteSource) -> bool:
        names = wanted_files(source)
        resolver = self._loader.fallback_handler.resolver
        match step.way:
            case "daemon":
                return self._look_at_daemon(source, names)
            case "cache":
                if (found := resolver.located(source, names)) is None:
                    places = " nor in ".join(map(str, resolver.places))
                    self._said.append(f"it is not in {places}")
                    return False
                cache, manifest = found
                self._said.append(
                    f"it is cached and verified at revision {manifest.revision}, in {cache.root}"
                )
                files = tuple(map(FileInfo.recorded, manifest.files))
                self._serve("cache", manifest.revision, files)
            case "origin" if isinstance(source, WatchSource):
                self._said.append(_NO_GENERATION)
            case "origin":
                self._said.append(
                    f"this process would fetch and verify it by itself, into {resolver.destination}"
                )
                self._served_by = "origin"
            case _:
                if not all(resolver.path(source, name) for name in names):
                    return False
                self._said.append("huggingface_hub left a copy, which would be verified and used")
                self._served_by = "cache"
        return True

    def _look_at_daemon(self, source: RemoteSource, names: tuple[str, ...]) -> bool:
        try:
            self._loader.handle(Status(), self._call)
        except Unavailable as error:
            self._said.append(error.message)
            return False
        self._said.append(f"the daemon at {self._loader.socket_dir} answers")
        if (model := self._cached(source, names)) is not None:
            self._said.append(f"it is cached and verified at revision {model.revision}")
            if missing := [need.source for need in model.needs if not need.is_cached]:
                self._said.append(f"what it needs is not all cached: {', '.join(missing)}")
            self._serve("daemon", model.revision, model.files)
            return True
        self._said.append("it is not cached")
        if isinstance(source, WatchSource):
            self._said.append(_NO_GENERATION)
        else:
            self._said.append("the daemon would fetch and verify it first")
            self._served_by = "daemon"
        return True

    def _serve(self, served_by: ServedBy, revision: str, files: Iterable[FileInfo]) -> None:
        self._served_by, self._revision, self._files = served_by, revision, tuple(files)

    def _cached(self, source: RemoteSource, names: tuple[str, ...]) -> CachedModel | None:
        for model in self._loader.models(self._call):
            has = {file.filename for file in model.files}
            if model.source == source.shown and has.issuperset(names):
                return model
        return None


_NO_GENERATION = "it can be loaded as soon as the daemon has verified a pair in its directory"

_REMOTE = "no local file or directory has that name"

_KINDS: dict[type[Source], tuple[Kind, str] | tuple[Kind, str, str]] = {
    LocalFile: ("file", "a file of that name exists, so it is loaded as it is"),
    LocalDirectory: (
        "directory",
        "a directory of that name exists, so it wins over a Hub id of the same name",
    ),
    UrlSource: ("url", _REMOTE, "it is a URL"),
    HubSource: ("hub", _REMOTE, "it is a Hugging Face Hub id"),
    WatchSource: ("watch", _REMOTE, "it is a watched export directory"),
}
"""Each kind of source: its name, and the sentences that an explanation begins with."""
