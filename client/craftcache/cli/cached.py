"""What is cached, and what would be loaded: ls, show, explain, rm."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from craftcache.amounts import size_text
from craftcache.durations import DAY_SECONDS
from craftcache.errors import NotFound
from craftcache.model_filter import are_met
from craftcache.sources import parse

from .context import Site, json_option, pass_place
from .filtering import filter_option
from .output import (
    NOT_KNOWN,
    Branch,
    aligned,
    moment_text,
    print_columns,
    print_json,
    print_pairs,
    print_tree,
    short_revision,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from craftcache import FileInfo
    from craftcache.model_filter import ModelFilter
    from craftcache.wire import CachedModel

_ORDERS: dict[str, Callable[[CachedModel], tuple[float, str]]] = {
    "source": lambda model: (0.0, model.source),
    "size": lambda model: (-model.size, model.source),
    "accessed": lambda model: (model.last_used_at or model.published_at or 0.0, model.source),
    "published": lambda model: (-(model.published_at or 0.0), model.source),
}
"""What ``ls`` sorts by."""

__all__ = ["ls", "show", "explain", "rm"]


@click.command()
@filter_option
@click.option(
    "--sort",
    "order",
    type=click.Choice(tuple(_ORDERS)),
    default="source",
    show_default=True,
    help="Largest, longest unused or newest first.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print the sources alone, one a line.")
@json_option
@pass_place
def ls(
    place: Site, filters: tuple[ModelFilter, ...], order: str, *, quiet: bool, as_json: bool
) -> None:
    """List the models of the cache."""
    now = time.time()
    found = [model for model in place.client().models() if are_met(filters, model, now)]
    models = sorted(found, key=_ORDERS[order])
    if as_json:
        print_json({"models": [_document(model) for model in models]})
        return
    if quiet:
        for model in models:
            click.echo(model.source)
        return
    rows = [
        (
            model.source,
            short_revision(model.revision),
            str(len(model.files)),
            size_text(model.size),
            _resident(model),
            _last_use(model, now),
            _pinned(model),
        )
        for model in models
    ]
    header = ("SOURCE", "REVISION", "FILES", "SIZE", "RESIDENT", "USED", "PINNED")
    print_columns(header, rows)


@click.command()
@click.argument("source")
@json_option
@pass_place
def show(place: Site, source: str, *, as_json: bool) -> None:
    """Show a model of the cache, its files and what it needs.

    What it needs and no cache can hold comes last, with what to do about it.
    """
    models = {model.source: model for model in place.client().models()}
    shown = parse(source).shown
    model = models.get(shown)
    if model is None:
        raise NotFound("not in the cache", source=shown, hint=f"craftcache warm {shown}")
    if as_json:
        print_json(_document(model))
        return
    print_pairs(
        {
            "source": model.source,
            "revision": model.revision,
            "size": size_text(model.size),
            "resident": _resident(model),
            "pinned": _pinned(model) + _until(model.pinned_until),
            "held": "no" if model.held_until is None else f"yes{_until(model.held_until)}",
        }
    )
    click.echo()
    click.echo(model.source)
    print_tree(_branches(model, models))


def _branches(model: CachedModel, models: Mapping[str, CachedModel]) -> list[Branch]:
    """The files of a model, what it needs with the files of that, and what cannot be warmed."""
    branches = _file_branches(model)
    for need in model.needs:
        needed = models.get(need.source)
        state = "cached" if need.is_cached else f"missing; craftcache warm {model.source}"
        files = _file_branches(needed) if needed else []
        branches.append(Branch(f"needs {need.source}: {state}", [Branch(need.why), *files]))
    for unmet in model.unmet:
        reasons = [Branch(unmet.why), Branch(unmet.hint)]
        branches.append(Branch(f"needs {unmet.what}: cannot be warmed", reasons))
    return branches


def _file_branches(model: CachedModel) -> list[Branch]:
    return [Branch("  ".join(row)) for row in aligned(_file_rows(model.files))]


@click.command()
@click.argument("source")
@json_option
@pass_place
def explain(place: Site, source: str, *, as_json: bool) -> None:
    """Say what a load of SOURCE would load here, and why."""
    explanation = place.client().explain(source)
    if as_json:
        print_json(explanation)
        return
    for number, step in enumerate(explanation.steps, 1):
        click.echo(f"{number}. {step}")
    click.echo()
    print_pairs(
        {
            "source": explanation.source,
            "kind": explanation.kind,
            "served by": explanation.served_by or "nobody",
            "revision": explanation.revision or "not known yet",
        }
    )
    if explanation.files:
        click.echo()
        _print_files(explanation.files)


@click.command()
@click.argument("source")
@json_option
@pass_place
def rm(place: Site, source: str, *, as_json: bool) -> None:
    """Remove a model and free the bytes that no other model needs.

    What is not cached and `craftcache status` lists as not warm is taken off that list.
    """
    removal = place.admin().remove(source)
    if as_json:
        print_json(removal.to_fields())
    elif removal.was_cached:
        click.echo(f"{removal.source}: removed, {size_text(removal.freed_bytes)} freed")
    else:
        click.echo(f"{removal.source}: was not cached, and is listed as not warm no more")


def _document(model: CachedModel) -> dict[str, object]:
    return {
        "source": model.source,
        "revision": model.revision,
        "size": model.size,
        "resident_bytes": model.resident_bytes,
        "pinned": model.is_pinned,
        "locked": model.is_locked,
        "needed_only": model.is_needed_only,
        "published_at": _moment(model.published_at),
        "last_used_at": _moment(model.last_used_at),
        "superseded": model.is_superseded,
        "pinned_until": model.pinned_until,
        "held_until": model.held_until,
        "files": model.files,
        "needs": model.needs,
        "unmet": model.unmet,
    }


def _resident(model: CachedModel) -> str:
    return "unknown" if model.resident_bytes is None else size_text(model.resident_bytes)


def _last_use(model: CachedModel, now: float) -> str:
    """How long ago a model was used, in a word."""
    if model.last_used_at is None:
        return NOT_KNOWN
    seconds = max(now - model.last_used_at, 0.0)
    for unit, length in (("days", DAY_SECONDS), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)


def _pinned(model: CachedModel) -> str:
    if model.is_locked:
        return "locked"
    if model.is_pinned:
        return "yes"
    if model.is_superseded:
        return "superseded"
    if model.held_until is not None:
        return "held"
    return "needed" if model.is_needed_only else "no"


def _until(moment: float | None) -> str:
    return "" if moment is None else f" until {moment_text(moment)}"


def _print_files(files: Iterable[FileInfo]) -> None:
    print_columns(("FILE", "SIZE", "VERIFIED", "SHA256", "ORIGIN"), _file_rows(files))


def _file_rows(files: Iterable[FileInfo]) -> list[tuple[str, ...]]:
    return [
        (
            file.filename,
            size_text(file.size),
            f"{file.verified_at:%Y-%m-%d %H:%M}" if file.verified_at else NOT_KNOWN,
            file.sha256 or NOT_KNOWN,
            file.origin,
        )
        for file in files
    ]
