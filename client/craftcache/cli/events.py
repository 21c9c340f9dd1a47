"""``events``: what happens in the daemon, as it happens."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from craftcache.daemon.events import eviction_words

from .context import Site, json_option, pass_place, until_interrupted
from .output import print_json_line

if TYPE_CHECKING:
    from craftcache import DaemonEvent

__all__ = ["events"]


@click.command()
@click.option(
    "--since",
    type=click.IntRange(0),
    metavar="NUMBER",
    help="Begin after the event of that number; 0 begins with the oldest that is kept.",
)
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only these, such as warmed.")
@json_option
@pass_place
def events(place: Site, since: int | None, kinds: tuple[str, ...], *, as_json: bool) -> None:
    """Print what happens, as it happens.

    It goes on until interrupted, also after a restart of the daemon. Where events are lost, a line
    `gap` says so.
    """
    with until_interrupted():
        for event in place.client().events(since):
            if kinds and event.kind not in (*kinds, "gap"):
                continue
            if as_json:
                print_json_line(event.to_fields())
            else:
                click.echo(_line(event))


def _line(event: DaemonEvent) -> str:
    at = datetime.fromtimestamp(event.at).astimezone()
    said = dict(event.fields)
    if event.kind == "evicted":
        said["reason"] = eviction_words(str(said.get("reason")))
    fields = [f"{key}={_word(value)}" for key, value in said.items() if value is not None]
    return " ".join([f"{at:%Y-%m-%d %H:%M:%S}", str(event.seq), event.kind, *fields])


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    text = str(value)
    return repr(text) if " " in text or not text else text
