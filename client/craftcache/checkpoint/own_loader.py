"""Checkpoints that no index can hold, or that have none yet, on torch before 2.6.

The reader looks into the file first: it interprets the pickle and calls nothing. Of nearly all
checkpoints that gives an index, and their tensors come from that. The rest (OmegaConf objects of
MBD and AudioSeal, above all) Python unpickles: the very bytes that the reader has interpreted and
found to do nothing but what torch's weights-only rules allow, and by a table of names that has
only what such checkpoints need. What is not in that table is refused.
"""

from __future__ import annotations

import importlib
import io
import pickle
from typing import TYPE_CHECKING, Any, Final

import torch

from craftcache.errors import CraftcacheError, NotACheckpoint
from craftcache.limits import limit_reached

from . import tensors
from .descriptor import read_into
from .reader import ALLOWED_GLOBALS, read_index, read_pickle
from .reader.names import DTYPE_BYTES, STORAGE_DTYPES, full_name
from .recognize import recognized

if TYPE_CHECKING:
    from .index import Storage
    from .reader import ArchivePickle

__all__ = ["load"]

_NAMES: Final = frozenset(
    {
        *ALLOWED_GLOBALS,
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        *STORAGE_DTYPES,
        *(f"torch.{dtype}" for dtype in DTYPE_BYTES),
    }
)
"""All that stands for itself."""


def load(fd: int, *, device: torch.device, source: str | None) -> object:
    """What ``torch.load(file, weights_only=True)`` of torch 2.13 returns, with our allow-list.

    Args:
        fd: Open for reading; its position is not used.
        device: Device of all tensors.
        source: Named in errors.

    Raises:
        UnsafeCheckpoint: It asks for a global that is not allowed; the message names it.
        NotACheckpoint: No torch can read it, or only a newer one.
        ResourceLimit: This process may not have the memory for it.
        OSError: The file could not be read.
    """
    try:
        with recognized(fd):
            index = read_index(fd)
        if index.reason is None:
            return tensors.build(index, fd, device=device, mapped=False)
        pickled = read_pickle(fd) if index.format == "zip" else None
        if pickled is None or pickled.reason is not None:
            raise _needs_newer_torch(index.reason)
        return _Unpickler(pickled, fd, device, index.reason).load()
    except CraftcacheError as error:
        raise error if source is None else error.about(source) from error
    except (MemoryError, OSError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a state that does not fit makes OmegaConf raise nearly anything
        if reached := limit_reached(error, source):
            raise reached from error
        raise NotACheckpoint(
            f"it cannot be unpickled ({type(error).__name__}: {str(error)[:200]})",
            source=source,
            hint="It must be a file that torch.save wrote",
        ) from error


class _Unpickler(pickle.Unpickler):
    """Python's own, of a pickle that the reader has interpreted.

    Args:
        pickled: The pickle that the reader has interpreted.
        fd: The file.
        device: Device of all tensors.
        reason: Why the file has no index.
    """

    def __init__(self, pickled: ArchivePickle, fd: int, device: torch.device, reason: str) -> None:
        super().__init__(io.BytesIO(pickled.data), encoding="utf-8")
        self._places = pickled.storages
        self._fd = fd
        self._device = device
        self._reason = reason
        self._storages: dict[str, torch.UntypedStorage] = {}

    def find_class(self, module: str, name: str, /) -> Any:  # noqa: ANN401  # whatever it names
        """What stands for a name."""
        full = full_name(module, name)
        if full not in _NAMES:
            raise _needs_newer_torch(self._reason)
        module, _, name = full.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise NotACheckpoint(
                f"it holds a {full}, which is not installed here",
                hint="pip install 'craftcache[omegaconf]'",
            ) from error
        except AttributeError as error:
            raise _needs_newer_torch(f"it holds {full}") from error

    def persistent_load(self, pid: Any) -> object:  # noqa: ANN401  # checked by the reader
        """A storage, read whole at its first use."""
        _, kind, key, _, _ = pid
        untyped = self._storages.get(key)
        if untyped is None:
            untyped = self._storages[key] = self._read(self._places[key])
        dtype = getattr(torch, STORAGE_DTYPES[f"{kind.__module__}.{kind.__name__}"])
        typed: Any = torch.TypedStorage
        return typed(wrap_storage=untyped, dtype=dtype, _internal=True)

    def _read(self, place: Storage) -> torch.UntypedStorage:
        if self._device.type == "meta" or not place.nbytes:
            return torch.empty(
                place.nbytes, dtype=torch.uint8, device=self._device
            ).untyped_storage()
        read = bytearray(place.nbytes)
        read_into(self._fd, read, place.offset)
        return torch.frombuffer(read, dtype=torch.uint8).to(self._device).untyped_storage()


def _needs_newer_torch(reason: str) -> NotACheckpoint:
    return NotACheckpoint(
        f"{reason}, which needs a newer torch than {torch.__version__}",
        hint="torch 2.6 or newer loads it",
    )
