"""``python -m craftcached.demo [SOURCE]``: runs the demonstration and prints its table."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from craftcache import CraftcacheError
from craftcache.amounts import size_text
from craftcache.cli.context import exit_code, show_error
from craftcache.cli.output import NOT_KNOWN, print_json
from craftcache.cli.progress import make_display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .steps import Step

__all__ = ["main"]


@click.command()
@click.argument("source", required=False)
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(source: str | None, workers: int, *, as_json: bool) -> None:
    """Show and check the whole promise; `craftcache demo --help` says more."""
    steps: list[Step] = []
    failure: CraftcacheError | None = None
    try:
        asyncio.run(_run(source, workers, steps, quiet=as_json))
    except CraftcacheError as error:
        failure = error
    except asyncio.CancelledError:
        sys.exit("craftcache: interrupted")
    kept = failure is None and not any(step.broken for step in steps)
    if as_json:
        print_json({"kept": kept, "steps": steps})
    else:
        _print_table(steps)
        click.echo("Every promise was kept." if kept else "A promise was broken.")
    if failure is not None:
        show_error(failure, as_json=as_json)
        sys.exit(exit_code(failure))
    sys.exit(0 if kept else 1)


async def _run(source: str | None, workers: int, steps: list[Step], *, quiet: bool) -> None:
    """Append each step that is done to ``steps``, whatever becomes of the next."""
    from .steps import (
        demonstration,
    )  # with torch, whose import takes seconds and may be interrupted

    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task

    def stop() -> None:
        if not task.cancelling():  # impatience must not cut the cleaning up short
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    async with demonstration(source, workers) as demo:
        with make_display(quiet=quiet) as display:
            async for step in demo.steps(display.report):
                steps.append(step)  # noqa: PERF401 - a step that fails must leave those before it


def _print_table(steps: Sequence[Step]) -> None:
    table = Table()
    table.add_column("Step")
    table.add_column("Fetched", justify="right")
    table.add_column("Seconds", justify="right")
    table.add_column("Served by")
    table.add_column("Promises")
    for step in steps:
        fetched = NOT_KNOWN if step.bytes_fetched is None else size_text(step.bytes_fetched)
        table.add_row(
            step.what,
            fetched,
            f"{step.seconds:.3f}",
            step.served_by,
            "broken: " + "; ".join(step.broken) if step.broken else "kept",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
