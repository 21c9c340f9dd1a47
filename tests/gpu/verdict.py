"""What must be reached on a lent H100 or H200, and whether it was."""

from __future__ import annotations

from typing import Any, Final

LEAST_OF_LINK: Final = 0.7
LEAST_RATE: Final = 30.0
"""Page-hot: as a share of the link's own rate, and in 10**9 bytes a second."""

LEAST_TIMES_TORCH: Final = 8.0
MOST_TIMES_LOAD: Final = 1.1
"""How much faster than torch.load, and how much longer load_into may take than load."""

MOST_SECONDS_SHARED: Final = 0.05
MOST_COPIES_SHARED: Final = 1.01
"""Time of a second worker's load with ``share``, and the memory that eight take, in copies."""


def verdict(bench: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
    """For each model what the figures come to, and whether that is enough; None where none is.

    Those of a dry run come to nothing.
    """
    timings = [] if dry_run else bench.get("timings", [])
    wrong = sum(each["wrong"] for each in bench.get("checked", []))
    models = dict.fromkeys(timing["model"] for timing in timings)
    return {
        "wrong_tensors": wrong,
        "compared_tensors": sum(each["tensors"] for each in bench.get("checked", [])),
        "models": {model: _of_model(model, timings) for model in models},
        "sharing": [] if dry_run else [_of_sharing(each) for each in bench.get("sharing", [])],
    }


def _of_sharing(measured: dict[str, Any]) -> dict[str, Any]:
    seconds, copies = measured["second_seconds"], measured["copies"]
    return {
        "model": measured["model"],
        "all_shared": measured["shared"],
        "second_seconds": _told(seconds, seconds <= MOST_SECONDS_SHARED),
        "copies": _told(copies, copies <= MOST_COPIES_SHARED),
    }


def _of_model(model: str, timings: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = {
        timing["loader"]: timing["seconds"]
        for timing in timings
        if timing["model"] == model and timing["state"] == "hot"
    }
    rates = {
        timing["loader"]: timing["gigabytes_per_second"]
        for timing in timings
        if timing["model"] == model and timing["state"] == "hot"
    }
    ours, into = seconds.get("craftcache"), seconds.get("craftcache load_into float16")
    of_link = _ratio(seconds.get("link"), ours)
    times_torch = _ratio(seconds.get("torch.load"), ours)
    times_load = _ratio(into, ours)
    return {
        "of_link": _told(of_link, of_link is not None and of_link >= LEAST_OF_LINK),
        "gigabytes_per_second": _told(
            rates.get("craftcache"), rates.get("craftcache", 0.0) >= LEAST_RATE
        ),
        "times_torch_load": _told(
            times_torch, times_torch is not None and times_torch >= LEAST_TIMES_TORCH
        ),
        "load_into_times_load": _told(
            times_load, times_load is not None and times_load <= MOST_TIMES_LOAD
        ),
    }


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _told(value: float | None, is_enough: bool) -> dict[str, Any]:
    return {
        "value": None if value is None else round(value, 3),
        "is_enough": is_enough if value is not None else None,
    }
