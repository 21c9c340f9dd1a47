"""``ps``: who uses which model now."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from craftcache.daemon.processes import command_line

from .context import Site, json_option, pass_place
from .output import NOT_KNOWN, print_columns, print_json, short_revision, span_text

if TYPE_CHECKING:
    from craftcache.daemon.admin import AdminClient
    from craftcache.daemon.processes import ModelProcess, ModelUse

__all__ = ["process_rows", "processes_of", "ps"]

HEADER = ("PID", "USER", "MODEL", "REVISION", "LOADS", "LOADED", "FILES", "COMMAND")

_OPEN = {True: "open", False: "closed", None: NOT_KNOWN}


@click.command()
@json_option
@pass_place
def ps(place: Site, *, as_json: bool) -> None:
    """List the processes that use models, and those that wait.

    A process stands here from its first load to its end, whatever it does with the model. FILES
    says whether any process has files of the model open or mapped; a model on a GPU needs none.
    """
    found = processes_of(place.admin())
    if as_json:
        print_json({"processes": [each.to_fields() for each in found]})
        return
    print_columns(HEADER, process_rows(found))


def processes_of(admin: AdminClient) -> list[ModelProcess]:
    """The processes, with command lines that this user may read and the daemon may not."""
    return [
        each if each.command else replace(each, command=command_line(each.pid))
        for each in admin.processes()
    ]


def process_rows(found: list[ModelProcess]) -> list[tuple[str, ...]]:
    """A row for each model of each process, and for each that it waits for."""
    now = time.time()
    rows: list[tuple[str, ...]] = []
    for each in found:
        who = (str(each.pid), each.user or str(each.uid))
        command = each.command or NOT_KNOWN
        rows += [(*who, source, "", "", "waits for it", "", command) for source in each.waits_for]
        rows += [(*who, *_use(use, now), command) for use in each.models]
    return rows


def _use(use: ModelUse, now: float) -> tuple[str, ...]:
    return (
        use.source,
        short_revision(use.revision),
        str(use.loads),
        f"{span_text(now - use.loaded_at)} ago",
        _OPEN[use.is_open],
    )
