"""Write an export as AudioCraft's own export functions do: same keys, same content, as a pair.

They write each file in place, one after the other. Here both are written aside and appear
together, so that whoever watches the directory, or loads from it, has the old pair or the new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from craftcache.cache.durable import staging_name, sync_directory
from craftcache.errors import InvalidSource, NotFound
from craftcache.sources import FILENAMES
from craftcache.torch_import import require_torch

__all__ = ["make_export"]

AUDIOCRAFT_VERSION = "1.3.0"
"""Whose format is written, where no AudioCraft is installed that would say."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def make_export(lm: Path, compression: str, directory: Path) -> None:
    """Make an export of a training run's checkpoint and its codec.

    Args:
        lm: The language model's training checkpoint, plain or of FSDP.
        compression: A codec's training checkpoint or export, or the name of a codec to refer to.
        directory: Where to; what it holds of an export is replaced, and anything else is refused.

    Raises:
        NotFound: A checkpoint is not there.
        InvalidSource: It is no training checkpoint, or the directory holds other files.
        UnsafeCheckpoint, NotACheckpoint: It cannot be loaded safely, or not at all.
        OSError: It cannot be written; the directory is as it was.
    """
    _check_replaceable(directory)
    pair = {
        FILENAMES["lm"]: _export_lm(lm),
        FILENAMES["compression"]: _export_compression(compression),
    }
    _write_pair(directory, pair)


def _export_lm(path: Path) -> dict[str, Any]:
    package = _load(path)
    best = package.get("fsdp_best_state") or package.get("best_state")
    return _package(path, best, package)


def _export_compression(named: str) -> Mapping[str, Any]:
    path = Path(named)
    if not path.exists():
        if named.startswith(("/", "./", "../", "~", "//pretrained/")):
            raise NotFound(
                "no such checkpoint",
                source=named,
                hint="A codec is referred to by its name alone, like facebook/encodec_32khz",
            )
        return {"pretrained": named, "exported": True, "version": _version()}
    package = _load(path)
    if "exported" not in package:
        return _package(path, package.get("best_state"), package)
    missing = [key for key in ("best_state", "xp.cfg", "version") if key not in package]
    if missing:
        raise InvalidSource(
            f"it is exported and lacks {missing[0]!r}", source=named, hint="Export it again"
        )
    return package


def _load(path: Path) -> Mapping[str, Any]:
    require_torch()
    from craftcache.checkpoint.weights_only import load

    try:
        package = load(path, map_location="cpu", source=str(path))
    except FileNotFoundError as error:
        raise NotFound("no such checkpoint", source=str(path), hint="Check the path") from error
    if not isinstance(package, Mapping):
        raise InvalidSource("it is no training checkpoint", source=str(path), hint=_WANTED)
    return package


def _package(path: Path, best: object, package: Mapping[str, Any]) -> dict[str, Any]:
    """What an exported model consists of."""
    state = best.get("model") if isinstance(best, Mapping) else None
    if not state or "xp.cfg" not in package:
        lacking = "best state of a model" if not state else "configuration"
        raise InvalidSource(f"it holds no {lacking}", source=str(path), hint=_WANTED)
    return {
        "best_state": state,
        "xp.cfg": _to_yaml(package["xp.cfg"]),
        "version": _version(),
        "exported": True,
    }


_WANTED = "Name the checkpoint.th of an AudioCraft training run"


def _to_yaml(config: object) -> str:
    """A configuration as OmegaConf writes it, whose objects only OmegaConf can write."""
    if isinstance(config, str):
        return config
    if isinstance(config, dict):
        import yaml

        return str(
            yaml.safe_dump(config, default_flow_style=False, allow_unicode=True, sort_keys=False)
        )
    from omegaconf import OmegaConf  # it is there: without it the checkpoint could not be loaded

    return OmegaConf.to_yaml(config)


def _version() -> str:
    try:
        return metadata.version("audiocraft")
    except metadata.PackageNotFoundError:
        return AUDIOCRAFT_VERSION


def _check_replaceable(directory: Path) -> None:
    if not directory.exists():
        return
    others = {entry.name for entry in directory.iterdir()} - set(FILENAMES.values())
    if others:
        raise InvalidSource(
            f"it holds other files, like {min(others)}",
            source=str(directory),
            hint="Name a directory that is new, or that holds nothing but an export",
        )


def _write_pair(directory: Path, pair: Mapping[str, object]) -> None:
    import torch

    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = directory.parent / f".{directory.name}.{staging_name()}"
    staged.mkdir()
    try:
        for name, package in pair.items():
            with (staged / name).open("xb") as file:
                torch.save(package, file)
                file.flush()
                os.fsync(file.fileno())
        sync_directory(staged)
        _place(staged, directory)
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # the old pair, or what was not finished


def _place(staged: Path, directory: Path) -> None:
    """Put a directory in the place of another, in one step where the file system can."""
    if not directory.exists():
        os.rename(staged, directory)
        return
    with contextlib.suppress(OSError):
        os.chmod(staged, directory.stat().st_mode & 0o7777)
    try:
        _exchange(staged, directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        for name in FILENAMES.values():  # each in one step at least
            os.replace(staged / name, directory / name)


def _exchange(one: Path, other: Path) -> None:
    """Let two paths change places; Linux has it, Python has not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    paths = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))
