"""``prune``: remove what filters mean and nothing needs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from craftcache.amounts import size_text

from .context import Site, json_option, pass_place
from .filtering import filter_option
from .output import print_json

if TYPE_CHECKING:
    from craftcache.daemon.administration import Pruning
    from craftcache.model_filter import ModelFilter

__all__ = ["prune"]

NOT_DONE = 1
"""Exit code where the answer was no."""


@click.command()
@filter_option
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask on a terminal.")
@json_option
@pass_place
def prune(
    place: Site, filters: tuple[ModelFilter, ...], *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove the models that all filters mean.

    What is pinned, held, watched or in use, and what a model that stays needs, is not removed.
    """
    if not filters:
        raise click.UsageError("--filter says which models are meant; one at least")
    admin, texts = place.admin(), [str(condition) for condition in filters]
    if not (dry_run or yes) and sys.stdin.isatty():
        planned = admin.prune(texts, dry_run=True)
        _print(planned, dry_run=True, err=as_json)
        if planned.removed and not click.confirm("Remove them?", err=as_json):
            raise SystemExit(NOT_DONE)
    pruned = admin.prune(texts, dry_run=dry_run)
    if as_json:
        print_json(pruned.to_fields() | {"dry_run": dry_run})
    else:
        _print(pruned, dry_run=dry_run)


def _print(pruning: Pruning, *, dry_run: bool, err: bool = False) -> None:
    verb = "would be removed" if dry_run else "removed"
    for source in pruning.removed:
        click.echo(f"{source}: {verb}", err=err)
    click.echo(f"{size_text(pruning.freed_bytes)} {'would be ' if dry_run else ''}freed", err=err)
    for kept in pruning.kept:
        click.echo(f"{kept.source}: stays, {kept.reason}", err=err)
