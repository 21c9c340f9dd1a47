"""``warm``: bring sources into the cache before anybody needs them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from craftcache.amounts import size_text
from craftcache.errors import CraftcacheError, Unavailable
from craftcache.sources import HubSource, parse, wanted_files
from craftcache.wire import WarmOptions

from .bundle import read_lock
from .context import Site, exit_code, json_option, pass_place, show_error
from .durations import as_seconds
from .output import moment_text, print_json, short_revision
from .progress import make_display
from .queue import named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from craftcache import AsyncClient
    from craftcache.dependencies import UnmetDependency
    from craftcache.locked import LockedRevision
    from craftcache.sources import RemoteSource
    from craftcache.wire import CachedModel, WarmedModel, WarmKeywords

    from .progress import Display

__all__ = ["warm"]

AT_ONCE = 8
"""Sources asked for at the same time; the daemon shares its connections among them."""


@click.command()
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option(
    "--file",
    "filenames",
    multiple=True,
    metavar="NAME",
    help="This file of each source instead of the export's pair; may be given again.",
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="All files of each Hub repository that match, like '*.safetensors'; may be given again.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="None that match; alone it means all other files of the repository.",
)
@click.option(
    "--locked",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Exactly the commits and sha256s of a lock, of all its models or of each SOURCE.",
)
@click.option("--resident", is_flag=True, help="Bring it into memory too, as far as there is room.")
@click.option(
    "--pair-only",
    is_flag=True,
    help="Leave out what the model needs beyond its own files: text encoder, codec ...",
)
@click.option(
    "--refresh/--no-refresh",
    default=True,
    help="Ask the origin for a newer revision, or be content with what was warmed last.",
)
@click.option(
    "--hold",
    callback=as_seconds,
    default="0",
    metavar="TIME",
    help="Let it not be removed to make room for so long, like 4h: a job that starts finds it.",
)
@click.option("--detach", is_flag=True, help="Queue it with the daemon and do not wait.")
@click.option("--check", is_flag=True, help="Only answer, by the exit code, whether all is warm.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Give up after so long, with exit code 75.",
)
@json_option
@pass_place
def warm(
    place: Site,
    sources: tuple[str, ...],
    timeout: float | None,
    locked: Path | None,
    *,
    detach: bool,
    check: bool,
    as_json: bool,
    **options: Unpack[WarmKeywords],
) -> None:
    """Bring each SOURCE to its newest revision, and what it needs.

    All are tried; failures are listed last. What a model needs and no cache can hold is named.
    """
    if detach and check:
        raise click.UsageError("--detach and --check exclude each other")
    if timeout is not None and (detach or check):
        raise click.UsageError("--timeout is for a warm that is waited for")
    if not sources and locked is None:
        raise click.UsageError("Missing argument 'SOURCE...'")
    wanted = WarmOptions.of(options)
    if check and (wanted.resident or wanted.hold):
        raise click.UsageError("--check only asks, so it excludes --resident and --hold")
    if check and wanted.selection:
        raise click.UsageError("--check is for named files; warm --no-refresh asks nobody either")
    wants = [(source, wanted) for source in sources]
    if locked is not None:
        locks = read_lock(locked, sources).items()
        wants = [(source, replace(wanted, lock=lock)) for source, lock in locks]
    if check:
        _check(place, wants, as_json=as_json)
    elif detach:
        _detach(place, wants, as_json=as_json)
    else:
        _warm(place, wants, timeout, as_json=as_json)


def _warm(
    place: Site,
    wants: Sequence[tuple[str, WarmOptions]],
    timeout: float | None,
    *,
    as_json: bool,
) -> None:
    with make_display(quiet=as_json) as display:
        outcomes, cached = asyncio.run(_warm_all(place, wants, timeout, display))
    errors = [outcome for outcome in outcomes if isinstance(outcome, CraftcacheError)]
    warmed = [outcome for outcome in outcomes if not isinstance(outcome, CraftcacheError)]
    if as_json:
        print_json({"results": [_document(model, cached.get(model.source)) for model in warmed]})
    for model in () if as_json else warmed:
        click.echo(
            f"{model.source}: warm at {short_revision(model.revision)}, "
            f"{size_text(model.bytes_fetched)} fetched, {size_text(model.bytes_reused)} reused, "
            f"by {model.served_by}"
        )
        if any(wanted.resident for _, wanted in wants):
            click.echo(f"{model.source}: {_resident_text(model)}")
        if any(wanted.hold for _, wanted in wants):
            click.echo(f"{model.source}: {_hold_text(model)}")
        for unmet in _unmet(cached.get(model.source)):
            click.echo(f"{model.source} needs {unmet.what}, which cannot be warmed. {unmet.hint}")
    for error in errors:
        show_error(error, as_json=as_json)
    if errors:
        raise SystemExit(exit_code(*errors))


def _document(model: WarmedModel, cached: CachedModel | None) -> dict[str, object]:
    return asdict(model) | {"needs": cached.needs if cached else (), "unmet": _unmet(cached)}


def _unmet(cached: CachedModel | None) -> tuple[UnmetDependency, ...]:
    return cached.unmet if cached else ()


async def _warm_all(
    place: Site,
    wants: Sequence[tuple[str, WarmOptions]],
    timeout: float | None,
    display: Display,
) -> tuple[list[WarmedModel | CraftcacheError], dict[str, CachedModel]]:
    """What became of each source, in order, and what is cached then, by source.

    What is cut off by ``timeout`` is a failure.
    """
    turns = asyncio.Semaphore(AT_ONCE)

    async def warm_one(
        client: AsyncClient, source: str, wanted: WarmOptions
    ) -> WarmedModel | CraftcacheError:
        try:
            async with turns:
                [model] = await client.warm(
                    [source],
                    on_progress=display.report,
                    **wanted.to_keywords(),
                )
        except CraftcacheError as error:
            return error
        return model

    async with place.async_client() as client:
        tasks = [asyncio.create_task(warm_one(client, *want)) for want in wants]
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        outcomes = [
            _too_late(source, timeout) if task in late else task.result()
            for (source, _), task in zip(wants, tasks, strict=True)
        ]
        is_any_warm = not all(isinstance(outcome, CraftcacheError) for outcome in outcomes)
        cached = {model.source: model for model in await client.models()} if is_any_warm else {}
    return outcomes, cached


def _resident_text(model: WarmedModel) -> str:
    if model.resident_bytes is None:
        return "how much of it is in memory is not known"
    size = model.bytes_fetched + model.bytes_reused
    found = f"{size_text(model.resident_bytes)} of {size_text(size)} in memory"
    return found if model.resident_bytes >= size else f"{found}; there is no room for more"


def _hold_text(model: WarmedModel) -> str:
    if model.held_until is None:
        return "not held; only a daemon of this release holds models"
    return f"held until {moment_text(model.held_until)}"


def _too_late(source: str, timeout: float | None) -> Unavailable:
    return Unavailable(
        f"not warm after {timeout:g} s",
        source=parse(source).shown,
        hint="Try again, or leave it to the daemon with --detach",
    )


def _detach(place: Site, wants: Sequence[tuple[str, WarmOptions]], *, as_json: bool) -> None:
    admin, grouped = place.admin(), groupby(wants, lambda want: want[1])
    jobs = [
        job
        for wanted, group in grouped
        for job in admin.queue_warm([source for source, _ in group], wanted)
    ]
    if as_json:
        print_json({"jobs": list(map(named, jobs))})
        return
    for job in jobs:
        click.echo(f"{job.source}: queued")


def _check(place: Site, wants: Sequence[tuple[str, WarmOptions]], *, as_json: bool) -> None:
    models = {model.source: model for model in place.client().models()}
    parsed = [(parse(source), wanted) for source, wanted in wants]
    missing = {source.shown: _missing(models, source, wanted) for source, wanted in parsed}
    if as_json:
        results = [
            {"source": shown, "warm": not lacks, "missing": lacks}
            for shown, lacks in missing.items()
        ]
        print_json({"results": results})
    for shown, lacks in () if as_json else missing.items():
        click.echo(f"{shown}: {'not warm, lacks ' + ', '.join(lacks) if lacks else 'warm'}")
    if any(missing.values()):
        raise SystemExit(1)


def _missing(
    models: dict[str, CachedModel], source: RemoteSource, wanted: WarmOptions
) -> list[str]:
    """What is not cached of a source and, unless the pair is enough, of what it needs."""
    model = models.get(source.shown)
    if wanted.lock is not None:
        return _lacking(model, wanted.lock)
    files = {file.filename for file in model.files} if model else set()
    missing = [name for name in wanted_files(source, wanted.filenames) if name not in files]
    if model is not None and not wanted.pair_only:
        missing += [need.source for need in model.needs if not need.is_cached]
    return missing


def _lacking(model: CachedModel | None, lock: LockedRevision) -> list[str]:
    """What a cached model lacks to be the locked one."""
    digests = {file.filename: file.sha256 or "" for file in model.files} if model else {}
    lacks = [entry.filename for entry in lock.files if digests.get(entry.filename) != entry.sha256]
    is_other = model is not None and not lock.is_met_by(
        model.revision, digests, has_commits=isinstance(parse(model.source), HubSource)
    )
    return lacks or ([f"revision {lock.revision}"] if is_other else [])
