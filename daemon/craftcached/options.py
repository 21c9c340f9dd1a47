"""The options of ``craftcached``, one for each setting, as craftcached.settings defines them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from craftcache.file_maps import MAP_CHOICES

from .settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .settings import Setting

__all__ = ["settings_options"]

F = TypeVar("F", bound="Callable[..., Any]")


def mode(text: str) -> int:
    """A file's mode, in octal digits; click shows the function's name."""
    return int(text, 8)


def settings_options(names: Iterable[str] = SETTINGS) -> Callable[[F], F]:
    """Give a command an option for each of these settings; what is not given is None or empty."""
    settings = [SETTINGS[name] for name in names]

    def decorate(command: F) -> F:
        for setting in reversed(settings):  # the last to be applied is listed first
            command = click.option(
                setting.option,
                setting.name,
                type=_type_of(setting),
                multiple=setting.is_list,
                help=_help(setting),
            )(command)
        return command

    return decorate


def _type_of(setting: Setting) -> object:
    match setting.kind:
        case "Path":
            return click.Path(path_type=Path)
        case "int":
            return mode if setting.is_octal else click.IntRange(int(setting.least))
        case "bool":
            return click.BOOL
        case "float":
            return click.FloatRange(setting.least)
        case "bool":
            return click.BOOL
        case "MapChoice":
            return click.Choice(MAP_CHOICES)
    return click.STRING


def _help(setting: Setting) -> str:
    again = " May be given again." if setting.is_list else ""
    return f"{setting.meaning}{again} [{setting.variable}; default: {setting.default}]"
