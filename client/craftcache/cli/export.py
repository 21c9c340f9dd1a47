"""``export`` and ``publish``: from a training run to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from craftcache.amounts import size_text
from craftcache.daemon.client import own_token

from .context import FAILED, json_option
from .output import print_columns, print_json, print_pairs

if TYPE_CHECKING:
    from craftcache.exports import Checked

__all__ = ["export", "publish"]

_DIRECTORY = click.Path(path_type=Path)


@click.group()
def export() -> None:
    """Make and check export directories."""


@export.command()
@click.argument("directory", type=_DIRECTORY)
@json_option
def check(directory: Path, *, as_json: bool) -> None:
    """Say whether AudioCraft can load the export in DIRECTORY, and what is in it.

    Exits with 1 if it cannot.
    """
    from craftcache.exports import check_export

    checked = check_export(directory, token=own_token())
    _print(checked, as_json=as_json)
    if not checked.is_good:
        raise SystemExit(FAILED)


@export.command()
@click.option("--lm", type=_DIRECTORY, required=True, help="The model's training checkpoint.")
@click.option(
    "--compression",
    required=True,
    metavar="CHECKPOINT|NAME",
    help="The codec's checkpoint or export, or the name of one like facebook/encodec_32khz.",
)
@click.argument("directory", type=_DIRECTORY)
@json_option
def make(lm: Path, compression: str, directory: Path, *, as_json: bool) -> None:
    """Make an export of a training run in DIRECTORY, both files at once."""
    from craftcache.exports import check_export, make_export

    make_export(lm, compression, directory)
    _print(check_export(directory, token=own_token()), as_json=as_json)


@click.command()
@click.argument("directory", type=_DIRECTORY)
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="If the repository is made, make it private.")
@click.option(
    "--message", default="Upload export", show_default=True, help="Message of the commit."
)
@json_option
def publish(directory: Path, repo_id: str, message: str, *, private: bool, as_json: bool) -> None:
    """Check an export and upload it to the Hub.

    DIRECTORY is the export, ORG/NAME the repository.

    An unsafe or incomplete one is refused. Prints the source to load it by, pinned to its commit.
    """
    from craftcache.exports import publish_export

    published = publish_export(directory, repo_id, private=private, message=message)
    if as_json:
        print_json({"source": published.source, "url": published.url})
    else:
        click.echo(published.source)


def _print(checked: Checked, *, as_json: bool) -> None:
    if as_json:
        print_json(checked)
        return
    rows = [
        (
            part,
            size_text(each.size),
            f"reference to {each.contents.pretrained}"
            if each.contents.pretrained
            else str(each.contents.tensors),
            f"{each.contents.parameters:,}",
            "+".join(each.contents.dtypes),
            each.version or "first release",
        )
        for part, each in checked.parts.items()
    ]
    print_columns(("PART", "SIZE", "TENSORS", "PARAMETERS", "DTYPE", "AUDIOCRAFT"), rows)
    for part, each in checked.parts.items():
        if each.settings:
            click.echo()
            print_pairs({f"{part} {name}": value for name, value in each.settings.items()})
    for note in checked.notes:
        click.echo(f"note: {note}", err=True)
    for problem in checked.problems:
        click.echo(f"problem: {problem}", err=True)
    click.echo(f"{checked.directory}: {'a good export' if checked.is_good else 'no export'}")
