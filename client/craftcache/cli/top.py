"""``top``: what the daemon does, live."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from craftcache.amounts import counted, size_text

from .context import Site, json_option, pass_place, until_interrupted
from .output import print_json_line, span_text
from .processes import HEADER, process_rows, processes_of
from .status import COMING, NOT_WARM, coming_rows, not_warm_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from craftcache.daemon.activity import Activity
    from craftcache.daemon.admin import AdminClient
    from craftcache.daemon.processes import ModelProcess
    from craftcache.wire import DaemonStatus

__all__ = ["top"]

DETAILS_EVERY = 5
"""Refreshes after which processes, and why models are not warm, are asked for again: they change
seldom, and cost more."""


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two refreshes.",
)
@click.option("--count", type=click.IntRange(1), help="End after so many refreshes.")
@json_option
@pass_place
def top(place: Site, interval: float, count: int | None, *, as_json: bool) -> None:
    """Show live what comes, what does not come, and who uses what.

    Where stdout is no terminal each refresh is printed below the one before; with --json each is
    one line of JSON.
    """
    with until_interrupted():
        if as_json:
            for activity in _refreshes(place.admin(), interval, count):
                print_json_line(activity.to_fields())
        else:
            _show(place, interval, count)


def _show(place: Site, interval: float, count: int | None) -> None:
    from rich.console import Console
    from rich.live import Live

    console, admin, client = Console(), place.admin(), place.client()
    with Live(console=console, auto_refresh=False, screen=sys.stdout.isatty()) as live:
        before: Activity | None = None
        processes: list[ModelProcess] = []
        status: DaemonStatus
        for number, activity in enumerate(_refreshes(admin, interval, count)):
            if number % DETAILS_EVERY == 0:
                processes = processes_of(admin)
                status = client.status()
            shown = _screen(activity, before, status, processes)
            if console.is_terminal:
                live.update(shown, refresh=True)
            else:
                console.print(shown)
            before = activity


def _refreshes(admin: AdminClient, interval: float, count: int | None) -> Iterator[Activity]:
    number = 0
    while True:
        yield admin.activity()
        number += 1
        if number == count:
            return
        time.sleep(interval)


def _screen(
    activity: Activity,
    before: Activity | None,
    status: DaemonStatus,
    processes: list[ModelProcess],
) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    head = _head(activity, before, status.not_warm_count)
    return Group(
        *(Text(line, no_wrap=True, overflow="ellipsis") for line in head),
        Text(),
        _table(COMING, coming_rows(activity.coming)),
        Text(),
        _table(NOT_WARM, not_warm_rows(status.not_warm, activity.at)),
        Text(),
        _table(HEADER, process_rows(processes)),
    )


def _head(activity: Activity, before: Activity | None, not_warm: int) -> Iterator[str]:
    up = span_text(activity.at - activity.started_at)
    yield (
        f"up {up}; {counted(activity.connections, 'connection')}, "
        f"{counted(activity.processes, 'process')}; "
        f"{len(activity.coming)} coming, {activity.queued} queued, {not_warm} not warm"
    )
    loads = activity.hits + activity.misses
    yield (
        f"loads: {loads} ({counted(activity.hits, 'hit')}{_rate(activity, before)}), "
        f"{size_text(activity.bytes_served)} served; {activity.refusals} refused; "
        f"{size_text(activity.bytes_fetched)} fetched; "
        f"{activity.evictions} removed to make room"
    )


def _rate(activity: Activity, before: Activity | None) -> str:
    if before is None or activity.at <= before.at or activity.started_at != before.started_at:
        return ""
    return f", {(activity.hits - before.hits) / (activity.at - before.at):.0f}/s"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
