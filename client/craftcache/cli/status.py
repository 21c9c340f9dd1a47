"""``status``: what is warm, what is coming, what is not warm and why, and what is wrong."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from craftcache.amounts import counted, size_text

from .context import Site, json_option, pass_place
from .output import (
    NOT_KNOWN,
    aligned,
    print_columns,
    print_json,
    short_revision,
    span_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from craftcache.wire import Coming, DaemonStatus, GpuReport, NotWarm

__all__ = ["NOT_WARM", "coming_rows", "not_warm_rows", "status"]

COMING = ("SOURCE", "STATE", "DONE", "RATE", "LEFT")

ALL = "craftcache status --all"

NOT_WARM = ("SOURCE", "SINCE", "WHY")


@click.command()
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="List all that comes and all that is not warm, not only 16 of each.",
)
@json_option
@pass_place
def status(place: Site, *, everything: bool, as_json: bool) -> None:
    """Say what is warm, what comes, what does not and why.

    What is listed as not warm and nobody wants any more, `craftcache rm` takes off the list.
    """
    report = place.client().status()
    if everything:
        admin = place.admin()
        coming, not_warm = admin.activity().coming, tuple(admin.not_warm())
        counts = len(coming), len(not_warm)
    else:
        coming, not_warm = report.coming, report.not_warm
        counts = report.requests, report.not_warm_count
    if as_json:
        listed = {
            "coming": [each.to_fields() for each in coming],
            "not_warm": [each.to_fields() for each in not_warm],
        }
        print_json(report.to_document() | (listed if everything else {}))
        return
    now = time.time()
    for line in _head(report, now):
        click.echo(line)
    _table(f"COMING ({_of(len(coming), counts[0], ALL)})", COMING, coming_rows(coming))
    _print_not_warm(not_warm, counts[1], now)
    warm = [
        (
            model.source,
            short_revision(model.revision),
            size_text(model.size),
            f"{span_text(now - model.used_at)} ago",
            "pinned" if model.is_pinned else "",
        )
        for model in report.recent
    ]
    title = f"WARM ({_of(len(warm), report.models, 'craftcache ls')})"
    _table(title, ("SOURCE", "REVISION", "SIZE", "USED", ""), warm)
    for gpu in report.gpus:
        _print_gpu(gpu)
    if report.problems:
        click.echo("\nWRONG")
        for problem in report.problems:
            click.echo(f"  {problem}")


def coming_rows(coming: Sequence[Coming]) -> list[tuple[str, ...]]:
    """What is being brought, for a table with the columns of COMING."""
    return [
        (
            each.source,
            each.state,
            f"{size_text(each.done)} of {size_text(each.total)}"
            if each.total is not None
            else NOT_KNOWN,
            f"{size_text(each.bytes_per_second)}/s"
            if each.bytes_per_second is not None
            else NOT_KNOWN,
            span_text(each.seconds_left) if each.seconds_left is not None else NOT_KNOWN,
        )
        for each in coming
    ]


def not_warm_rows(not_warm: Sequence[NotWarm], now: float) -> list[tuple[str, ...]]:
    """What is not warm, for a table with the columns of NOT_WARM."""
    return [(each.source, _when(each, now), f"{each.code}: {each.message}") for each in not_warm]


def _head(report: DaemonStatus, now: float) -> Iterator[str]:
    up = span_text(now - report.started_at)
    yield f"craftcached {report.version}, up {up}, pid {report.pid}, on {report.socket_dir}"
    memory = (
        "" if report.resident_bytes is None else f", {size_text(report.resident_bytes)} in memory"
    )
    models = f"{counted(report.models, 'model')}, {size_text(report.bytes)}{memory}"
    yield f"cache:     {models}, in {report.cache_dir}"
    yield f"room:      {_room(report)}"
    asked_with = "has a Hub token"
    if not report.has_token:
        place = f"; for others put one into {report.token_place}" if report.token_place else ""
        asked_with = f"has no Hub token: public files only{place}"
    running = f"{report.processes} running with models that they were handed"
    yield f"processes: {running}; craftcache ps lists them"
    yield f"origin:    {asked_with}"
    if report.queued:
        promised = f"{counted(report.queued, 'warm')} promised and not done"
        yield f"to do:     {promised}; craftcache queue ls lists them"
    if report.watches:
        states = ", ".join(f"{count} {state}" for state, count in report.watches.items())
        yield f"watches:   {states}; craftcache watch ls lists them"
    if report.fallbacks:
        told = ", ".join(f"{count} {reason}" for reason, count in report.fallbacks.items())
        yield f"fallbacks: workers told of loads without the daemon: {told}"


def _room(report: DaemonStatus) -> str:
    quota = "no max_bytes"
    if report.max_bytes:
        quota = f"{size_text(report.bytes)} of max_bytes = {size_text(report.max_bytes)} used"
    if report.disk is None:
        return f"{quota}; the disk cannot be asked"
    return (
        f"{size_text(report.disk.free_bytes)} of {size_text(report.disk.total_bytes)} free; {quota}"
    )


def _print_not_warm(not_warm: Sequence[NotWarm], count: int, now: float) -> None:
    if not not_warm:
        return
    click.echo(f"\nNOT WARM ({_of(len(not_warm), count, ALL)})")
    for each, row in zip(not_warm, aligned(not_warm_rows(not_warm, now)), strict=True):
        click.echo(f"  {'  '.join(row).rstrip()}")
        if each.hint:
            click.echo(f"      {each.hint}")
    click.echo("  What nobody wants any more: craftcache rm SOURCE takes it off this list")


def _when(each: NotWarm, now: float) -> str:
    ago = f"{span_text(now - each.at)} ago"
    if each.next_try_at is None:
        return ago
    return f"{ago}, tried again in {span_text(max(each.next_try_at - now, 0.0))}"


def _print_gpu(gpu: GpuReport) -> None:
    room = f"{size_text(gpu.used_bytes)} of {size_text(gpu.max_bytes)} used by models"
    free = "" if gpu.free_bytes is None else f", {size_text(gpu.free_bytes)} free"
    rows = [
        (
            model.source,
            model.filename,
            size_text(model.bytes),
            counted(model.leases, "lease")
            if model.idle_seconds is None
            else f"idle for {span_text(model.idle_seconds)}",
        )
        for model in gpu.models
    ]
    click.echo(f"\n{gpu.uuid} ({gpu.name}): {room}{free}")
    if rows:
        print_columns(("SOURCE", "FILE", "SIZE", "USE"), rows)


def _of(listed: int, count: int, lists_all: str) -> str:
    if listed >= count:
        return str(listed)
    return f"{listed} of {count}; {lists_all} lists all"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        click.echo(f"\n{title}")
        print_columns(header, rows)
