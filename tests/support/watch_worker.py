"""A worker process that follows a watch: each generation must be whole, and stay as it was.

Maps every generation it hears of, keeps the last few mapped, and looks at all of their numbers
again each time. Prints what it has seen as JSON at the end, which comes with a generation of
which every number is negative.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from pathlib import Path
from typing import Any

from craftcache import Client

KEPT = 4


def value_of(checkpoint: dict[str, Any]) -> float:
    """The one number of a checkpoint; raises where there are several."""
    (value,) = checkpoint["best_state"]["x"].unique().tolist()
    assert checkpoint["xp.cfg"].endswith(f"value: {value:.0f}\n"), "of two writes"
    return float(value)


def main(socket_dir: str, name: str) -> None:
    client = Client(socket_dir=Path(socket_dir))
    kept: deque[tuple[Any, float]] = deque(maxlen=KEPT)
    seen: list[tuple[int, float]] = []
    mixed = 0
    for generation in client.follow(name):
        loaded = client.load(f"watch:{name}")
        value = value_of(loaded.lm)
        mixed += value != value_of(loaded.compression)
        kept.append((loaded, value))
        for earlier, was in kept:
            assert value_of(earlier.lm) == was
        seen.append((generation.number, value))
        print("ready", flush=True) if len(seen) == 1 else None
        if value < 0:
            break
    print(json.dumps({"seen": seen, "mixed": mixed}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
