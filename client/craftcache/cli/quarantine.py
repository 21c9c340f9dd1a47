"""``quarantine``: what turned out wrong, kept for a look and never served."""

from __future__ import annotations

from datetime import datetime, timezone

import click

from craftcache.amounts import size_text

from .context import Site, json_option, pass_place
from .output import NOT_KNOWN, print_columns, print_json

__all__ = ["quarantine"]


@click.group()
def quarantine() -> None:
    """List or remove files that turned out wrong.

    They are kept for a look, as long as quarantine_days and quarantine_bytes allow, and never
    served.
    """


@quarantine.command()
@json_option
@pass_place
def ls(place: Site, *, as_json: bool) -> None:
    """List what is in the quarantine, the oldest first."""
    files = place.admin().quarantined()
    if as_json:
        print_json({"files": [file.to_fields() for file in files]})
        return
    rows = [
        (file.name, size_text(file.size), _moment(file.since), ",".join(file.sources) or NOT_KNOWN)
        for file in files
    ]
    print_columns(("NAME", "SIZE", "SINCE", "SOURCES"), rows)


@quarantine.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Everything that is in it.")
@json_option
@pass_place
def rm(place: Site, names: tuple[str, ...], *, everything: bool, as_json: bool) -> None:
    """Remove each NAME from the quarantine for good."""
    if everything == bool(names):
        raise click.UsageError("name the files, or --all of them")
    admin = place.admin()
    if everything:
        names = tuple(file.name for file in admin.quarantined())
    freed = {name: admin.remove_quarantined(name) for name in dict.fromkeys(names)}
    if as_json:
        print_json({"removed": [{"name": name, "freed_bytes": freed[name]} for name in freed]})
    for name in () if as_json else freed:
        click.echo(f"{name}: removed, {size_text(freed[name])} freed")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
