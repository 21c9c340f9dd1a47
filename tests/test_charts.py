"""The charts of the benchmarks that are committed: what they show, and what they are made from."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench.charts import DIRECTORY, Chart, draw, from_results, value_text

ROOT = Path(__file__).parents[1]
CHARTS = {path.stem: Chart.parse(path.read_text()) for path in sorted(DIRECTORY.glob("*.json"))}
LOAD = {
    "timings": [
        {"shape": shape, "what": what, "loader": loader, "milliseconds": milliseconds}
        for shape in ("0.84 GB", "2 GB")
        for what in ("load", "load + load_state_dict")
        for loader, milliseconds in (("craftcache", 1.25), ("torch.load", 1234.5))
    ],
    "workers": [
        {"loader": "craftcache", "count": 8, "bytes_per_file_byte": 1.01},
        {"loader": "torch.load", "count": 8, "bytes_per_file_byte": 8.01},
    ],
}
FETCH = {
    "file_bytes": 2**31,
    "uncapped": [
        {"contender": "craftcache", "times_as_long": 1.0},
        {"contender": "curl + sha256sum", "times_as_long": 2.4},
    ],
}
AUDIOCRAFT = [
    {"contender": "upstream alone", "seconds": 9.1},
    {"contender": "with install()", "seconds": 0.54},
]


def texts(path: Path) -> list[str]:
    """All texts of an SVG, which may load nothing and run nothing."""
    tree = ElementTree.parse(path)
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert not names & {"script", "image", "foreignObject", "a"}
    return ["".join(element.itertext()).strip() for element in tree.iter() if element.text]


@pytest.mark.parametrize("name", CHARTS)
def test_a_committed_chart_shows_its_figures(name: str) -> None:
    chart, shown = CHARTS[name], texts(DIRECTORY / f"{name}.svg")
    assert chart.title in shown
    for bar in chart.bars:
        assert bar.label in shown
        assert value_text(bar.value, chart.unit) in shown
    assert any(bar.is_ours for bar in chart.bars)


def test_documents_show_all_charts_and_no_other() -> None:
    link = re.compile(r"!\[[^]]+\]\((\S+\.svg)\)")
    for document in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        linked = link.findall(document.read_text())
        assert linked
        assert all((document.parent / path).is_file() for path in linked)
    assert {Path(path).stem for path in linked} == set(CHARTS)


def test_results_become_charts_that_are_drawn_alike_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, results in (("load", LOAD), ("fetch", FETCH), ("audiocraft", AUDIOCRAFT)):
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    charts = dict(from_results(tmp_path))
    assert set(charts) == {"load", "load-into", "memory", "fetch", "audiocraft"}
    assert charts["load"].title == "A hot load of 2 GB to the CPU"
    for name, chart in charts.items():
        assert Chart.parse(chart.dump()) == chart
        drawings = [tmp_path / f"{name}-{number}.svg" for number in range(2)]
        for drawing in drawings:
            draw(chart, drawing)
        assert drawings[0].read_bytes() == drawings[1].read_bytes()
        assert {bar.label for bar in chart.bars} <= set(texts(drawings[0]))
        assert [asdict(bar)["is_ours"] for bar in chart.bars].count(True) == 1


def test_of_what_has_no_results_there_is_no_chart(tmp_path: Path) -> None:
    assert list(from_results(tmp_path)) == []
