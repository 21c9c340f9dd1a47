"""What a load would do here, in plain words; changes nothing and fetches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

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

if TYPE_CHECKING:
    from craftcache.cache.opened import FileInfo, ServedBy
    from craftcache.daemon.client import CachedModel
    from craftcache.daemon.transport import Cancellation
    from craftcache.sources import RemoteSource, Source

    from .loader import Loader

__all__ = ["Explanation", "Kind", "explain"]

Kind: TypeAlias = Literal["file", "directory", "url", "hub", "watch"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a load of a source would do.

    Attributes:
        source: As shown.
        kind: What the name was taken for.
        steps: What was looked at, in order, and what was found.
        served_by: Who would serve it; None where it could not be had.
        revision: That would be served; None where that is only known after asking the origin.
        files: What is known of the files that would be served.
    """

    source: str
    kind: Kind
    steps: tuple[str, ...]
    served_by: ServedBy | None
    revision: str | None
    files: tuple[FileInfo, ...]


def explain(loader: Loader, text: str, *, cancellation: Cancellation) -> Explanation:
    """Explain what ``loader`` would do with ``text``.

    Raises:
        InvalidSource: It is no source.
        NotFound: It is written as a path and nothing is there.
    """
    source = locate(text)
    match source:
        case LocalFile():
            return _explain_file(source)
        case LocalDirectory():
            return _explain_directory(loader, source, cancellation)
        case _:
            return _explain_remote(loader, source, cancellation)


def _explain_file(source: LocalFile) -> Explanation:
    steps = ["a file of that name exists, so it is loaded as it is"]
    return Explanation(str(source), "file", tuple(steps), "local", None, ())


def _explain_directory(
    loader: Loader, source: LocalDirectory, cancellation: Cancellation
) -> Explanation:
    steps = ["a directory of that name exists, so it wins over a Hub id of the same name"]
    names = tuple(FILENAMES.values())
    if watch := loader.watch_of(source.path, names, cancellation=cancellation):
        steps.append(f"the daemon watches it as {watch}, and serves its last verified generation")
        model = _cached(loader.models(cancellation=cancellation), watch, names)
        return Explanation(
            str(source),
            "directory",
            tuple(steps),
            "daemon" if model else None,
            model.revision if model else None,
            model.files if model else (),
        )
    missing = [name for name in FILENAMES.values() if not (source.path / name).is_file()]
    steps += [f"{name} is missing in it" for name in missing]
    return Explanation(
        str(source), "directory", tuple(steps), None if missing else "local", None, ()
    )


def _explain_remote(
    loader: Loader, source: RemoteSource, cancellation: Cancellation
) -> Explanation:
    steps = ["no local file or directory has that name", _WHAT[type(source)]]
    names = wanted_files(source)
    try:
        loader.status(cancellation=cancellation)
        has_daemon = True
        steps.append(f"the daemon at {loader.socket_dir} answers")
    except Unavailable as error:
        has_daemon = False
        steps.append(error.message)
    model = _cached(loader.models(cancellation=cancellation), source, names)
    if model is not None:
        steps.append(f"it is cached and verified at revision {model.revision}")
        if missing := [need.source for need in model.needs if not need.is_cached]:
            steps.append(f"what it needs is not all cached: {', '.join(missing)}")
        if not has_daemon and (obstacle := loader.obstacle(is_cached=True)):
            steps.append(obstacle)
            return _explanation(source, steps, None, None)
        served_by: ServedBy | None = "daemon" if has_daemon else "cache"
        return _explanation(source, steps, served_by, model)
    steps.append("it is not cached" if has_daemon else f"it is not in {loader.cache_dir}")
    if isinstance(source, WatchSource):
        steps.append("it can be loaded as soon as the daemon has verified a pair in its directory")
        return _explanation(source, steps, None, None)
    if has_daemon:
        steps.append("the daemon would fetch and verify it first")
        return _explanation(source, steps, "daemon", None)
    obstacle = loader.obstacle(is_cached=False)
    if obstacle is None:
        steps.append("this process would fetch and verify it by itself")
        return _explanation(source, steps, "origin", None)
    steps.append(obstacle)
    if loader.obstacle(is_cached=True) is None and loader.has_unverified(source, names):
        steps.append("huggingface_hub left a copy, which would be verified and used")
        return _explanation(source, steps, "cache", None)
    return _explanation(source, steps, None, None)


_WHAT: dict[type[Source], str] = {
    UrlSource: "it is a URL",
    HubSource: "it is a Hugging Face Hub id",
    WatchSource: "it is a watched export directory",
}

_KINDS: dict[type[Source], Kind] = {UrlSource: "url", HubSource: "hub", WatchSource: "watch"}


def _cached(
    models: list[CachedModel], source: RemoteSource, names: tuple[str, ...]
) -> CachedModel | None:
    for model in models:
        if model.source == source.shown and {f.filename for f in model.files}.issuperset(names):
            return model
    return None


def _explanation(
    source: RemoteSource, steps: list[str], served_by: ServedBy | None, model: CachedModel | None
) -> Explanation:
    return Explanation(
        source.shown,
        _KINDS[type(source)],
        tuple(steps),
        served_by,
        model.revision if model else None,
        model.files if model else (),
    )
