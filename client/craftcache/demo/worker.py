"""An inference worker of the demonstration: ``python -m craftcache.demo.worker SOURCE``.

Says ``ready`` on stdout once its imports are done, waits for a line on stdin, loads, and says in
one line of JSON what it got. So any number of them load at the same moment.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from craftcache import Client, CraftcacheError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LoadReply", "digest"]

READY = "ready"


@dataclass(frozen=True, slots=True)
class LoadReply:
    """The result of a worker's load.

    Attributes:
        served_by: As ``Export.served_by``.
        revision: As ``Export.revision``.
        seconds: Time that the load took.
        digest: Digest of all tensors, their names, dtypes and shapes.
    """

    served_by: str
    revision: str
    seconds: float
    digest: str


def digest(*checkpoints: object) -> str:
    """A sha256 over every tensor's place, dtype, shape and bytes."""
    hasher = hashlib.sha256()
    for checkpoint in checkpoints:
        for place, tensor in _tensors(checkpoint, ""):
            hasher.update(f"{place} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            data = tensor.contiguous()
            if data.nbytes:
                hasher.update((ctypes.c_char * data.nbytes).from_address(data.data_ptr()))
    return hasher.hexdigest()


def _tensors(value: object, place: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{place}/{key}")


def _main(source: str) -> None:
    print(READY, flush=True)  # noqa: T201 - the protocol of this process
    sys.stdin.readline()
    try:
        export = Client().load(source)
    except CraftcacheError as error:
        print(json.dumps({"problem": error.to_problem()}))  # noqa: T201
        sys.exit(1)
    loaded = LoadReply(
        export.served_by,
        export.revision,
        export.timings.total,
        digest(export.lm, export.compression),
    )
    print(json.dumps(asdict(loaded)))  # noqa: T201


if __name__ == "__main__":
    _main(sys.argv[1])
