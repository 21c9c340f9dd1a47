"""A worker that loads with ``share=True`` as it is told to, line by line on its standard input.

Each line is a JSON object with ``do``: ``load``, ``drop``, ``fingerprint`` (of what it has loaded,
as it is in memory now), ``compare`` (with what the benchmark has saved), ``write`` (to a tensor).
Each is answered by a line. On the CPU, memory files stand in for a GPU's memory. Argument: a JSON
object.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

import torch

from craftcache import Client
from craftcache.errors import CraftcacheError
from tests.support.gpu.fingerprint import fingerprint, tensors_in
from tests.support.gpu.memfd import NAME, share_by_memfd


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def blocks_in_use() -> list[int]:
    """Inodes of the memory files that this process has mapped."""
    with open("/proc/self/maps") as maps:
        return sorted({int(line.split()[4]) for line in maps if NAME in line})


class Worker:
    """What is loaded, and the client that loads it."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.device = given["device"]
        self.warnings = _Warnings()
        logging.getLogger("craftcache").addHandler(self.warnings)
        if given.get("imports"):  # as a program has that imports all it needs at its beginning
            import craftcache.checkpoint.in_shared_memory
            import craftcache.checkpoint.shareable

            if self.device != "cpu":
                import cuda.bindings.driver  # noqa: F401

                import craftcache.device.cuda_sharing  # noqa: F401
        if self.device != "cpu":
            torch.zeros(1, device=self.device)
            torch.cuda.synchronize()
        self.client = Client(
            socket_dir=given["socket_dir"],
            cache_dir=given["cache_dir"],
            fallback=given.get("fallback", "none"),
        )
        if self.device == "cpu":
            share_by_memfd(self.client, given.get("obstacle"))
        self.loaded: dict[str, Any] = {}

    def load(self, source: str, parts: list[str]) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            export = self.client.load(source, self.device, tuple(parts), share=True)  # type: ignore[arg-type]
        except CraftcacheError as error:
            needed = getattr(error, "needed_bytes", None)
            return {"error": error.code, "message": str(error), "needed_bytes": needed}
        if self.device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        self.loaded = {part: getattr(export, part) for part in parts}
        said, self.warnings.said = self.warnings.said, []
        return {
            "seconds": seconds,
            "shared": list(export.shared),
            "served_by": export.served_by,
            "tensors": len(list(tensors_in(self.loaded))),
            "blocks": blocks_in_use(),
            "warnings": said,
            "uid": os.getuid(),
        }

    def compare(self, layers: int, width: int) -> dict[str, Any]:
        from tests.bench.gpu import value_of
        from tests.bench.shapes import KEY, Shape

        state = self.loaded["lm"][KEY]
        shapes = dict(Shape("", layers, width).parameters())
        wrong = [
            name
            for number, (name, shape) in enumerate(shapes.items())
            if name not in state
            or not torch.equal(state[name], value_of(number, shape, torch.device(self.device)))
        ]
        return {
            "wrong": len(wrong),
            "tensors": len(shapes),
            "unknown": len(set(state) - set(shapes)),
        }

    def write(self) -> dict[str, Any]:
        tensor = next(each for each in tensors_in(self.loaded) if each.numel())
        try:
            tensor.view(-1)[:1].fill_(0)
            if self.device != "cpu":
                torch.cuda.synchronize()
        except RuntimeError as error:
            return {"failed": str(error).splitlines()[0]}
        return {"failed": None}

    def answer(self, line: dict[str, Any]) -> dict[str, Any]:
        match line["do"]:
            case "load":
                return self.load(line["source"], line.get("parts", ["lm", "compression"]))
            case "fingerprint":
                return {part: fingerprint(each) for part, each in self.loaded.items()}
            case "compare":
                return self.compare(line["layers"], line["width"])
            case "write":
                return self.write()
            case "drop":
                self.loaded = {}
                return {"blocks": blocks_in_use()}
        raise ValueError(line)


def main() -> None:
    given = json.loads(sys.argv[1])
    worker = Worker(given)
    if (uid := given.get("uid")) is not None:
        # The interpreter's files may be for root alone: all that a load imports is there by then.
        worker.load("org/model", ["lm"])
        worker.loaded = {}
        worker.client.close()
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
