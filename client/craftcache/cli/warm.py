"""``warm``: bring sources into the cache before anybody needs them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from craftcache.errors import CraftcacheError, Unavailable
from craftcache.sources import parse, wanted_files

from .context import Place, exit_code, json_option, pass_place, show_error
from .output import print_json, short_revision, size_text
from .progress import make_display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craftcache import AsyncClient
    from craftcache.node import CachedModel, WarmedModel
    from craftcache.sources import RemoteSource

    from .progress import Display

__all__ = ["warm"]

AT_ONCE = 8
"""Sources asked for at the same time; the daemon shares its connections among them."""


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--file",
    "filenames",
    multiple=True,
    metavar="NAME",
    help="This file of each source instead of the export's pair; may be given again.",
)
@click.option("--resident", is_flag=True, help="Bring it into memory too, as far as there is room.")
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
    place: Place,
    sources: tuple[str, ...],
    filenames: tuple[str, ...],
    timeout: float | None,
    *,
    resident: bool,
    detach: bool,
    check: bool,
    as_json: bool,
) -> None:
    """Bring each SOURCE to its newest revision.

    All are tried; failures are listed last.
    """
    if detach and check:
        raise click.UsageError("--detach and --check exclude each other")
    if timeout is not None and (detach or check):
        raise click.UsageError("--timeout is for a warm that is waited for")
    if check and resident:
        raise click.UsageError("--check and --resident exclude each other")
    if check:
        _check(place, sources, filenames, as_json=as_json)
    elif detach:
        _detach(place, sources, filenames, resident=resident, as_json=as_json)
    else:
        _warm(place, sources, filenames, timeout, resident=resident, as_json=as_json)


def _warm(
    place: Place,
    sources: Sequence[str],
    filenames: Sequence[str],
    timeout: float | None,
    *,
    resident: bool,
    as_json: bool,
) -> None:
    with make_display(quiet=as_json) as display:
        outcomes = asyncio.run(
            _warm_all(place, sources, filenames, timeout, display, resident=resident)
        )
    errors = [outcome for outcome in outcomes if isinstance(outcome, CraftcacheError)]
    warmed = [outcome for outcome in outcomes if not isinstance(outcome, CraftcacheError)]
    if as_json:
        print_json({"results": warmed})
    for model in () if as_json else warmed:
        click.echo(
            f"{model.source}: warm at {short_revision(model.revision)}, "
            f"{size_text(model.bytes_fetched)} fetched, {size_text(model.bytes_reused)} reused, "
            f"by {model.served_by}"
        )
        if resident:
            click.echo(f"{model.source}: {_resident_text(model)}")
    for error in errors:
        show_error(error, as_json=as_json)
    if errors:
        raise SystemExit(exit_code(*errors))


async def _warm_all(
    place: Place,
    sources: Sequence[str],
    filenames: Sequence[str],
    timeout: float | None,
    display: Display,
    *,
    resident: bool,
) -> list[WarmedModel | CraftcacheError]:
    """What became of each source, in order; what is cut off by ``timeout`` is a failure."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def warm_one(client: AsyncClient, source: str) -> WarmedModel | CraftcacheError:
        try:
            async with turns:
                [model] = await client.warm(
                    [source], filenames=filenames, resident=resident, on_progress=display.report
                )
        except CraftcacheError as error:
            return error
        return model

    async with place.async_client() as client:
        tasks = [asyncio.create_task(warm_one(client, source)) for source in sources]
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return [
        _too_late(source, timeout) if task in late else task.result()
        for source, task in zip(sources, tasks, strict=True)
    ]


def _resident_text(model: WarmedModel) -> str:
    if model.resident_bytes is None:
        return "how much of it is in memory is not known"
    size = model.bytes_fetched + model.bytes_reused
    found = f"{size_text(model.resident_bytes)} of {size_text(size)} in memory"
    return found if model.resident_bytes >= size else f"{found}; there is no room for more"


def _too_late(source: str, timeout: float | None) -> Unavailable:
    return Unavailable(
        f"not warm after {timeout:g} s",
        source=parse(source).shown,
        hint="Try again, or leave it to the daemon with --detach",
    )


def _detach(
    place: Place,
    sources: Sequence[str],
    filenames: Sequence[str],
    *,
    resident: bool,
    as_json: bool,
) -> None:
    jobs = place.admin().queue_warm(sources, filenames, resident=resident)
    if as_json:
        print_json({"jobs": jobs})
        return
    for job in jobs:
        click.echo(f"{job.source}: queued")


def _check(
    place: Place, sources: Sequence[str], filenames: Sequence[str], *, as_json: bool
) -> None:
    models = {model.source: model for model in place.client().models()}
    answers = [
        (source.shown, _is_warm(models, source, filenames)) for source in map(parse, sources)
    ]
    if as_json:
        print_json({"results": [{"source": shown, "warm": is_warm} for shown, is_warm in answers]})
    for shown, is_warm in () if as_json else answers:
        click.echo(f"{shown}: {'warm' if is_warm else 'not warm'}")
    if not all(is_warm for _, is_warm in answers):
        raise SystemExit(1)


def _is_warm(
    models: dict[str, CachedModel], source: RemoteSource, filenames: Sequence[str]
) -> bool:
    model = models.get(source.shown)
    files = {file.filename for file in model.files} if model else set()
    return files.issuperset(wanted_files(source, filenames))
