"""``queue``: the warms that the daemon has promised and not done yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .context import CommandPlace, json_option, pass_place
from .output import NOT_KNOWN, print_columns, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["queue"]


@click.group()
def queue() -> None:
    """List or withdraw queued warms.

    `craftcache warm --detach` queues them. They outlive a restart of the daemon, and what only time
    can mend, like a full disk, is tried again.
    """


@queue.command()
@json_option
@pass_place
def ls(place: CommandPlace, *, as_json: bool) -> None:
    """List the queued warms, and how each failed last."""
    answer = place.admin().queued_warms()
    if as_json:
        print_json(answer)
        return
    rows = [
        (str(job["id"]), job["source"], _files(job), str(job["tries"])) for job in answer["jobs"]
    ]
    print_columns(("NUMBER", "SOURCE", "FILES", "FAILURES"), rows)
    for job in answer["jobs"]:
        if job["failure"]:
            click.echo(f"{job['source']}: {job['failure']['detail']}", err=True)


@queue.command()
@click.argument("number", type=click.IntRange(1))
@json_option
@pass_place
def rm(place: CommandPlace, number: int, *, as_json: bool) -> None:
    """Withdraw the warm of that NUMBER; what it has fetched by then is not fetched again."""
    job = place.admin().withdraw_warm(number)
    if as_json:
        print_json(job)
    else:
        click.echo(f"{job.source}: withdrawn")


def _files(job: Mapping[str, Any]) -> str:
    return ",".join(job["files"]) or NOT_KNOWN
