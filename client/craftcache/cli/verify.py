"""``verify``: hash again what is cached, and have mended what is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from craftcache.amounts import counted

from .context import FAILED, RETRY_MAY_HELP, Site, json_option, pass_place
from .output import NOT_KNOWN, print_columns, print_json
from .progress import make_display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craftcache.daemon.administration import Verdict

__all__ = ["verify"]

MENDED = 3
"""Exit code where something was wrong, and all of it is right again."""


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--all", "everything", is_flag=True, help="All models, as without any SOURCE.")
@click.option(
    "--gpu",
    is_flag=True,
    help="Compare what is in the memory of this node's GPUs instead, with what was verified.",
)
@click.option("--detach", is_flag=True, help="Leave it to the daemon and do not wait.")
@click.option(
    "--ndjson", is_flag=True, help="Print what happens as it happens, one JSON object a line."
)
@json_option
@pass_place
def verify(
    place: Site,
    sources: tuple[str, ...],
    *,
    everything: bool,
    gpu: bool,
    detach: bool,
    ndjson: bool,
    as_json: bool,
) -> None:
    """Hash every file of each cached SOURCE again, or of all.

    What is wrong goes to quarantine and is fetched anew. The daemon goes on though this command is
    ended; asked again meanwhile, it is joined.

    With --gpu what is wrong is handed to no more workers, and is copied anew for the next.

    Exit codes: 0 all is right; 3 something was wrong or missing, and all of it is mended; 1 some of
    it is not mended; 75 likewise, and a retry may help.
    """
    if everything and sources:
        raise click.UsageError("--all stands for every SOURCE")
    if gpu:
        if everything or sources or detach or ndjson:
            raise click.UsageError("--gpu stands for all models in the GPUs' memory, and waits")
        _verify_gpus(place, as_json=as_json)
        return
    if detach and ndjson:
        raise click.UsageError("--detach and --ndjson exclude each other")
    if detach:
        started = place.admin().start_verifying(sources)
        if as_json:
            print_json(started.to_fields())
        else:
            click.echo(f"verification {started.id}: {counted(started.files, 'file')}")
        return
    tell = _print_line if ndjson else _ignore
    with make_display(quiet=as_json or ndjson) as display:
        verdicts = place.admin().verify(sources, report=display.report, tell=tell)
    if as_json:
        print_json({"results": [verdict.to_fields() for verdict in verdicts]})
    elif not ndjson:
        _print(verdicts)
    if code := _exit_code(verdicts):
        raise SystemExit(code)


def _verify_gpus(place: Site, *, as_json: bool) -> None:
    comparisons = place.admin().verify_gpus()
    if as_json:
        print_json({"results": [each.to_fields() for each in comparisons]})
    else:
        rows = [(each.uuid, each.source, each.filename, each.outcome) for each in comparisons]
        print_columns(("GPU", "SOURCE", "FILE", "OUTCOME"), rows)
    if any(each.outcome == "wrong" for each in comparisons):
        raise SystemExit(FAILED)


def _exit_code(verdicts: Sequence[Verdict]) -> int:
    unsound = [verdict for verdict in verdicts if not verdict.is_sound]
    if unsound:
        may_help = all(each.failure is not None and each.failure.retryable for each in unsound)
        return RETRY_MAY_HELP if may_help else FAILED
    return MENDED if any(verdict.outcome == "mended" for verdict in verdicts) else 0


def _print(verdicts: Sequence[Verdict]) -> None:
    rows = [
        (verdict.source, verdict.filename, verdict.part, verdict.outcome, _why(verdict))
        for verdict in verdicts
    ]
    print_columns(("SOURCE", "FILE", "PART", "OUTCOME", "WHY"), rows)


def _why(verdict: Verdict) -> str:
    """What became of a file that was wrong, and why it is not mended."""
    notes = (
        f"was wrong, and is {verdict.quarantined} now" if verdict.quarantined else "",
        f"not mended: {verdict.failure.message}" if verdict.failure else "",
    )
    return "; ".join(filter(None, notes)) or NOT_KNOWN


def _print_line(event: dict[str, Any]) -> None:
    click.echo(json.dumps(event))


def _ignore(_event: dict[str, Any]) -> None:
    """Print nothing yet."""
