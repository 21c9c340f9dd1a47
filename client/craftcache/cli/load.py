"""``load``: what a worker does, and what came of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from craftcache.amounts import size_text
from craftcache.checkpoint.contents import Contents
from craftcache.sources import PARTS, LocalDirectory, LocalFile, locate

from .context import Site, json_option, pass_place
from .output import NOT_KNOWN, print_columns, print_json, short_revision
from .progress import make_display

if TYPE_CHECKING:
    from collections.abc import Mapping

    from craftcache import Export
    from craftcache.sources import Part

__all__ = ["load"]


@click.command()
@click.argument("source")
@click.option(
    "--device", default="cpu", show_default=True, help="Where to, as torch.device names it."
)
@click.option("--share", is_flag=True, help="Into memory of the GPU that all of its workers share.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    help="Only this part of the export; may be given again.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Give up waiting for the files after so long, with exit code 75.",
)
@json_option
@pass_place
def load(
    place: Site,
    source: str,
    device: str,
    parts: tuple[Part, ...],
    timeout: float | None,
    *,
    share: bool,
    as_json: bool,
) -> None:
    """Load SOURCE as a worker does and print what was loaded.

    It comes from the daemon, else from the cache, else from its origin.
    """
    with make_display(quiet=as_json or not sys.stderr.isatty()) as display:
        export = place.client().load(
            source,
            device=device,
            parts=parts or PARTS,
            share=share,
            on_progress=display.report,
            timeout=timeout,
        )
    contents = {part: Contents.of(getattr(export, part)) for part in PARTS if part in export.files}
    if as_json:
        print_json(_document(export, device, contents))
    else:
        _print(export, device, contents)


def _document(export: Export, device: str, contents: Mapping[Part, Contents]) -> dict[str, object]:
    return {
        "source": _shown(export.source),
        "revision": export.revision,
        "served_by": export.served_by,
        "fallback_reason": export.fallback_reason,
        "device": device,
        "shared": list(export.shared),
        "seconds": {
            "resolve": export.timings.resolve,
            "load": export.timings.load,
            "total": export.timings.total,
        },
        "parts": {
            part: {"file": export.files[part], "contents": counted}
            for part, counted in contents.items()
        },
    }


def _print(export: Export, device: str, contents: Mapping[Part, Contents]) -> None:
    at = f" at {short_revision(export.revision)}" if export.revision else ""
    seconds = export.timings.total
    click.echo(
        f"{_shown(export.source)}{at}: loaded onto {device}, served by {export.served_by}, "
        f"{seconds:.3f} s"
    )
    if export.shared:
        click.echo(f"shared by all workers of the GPU: {', '.join(export.shared)}")
    if export.fallback_reason:
        click.echo(f"not by the daemon: {export.fallback_reason}")
    rows = [
        (
            part,
            f"reference to {counted.pretrained}" if counted.pretrained else str(counted.tensors),
            f"{counted.parameters:,}",
            size_text(counted.bytes),
            "+".join(counted.dtypes),
            export.files[part].sha256 or NOT_KNOWN,
        )
        for part, counted in contents.items()
    ]
    print_columns(("PART", "TENSORS", "PARAMETERS", "BYTES", "DTYPE", "SHA256"), rows)


def _shown(text: str) -> str:
    """The source without what may be secret in it."""
    source = locate(text)
    return text if isinstance(source, LocalFile | LocalDirectory) else source.shown
