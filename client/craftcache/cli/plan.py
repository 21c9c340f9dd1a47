"""``plan``: what a warm would take, before anything is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from craftcache.amounts import size_text
from craftcache.errors import InvalidSource, ResourceLimit, UnknownDevice
from craftcache.model_filter import parse_size
from craftcache.torch_import import import_torch
from craftcache.wire import WarmOptions

from .context import Site, json_option, pass_place
from .output import NOT_KNOWN, print_columns, print_json, short_revision

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from craftcache.daemon.planning import PlannedModel, WarmPlan
    from craftcache.wire import WarmKeywords

__all__ = ["free_memory", "plan"]

DOES_NOT_FIT = 1
"""Exit code where the disk or the device has too little room."""


def _bytes(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text)
    except InvalidSource as error:
        raise click.BadParameter(error.message) from error


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--file",
    "filenames",
    multiple=True,
    metavar="NAME",
    help="This file of each source instead of the export's pair; may be given again.",
)
@click.option("--include", multiple=True, metavar="PATTERN", help="As for craftcache warm.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="As for craftcache warm.")
@click.option("--pair-only", is_flag=True, help="Leave out what the model needs beyond its files.")
@click.option(
    "--refresh/--no-refresh",
    default=True,
    help="Plan for the newest revision, or for what was warmed last.",
)
@click.option(
    "--device",
    metavar="DEVICE",
    help="Say whether the tensors fit the free memory of a device, like cuda:0; asks torch.",
)
@click.option(
    "--device-memory",
    callback=_bytes,
    metavar="SIZE",
    help="Say whether the tensors fit this much memory, like 16GB, without asking torch.",
)
@json_option
@pass_place
def plan(
    place: Site,
    sources: tuple[str, ...],
    device: str | None,
    device_memory: int | None,
    *,
    as_json: bool,
    **options: Unpack[WarmKeywords],
) -> None:
    """Say what warming each SOURCE would take; fetches nothing.

    Bytes to fetch, room on the disk and what would have to go for it, time at the rate at which the
    daemon fetched lately, and the tensors by dtype. Exits with 1 if the disk or the device has too
    little room.
    """
    planned = place.admin().plan(sources, WarmOptions.of(options))
    memory = device_memory if device is None or device_memory else free_memory(device)
    needed = sum(planned.tensor_bytes.values())
    fits = None if memory is None else needed <= memory
    if as_json:
        print_json(
            planned.to_fields() | {"device": device, "device_bytes": memory, "fits_device": fits}
        )
    else:
        _print(planned)
        if memory is not None:
            name = device or "the device"
            click.echo(
                f"device: {size_text(needed)} of {size_text(memory)} of {name}, "
                f"{'which is enough for the tensors' if fits else 'which is too little'}; "
                "what inference takes comes on top"
            )
    if planned.room.missing_bytes or fits is False:
        raise SystemExit(DOES_NOT_FIT)


def _print(planned: WarmPlan) -> None:
    rows = [
        (
            model.source,
            short_revision(model.revision) or NOT_KNOWN,
            str(len(model.files)),
            size_text(model.size),
            size_text(model.fetch_bytes),
        )
        for model in planned.models
    ]
    print_columns(("SOURCE", "REVISION", "FILES", "SIZE", "TO FETCH"), rows)
    click.echo()
    wanted = f"{size_text(planned.fetch_bytes)}{_unknown_sizes(planned)}"
    click.echo(f"to fetch: {wanted}, {_time(planned)}")
    click.echo(f"room: {_room(planned)}")
    click.echo(f"tensors: {_tensors(planned)}")
    for model in planned.models:
        if not model.are_needs_known:
            click.echo(
                f"{model.source}: what it needs beyond its own files stands in them, "
                "and is not in this plan"
            )


def _unknown_sizes(planned: WarmPlan) -> str:
    names = [name for model in planned.models for name in _unsaid(model)]
    return f", and {', '.join(names)}, whose size is not known" if names else ""


def _unsaid(model: PlannedModel) -> list[str]:
    return [f"{model.source} {file.filename}" for file in model.files if file.size is None]


def _time(planned: WarmPlan) -> str:
    if not planned.fetch_bytes:
        return "nothing to wait for"
    if planned.seconds is None or planned.bytes_per_second is None:
        return "for how long is not known: the daemon has fetched nothing yet"
    rate = f"{size_text(planned.bytes_per_second)}/s"
    return f"about {max(planned.seconds, 1):.0f} s at {rate}, as measured lately"


def _room(planned: WarmPlan) -> str:
    room = planned.room
    words = f"{size_text(room.free_bytes)} free, min_free keeps {size_text(room.min_free_bytes)}"
    if room.max_bytes:
        words += f", {size_text(room.used_bytes)} of max_bytes {size_text(room.max_bytes)} used"
    if room.evicted:
        words += f"; {', '.join(room.evicted)} would go, {size_text(room.freed_bytes)}"
    if room.missing_bytes:
        return f"{words}; {size_text(room.missing_bytes)} are missing"
    return f"{words}; it fits"


def _tensors(planned: WarmPlan) -> str:
    total = sum(planned.tensor_bytes.values())
    listed = ", ".join(f"{dtype} {size_text(size)}" for dtype, size in planned.tensor_bytes.items())
    if planned.is_estimate:
        return f"{size_text(total)} ({listed}; unknown is an estimate by the size of the file)"
    return f"{size_text(total)} ({listed})" if listed else "none"


def free_memory(device: str) -> int:
    """Bytes of a CUDA device's memory that are free now.

    Raises:
        UnknownDevice: torch has no such device.
        ResourceLimit: There is no torch to ask.
    """
    if not import_torch():
        raise ResourceLimit(
            f"how much memory {device} has is not known: there is no torch here",
            hint="Say it by --device-memory, like 16GB",
        )
    import torch

    try:
        free, _ = torch.cuda.mem_get_info(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UnknownDevice(
            f"{device} is no CUDA device here: {str(error).splitlines()[0]}",
            hint="Name one like cuda:0, or say its memory by --device-memory",
        ) from error
    return int(free)
