"""One worker: loads a model by AudioCraft's own call, and generates a little.

Run as ``python child.py SOURCE {as-it-is,install}`` by an interpreter that has AudioCraft. Prints
as JSON what it took, without the imports.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from audiocraft.models import MusicGen

from craftcache.audiocraft import install

TEXT = "bright bells in the rain"
SECONDS = 0.1


def main(source: str, how: str) -> None:
    """Take the times and the memory."""
    if how == "install":
        install()
    imported = peak()
    started = time.perf_counter()
    model = MusicGen.get_pretrained(source, device="cpu")
    seconds, ready = time.perf_counter() - started, peak()
    model.set_generation_params(duration=SECONDS)
    torch.manual_seed(7)
    samples = model.generate([TEXT])
    print(
        json.dumps(
            {
                "seconds": seconds,
                "seconds_to_samples": time.perf_counter() - started,
                "imported_bytes": imported,
                "ready_bytes": ready,
                "samples_bytes": peak(),
                "samples": hashlib.sha256(samples.numpy().tobytes()).hexdigest(),
            }
        )
    )


def peak() -> int:
    """The most memory that this process has had so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


if __name__ == "__main__":
    main(*sys.argv[1:])
