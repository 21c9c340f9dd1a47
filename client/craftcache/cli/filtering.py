"""``--filter`` as ``ls`` and ``prune`` take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from craftcache.errors import InvalidSource
from craftcache.model_filter import ModelFilter

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["filter_option"]

F = TypeVar("F", bound="Callable[..., Any]")


def filter_option(command: F) -> F:
    """``--filter``, any number of times: only models of which all of them hold."""
    return click.option(
        "--filter",
        "filters",
        multiple=True,
        callback=_parsed,
        metavar="FILTER",
        help="Only models that match, like 'accessed>30d', 'published<12h', 'size>1GB', "
        "'source=org/*' or 'pinned=no'; given again, both must hold.",
    )(command)


def _parsed(
    _context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[ModelFilter, ...]:
    try:
        return tuple(map(ModelFilter.parse, texts))
    except InvalidSource as error:
        raise click.BadParameter(f"{error.message}. {error.hint}") from error
