"""``status``: what is warm, what is coming, what is not warm and why, and what is wrong."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from .context import Site, json_option, pass_place
from .output import NOT_KNOWN, aligned, print_columns, print_json, short_revision
from .output import size_text as size
from .output import span_text as span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from craftcache.wire import Coming, DaemonStatus, GpuReport, NotWarm

__all__ = ["coming_rows", "status"]

COMING = ("SOURCE", "STATE", "DONE", "RATE", "LEFT")


@click.command()
@json_option
@pass_place
def status(place: Site, *, as_json: bool) -> None:
    """Say what is warm, what comes, what does not and why."""
    report = place.client().status()
    if as_json:
        print_json(report.to_document())
        return
    now = time.time()
    for line in _head(report, now):
        click.echo(line)
    _table(f"COMING ({report.requests})", COMING, coming_rows(report.coming))
    _print_not_warm(report, now)
    warm = [
        (
            model.source,
            short_revision(model.revision),
            size(model.size),
            f"{span(now - model.used_at)} ago",
            "pinned" if model.is_pinned else "",
        )
        for model in report.recent
    ]
    title = f"WARM ({_of(len(warm), report.models)})"
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
            f"{size(each.done)} of {size(each.total)}" if each.total is not None else NOT_KNOWN,
            f"{size(each.bytes_per_second)}/s" if each.bytes_per_second is not None else NOT_KNOWN,
            span(each.seconds_left) if each.seconds_left is not None else NOT_KNOWN,
        )
        for each in coming
    ]


def _head(report: DaemonStatus, now: float) -> Iterator[str]:
    up = span(now - report.started_at)
    yield f"craftcached {report.version}, up {up}, pid {report.pid}, on {report.socket_dir}"
    memory = "" if report.resident_bytes is None else f", {size(report.resident_bytes)} in memory"
    yield f"cache:     {report.models} models, {size(report.bytes)}{memory}, in {report.cache_dir}"
    yield f"room:      {_room(report)}"
    token = "has a Hub token" if report.has_token else "has no Hub token: public files only"
    yield f"processes: {report.processes} were handed models and run; craftcache ps lists them"
    yield f"origin:    {token}"
    if report.queued:
        yield f"queue:     {report.queued} warms; craftcache queue ls lists them"
    if report.watches:
        states = ", ".join(f"{count} {state}" for state, count in report.watches.items())
        yield f"watches:   {states}; craftcache watch ls lists them"
    if report.fallbacks:
        told = ", ".join(f"{count} {reason}" for reason, count in report.fallbacks.items())
        yield f"fallbacks: workers told of loads without the daemon: {told}"


def _room(report: DaemonStatus) -> str:
    quota = "no max_bytes"
    if report.max_bytes:
        quota = f"{size(report.bytes)} of max_bytes = {size(report.max_bytes)} used"
    if report.disk is None:
        return f"{quota}; the disk cannot be asked"
    return f"{size(report.disk.free_bytes)} of {size(report.disk.total_bytes)} free; {quota}"


def _print_not_warm(report: DaemonStatus, now: float) -> None:
    if not report.not_warm:
        return
    click.echo(f"\nNOT WARM ({_of(len(report.not_warm), report.not_warm_count)})")
    heads = aligned([(each.source, _when(each, now)) for each in report.not_warm])
    for each, head in zip(report.not_warm, heads, strict=True):
        click.echo(f"  {'  '.join(head)}  {each.code}: {each.message}")
        if each.hint:
            click.echo(f"      {each.hint}")


def _when(each: NotWarm, now: float) -> str:
    ago = f"{span(now - each.at)} ago"
    if each.next_try_at is None:
        return ago
    return f"{ago}, tried again in {span(max(each.next_try_at - now, 0.0))}"


def _print_gpu(gpu: GpuReport) -> None:
    room = f"{size(gpu.used_bytes)} of {size(gpu.max_bytes)} used by models"
    free = "" if gpu.free_bytes is None else f", {size(gpu.free_bytes)} free"
    rows = [
        (
            model.source,
            model.filename,
            size(model.bytes),
            f"{model.leases} leases"
            if model.idle_seconds is None
            else f"idle for {span(model.idle_seconds)}",
        )
        for model in gpu.models
    ]
    click.echo(f"\n{gpu.uuid} ({gpu.name}): {room}{free}")
    if rows:
        print_columns(("SOURCE", "FILE", "SIZE", "USE"), rows)


def _of(listed: int, count: int) -> str:
    return str(count) if listed >= count else f"the last {listed} of {count}"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        click.echo(f"\n{title}")
        print_columns(header, rows)
