"""Pictures of the benchmarks: what the last runs found, as SVG.

``make bench`` ends with it. For each benchmark that has left its results here it writes
``docs/charts/<chart>.json``, the figures that are drawn, and ``docs/charts/<chart>.svg``, the
drawing. Equal figures make equal files, so that a chart in a commit changes only with them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Bar", "Chart", "DIRECTORY", "draw", "from_results", "value_text"]

RESULTS = Path(__file__).parent / "results"
DIRECTORY = Path(__file__).parents[2] / "docs" / "charts"

OURS, OTHERS, INK, GRID = "#0b6e4f", "#b8bfc6", "#24292f", "#d9dee3"
BAR_INCHES = 0.36
WIDTH_INCHES = 7.2
LOG_FROM = 50.0
"""Ratio of the largest to the smallest figure from which the axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One contender.

    Attributes:
        label: The contender.
        value: Its figure, in the chart's unit.
        is_ours: Whether it is craftcache.
    """

    label: str
    value: float
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """The figures of one drawing.

    Attributes:
        title: What was measured.
        unit: Unit of the figures, as shown behind them.
        bars: The contenders, from top to bottom.
    """

    title: str
    unit: str
    bars: tuple[Bar, ...]

    @property
    def is_log(self) -> bool:
        """Whether the axis is logarithmic, without which the smallest could not be seen."""
        values = [bar.value for bar in self.bars]
        return min(values) > 0 and max(values) / min(values) >= LOG_FROM

    def dump(self) -> str:
        """The figures as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def parse(cls, text: str) -> Chart:
        """The figures in JSON."""
        raw = json.loads(text)
        return cls(raw["title"], raw["unit"], tuple(Bar(**bar) for bar in raw["bars"]))


def value_text(value: float, unit: str) -> str:
    """A figure as it stands at its bar."""
    return f"{value:,.2f}".rstrip("0").rstrip(".") + f" {unit}"


def draw(chart: Chart, path: Path) -> None:
    """Write the chart as SVG, texts as texts; it loads nothing and runs nothing."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    settings: dict[Any, Any] = {
        "svg.hashsalt": chart.title,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
    }
    with pyplot.rc_context(settings):
        height = BAR_INCHES * len(chart.bars) + 0.9
        figure, axes = pyplot.subplots(figsize=(WIDTH_INCHES, height), layout="constrained")
        labels = [bar.label for bar in chart.bars]
        colors = [OURS if bar.is_ours else OTHERS for bar in chart.bars]
        bars = axes.barh(labels, [bar.value for bar in chart.bars], color=colors, height=0.68)
        shown = [value_text(bar.value, chart.unit) for bar in chart.bars]
        axes.bar_label(bars, shown, padding=4, color=INK, fontsize=9)
        axes.set_title(chart.title, loc="left", color=INK, fontsize=11)
        axes.invert_yaxis()
        axes.set_xscale("log" if chart.is_log else "linear")
        axes.margins(x=0.2)
        axes.tick_params(which="both", length=0, labelcolor=INK, labelsize=9)
        axes.set_xlabel(f"{chart.unit}{', logarithmic' if chart.is_log else ''}", color=INK, size=9)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "craftcache"})
        pyplot.close(figure)


def from_results(directory: Path) -> Iterator[tuple[str, Chart]]:
    """The charts of all benchmarks whose results are in ``directory``, by name."""
    for name, read in _READERS.items():
        path = directory / f"{name}.json"
        if path.exists():
            yield from read(json.loads(path.read_text()))


def _of_load(results: dict[str, Any]) -> Iterator[tuple[str, Chart]]:
    shapes = [timing["shape"] for timing in results["timings"]]
    shape = "2 GB" if "2 GB" in shapes else shapes[0]
    for name, what, title in (
        ("load", "load", f"A hot load of {shape} to the CPU"),
        ("load-into", "load + load_state_dict", f"{shape}, hot, into a model that is there"),
    ):
        timings = [t for t in results["timings"] if (t["shape"], t["what"]) == (shape, what)]
        yield name, Chart(title, "ms", tuple(_bar(t["loader"], t["milliseconds"]) for t in timings))
    if results["workers"]:
        count = results["workers"][0]["count"]
        bars = tuple(_bar(w["loader"], w["bytes_per_file_byte"]) for w in results["workers"])
        yield "memory", Chart(f"Memory of {count} workers with one model", "times the file", bars)


def _of_fetch(results: dict[str, Any]) -> Iterator[tuple[str, Chart]]:
    size = results["file_bytes"] / 2**30
    title = f"Fetching {size:g} GiB, verified and fsynced"
    bars = tuple(_bar(row["contender"], row["times_as_long"]) for row in results["uncapped"])
    yield "fetch", Chart(title, "times as long", bars)


def _of_audiocraft(results: list[dict[str, Any]]) -> Iterator[tuple[str, Chart]]:
    bars = tuple(Bar(r["contender"], r["seconds"], "install" in r["contender"]) for r in results)
    yield "audiocraft", Chart("MusicGen.get_pretrained, musicgen-small, to the CPU", "s", bars)


_READERS: dict[str, Callable[[Any], Iterator[tuple[str, Chart]]]] = {
    "load": _of_load,
    "fetch": _of_fetch,
    "audiocraft": _of_audiocraft,
}


def _bar(label: str, value: float) -> Bar:
    return Bar(label, value, label.startswith("craftcache"))


def main() -> None:
    """Write figures and drawings; with ``--redraw`` the drawings of the figures that are there."""
    parser = argparse.ArgumentParser(prog="tests.bench.charts", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--into", type=Path, default=DIRECTORY)
    parser.add_argument("--redraw", action="store_true")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    for name, chart in () if options.redraw else from_results(options.results):
        (options.into / f"{name}.json").write_text(chart.dump())
    for path in sorted(options.into.glob("*.json")):
        draw(Chart.parse(path.read_text()), path.with_suffix(".svg"))
        print(path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
