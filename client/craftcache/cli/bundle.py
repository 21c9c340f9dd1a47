"""``lock`` and ``bundle``: exactly these models again, on this node or where no network is."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from craftcache.amounts import counted, size_text
from craftcache.cache.directory import CacheDir
from craftcache.errors import CraftcacheError, NotFound, Unavailable
from craftcache.full_disk import FULL, storage_full

from .context import Site, json_option, pass_place
from .output import print_json, short_revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from craftcache.bundle import Closure
    from craftcache.locked import LockedRevision

__all__ = ["lock", "bundle", "read_lock"]


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@json_option
@pass_place
def lock(place: Site, sources: tuple[str, ...], *, as_json: bool) -> None:  # noqa: ARG001  # it is JSON
    """Print a lock of models: commits, sha256s, what they need.

    `craftcache warm --locked FILE` then brings exactly these, whatever the origins have by then.
    """
    from craftcache.bundle import find_closure

    closure = find_closure(_cache(place), sources)
    click.echo(closure.lock.dump(), nl=False)
    _warn(closure)


@click.group()
def bundle() -> None:
    """Carry models to machines without a network.

    A bundle is a tar file with a lock and all files that it names. Every byte is hashed when it is
    made and when it is imported.
    """


@bundle.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, writable=True))
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@json_option
@pass_place
def create(place: Site, file: Path, sources: tuple[str, ...], *, as_json: bool) -> None:
    """Write models of the cache, and all that they need, to FILE."""
    from craftcache.bundle import find_closure, write_bundle

    cache = _cache(place)
    closure = find_closure(cache, sources)
    with _file_errors(file):
        size = write_bundle(file, closure, cache)
    if as_json:
        print_json({"file": file, "bytes": size, "models": list(closure.manifests)})
    else:
        click.echo(f"{file}: {counted(len(closure.manifests), 'model')}, {size_text(size)}")
    _warn(closure)


@bundle.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@json_option
@pass_place
def import_(place: Site, file: Path, *, as_json: bool) -> None:
    """Bring the models of FILE into the cache: by the daemon, or without it by this process."""
    from craftcache.bundle import import_bundle

    try:
        models = [(each.source, each.revision) for each in place.admin().import_bundle(file)]
    except Unavailable:
        with _file_errors(file), file.open("rb") as stream:
            imported = import_bundle(stream, CacheDir(place.chosen_cache_dir()))
        models = [(manifest.source, manifest.revision) for manifest in imported]
    if as_json:
        print_json({"models": [{"source": name, "revision": at} for name, at in models]})
        return
    for source, revision in models:
        click.echo(f"{source}: imported at {short_revision(revision)}")


def read_lock(file: Path, sources: Iterable[str]) -> dict[str, LockedRevision]:
    """What ``warm --locked`` warms: for each source its locked revision."""
    from craftcache.bundle import LockFile

    try:
        found = LockFile.parse(file.read_bytes(), name=str(file))
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}", hint="Check its name") from error
    chosen = found.only(sources) if sources else found
    return {model.source.shown: model.lock for model in chosen.models}


@contextlib.contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """A context in which what a file system refuses is said as an error of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise storage_full(file.parent, 0, error=error) from error
        raise CraftcacheError(
            f"{error.filename or file}: {error.strerror or error}",
            hint="Check the path, and whether this user may read and write there",
        ) from error


def _cache(place: Site) -> CacheDir:
    """The cache that is read: the one that was named, else the daemon's, else the usual one."""
    if place.cache_dir is None:
        try:
            return CacheDir(Path(place.client().status().cache_dir))
        except Unavailable:
            pass
    return CacheDir(place.chosen_cache_dir())


def _warn(closure: Closure) -> None:
    """Name what the models need and no lock can hold."""
    for manifest in closure.manifests.values():
        for unmet in manifest.unmet:
            said = f"{manifest.source} needs {unmet.what}, which is not in it. {unmet.hint}"
            click.echo(said, err=True)
