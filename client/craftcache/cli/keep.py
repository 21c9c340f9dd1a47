"""``pin``, ``unpin`` and ``evict``: what stays in the cache, and what goes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from craftcache.amounts import size_text
from craftcache.sources import parse

from .context import Site, json_option, pass_place
from .durations import as_seconds
from .output import moment_text, print_json

if TYPE_CHECKING:
    from craftcache.daemon.administration import Eviction

__all__ = ["pin", "unpin", "evict"]

FAILED = 1

_SIZE = re.compile(r"(\d+)\s*([kMGTP]?)B?", re.ASCII)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


def _size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """Bytes, given as a number or in the decimal units that commands print."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no size, like 500000000 or 20GB")
    return int(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("source")
@click.option("--lock", is_flag=True, help="Keep it in memory too.")
@click.option(
    "--for",
    "expires_in",
    callback=as_seconds,
    metavar="TIME",
    help="Unpin it by itself after so long, like 30d.",
)
@json_option
@pass_place
def pin(place: Site, source: str, *, lock: bool, expires_in: float | None, as_json: bool) -> None:
    """Keep a model of the cache, whatever else has to go.

    It stays pinned at each later revision, until `craftcache unpin` or the end of --for.
    """
    shown = parse(source).shown
    expires_at = place.admin().pin(source, lock=lock, expires_in=expires_in)
    if as_json:
        print_json({"source": shown, "pinned": True, "locked": lock, "expires_at": expires_at})
        return
    until = "" if expires_at is None else f" until {moment_text(expires_at)}"
    click.echo(f"{shown}: pinned{until}{', locked in memory' if lock else ''}")


@click.command()
@click.argument("source")
@json_option
@pass_place
def unpin(place: Site, source: str, *, as_json: bool) -> None:
    """Let a pinned model go when its time comes."""
    shown = parse(source).shown
    place.admin().unpin(source)
    if as_json:
        print_json({"source": shown, "pinned": False, "locked": False})
    else:
        click.echo(f"{shown}: no longer pinned")


@click.command()
@click.option(
    "--bytes",
    "wanted",
    callback=_size,
    metavar="SIZE",
    help="Free so much, like 20GB, instead of what is beyond the setting max_bytes.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@pass_place
def evict(place: Site, wanted: int | None, *, dry_run: bool, as_json: bool) -> None:
    """Make room: remove the models that were not used for longest.

    What is pinned or in use stays. Exits with 1 if that leaves too little to remove.
    """
    eviction = place.admin().evict(wanted, dry_run=dry_run)
    if as_json:
        print_json(eviction)
    else:
        _print(eviction, dry_run=dry_run)
    if eviction.missing_bytes:
        raise SystemExit(FAILED)


def _print(eviction: Eviction, *, dry_run: bool) -> None:
    verb = "would be removed" if dry_run else "removed"
    for source in eviction.removed:
        click.echo(f"{source}: {verb}")
    click.echo(f"{size_text(eviction.freed_bytes)} {'would be ' if dry_run else ''}freed")
    if eviction.missing_bytes:
        click.echo(f"{size_text(eviction.missing_bytes)} more are wanted, but:", err=True)
    for kept in eviction.kept:
        click.echo(f"{kept.source}: {kept.reason}", err=True)
