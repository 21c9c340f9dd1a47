"""``verify``: hash again what is cached."""

from __future__ import annotations

import click

from .context import Site, json_option, pass_place
from .output import print_columns, print_json

__all__ = ["verify"]

FAILED = 1


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@json_option
@pass_place
def verify(place: Site, sources: tuple[str, ...], *, as_json: bool) -> None:
    """Hash every file of each cached SOURCE again, or of all.

    A wrong one goes to quarantine; the next warm or load fetches it anew. Exits with 1 if any is
    wrong or missing.
    """
    files = place.admin().verify(sources)
    if as_json:
        print_json({"results": files})
    else:
        rows = [(file.source, file.filename, file.outcome) for file in files]
        print_columns(("SOURCE", "FILE", "OUTCOME"), rows)
        for file in files:
            if file.quarantined:
                click.echo(f"{file.source}: {file.filename} is {file.quarantined} now", err=True)
    if any(file.outcome != "right" for file in files):
        raise SystemExit(FAILED)
