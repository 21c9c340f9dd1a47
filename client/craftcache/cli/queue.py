"""``queue``: the warms that the daemon has promised and not done yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .context import Site, json_option, pass_place
from .output import NOT_KNOWN, print_columns, print_json

if TYPE_CHECKING:
    from craftcache.daemon.administration import QueuedWarm
    from craftcache.wire import WarmOptions

__all__ = ["named", "queue"]


@click.group()
def queue() -> None:
    """List or withdraw queued warms.

    `craftcache warm --detach` queues them. They outlive a restart of the daemon, and what only time
    can mend, like a full disk, is tried again.
    """


@queue.command()
@json_option
@pass_place
def ls(place: Site, *, as_json: bool) -> None:
    """List the queued warms, and how each failed last."""
    queued = place.admin().queued_warms()
    if as_json:
        print_json({"jobs": [job.to_fields() for job in queued]})
        return
    rows = [
        (
            str(job.id),
            job.source,
            _files(job.options),
            str(job.tries),
            job.failure.message if job.failure else NOT_KNOWN,
        )
        for job in queued
    ]
    print_columns(("NUMBER", "SOURCE", "FILES", "FAILURES", "WHY"), rows)


@queue.command()
@click.argument("number", type=click.IntRange(1))
@json_option
@pass_place
def rm(place: Site, number: int, *, as_json: bool) -> None:
    """Withdraw the warm of that NUMBER; what it has fetched by then is not fetched again."""
    job = place.admin().withdraw_warm(number)
    if as_json:
        print_json(named(job))
    else:
        click.echo(f"{job.source}: withdrawn")


def _files(options: WarmOptions) -> str:
    """Which files of its source a warm is for, in a word."""
    if options.lock:
        return f"locked at {options.lock.revision[:12]}"
    excluded = [f"!{pattern}" for pattern in options.exclude]
    return ",".join((*options.filenames, *options.include, *excluded)) or NOT_KNOWN


def named(job: QueuedWarm) -> dict[str, object]:
    """What tells a queued warm from the others, in JSON."""
    return {"id": job.id, "source": job.source}
