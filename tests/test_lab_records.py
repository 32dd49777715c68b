"""Numbers leave a notebook as records, pictures as SVG that follows the page, errors as one line."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from defusedxml import ElementTree

from kit.components.llmops.reports import UsageReport
from kit.components.rag import evaluation
from kit.errors import CodecError, ReportError
from kit.lab import charts
from kit.lab.records import MIME, Headline, collect, expect, plain, record


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    import IPython.display

    found: list[dict[str, Any]] = []
    monkeypatch.setattr(IPython.display, "publish_display_data", found.append)
    return found


def test_a_record_is_display_data_with_a_steady_text(displayed: list[dict[str, Any]]) -> None:
    record("retrieval", {"recall@5": np.float32(0.5)}, title="Retrieval", headlines=[Headline("recall@5", 0.5)])
    (data,) = displayed
    assert data["text/plain"] == "record retrieval: recall@5"
    assert data[MIME]["values"] == {"recall@5": 0.5}
    assert data[MIME]["headlines"] == [{"label": "recall@5", "value": 0.5, "unit": "", "beside": ""}]
    record("curve", [1, 2, 3])
    assert displayed[-1]["text/plain"] == "record curve: 3 items"


def test_records_are_found_in_an_executed_notebook() -> None:
    cells = [{"cell_type": "markdown"}, {"outputs": [{"data": {MIME: {"name": "a"}}}, {"text": "x"}]}]
    assert collect({"cells": cells}) == [{"name": "a", "cell": 1}]


@dataclass
class _Point:
    x: int
    where: Path


def test_values_become_plain_json() -> None:
    value = {"a": np.arange(3), "b": (np.int64(1), np.bool_(True)), "c": _Point(1, Path("x/y")), 5: None}
    assert plain(value) == {"a": [0, 1, 2], "b": [1, True], "c": {"x": 1, "where": "x/y"}, "5": None}


@pytest.mark.parametrize("value", [float("nan"), np.float64("inf"), object(), {"deep": [float("inf")]}])
def test_what_json_cannot_hold_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ReportError, match="record 'x"):
        plain(value, "x")


def test_an_expected_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with expect(CodecError):
        raise CodecError("too short", message_type="rag_query", path="/text")
    assert capsys.readouterr().out == "CodecError: rag_query at /text: too short\n"


def test_an_expected_error_that_does_not_come_is_an_error() -> None:
    with pytest.raises(ReportError, match="expected a CodecError, and nothing was raised"), expect(CodecError):
        pass
    with pytest.raises(KeyError), expect(CodecError):
        raise KeyError("other")


# --- charts -----------------------------------------------------------------------------------------------------

SAMPLES = {"kit": np.linspace(1e-4, 2e-4, 500), "bare": np.linspace(0.9e-4, 1.8e-4, 500)}


def _all() -> list[charts.Chart]:
    band = {"kit": ([1, 2, 3], [2, 3, 4])}
    whiskers = {"kit": (9e-7, 1.1e-6)}
    return [
        charts.latency(SAMPLES, title="Latency", target=0.01),
        charts.latency(SAMPLES, title="Latency without a target"),
        charts.bars({"kit": 1e-6, "b": 2e-6}, title="Bars", unit="s", target=1.5e-6, limit=4e-7, intervals=whiskers),
        charts.bars({"kit": 1.2, "b": 2.0}, title="Ratios", unit="×", better="higher"),
        charts.curves([1, 10, 99], {"kit": [1, 2, 3]}, title="Curve", x_label="n", y_label="y", log_x=True, bands=band),
        charts.curves([1, 2], {"kit": [1, 100]}, title="Log", x_label="n", y_label="y", log_y=True, target=50),
    ]  # fmt: skip


def test_every_chart_is_an_svg_that_follows_the_page_and_says_its_title() -> None:
    for chart in _all():
        root = ElementTree.fromstring(chart.svg)
        assert root.tag.endswith("svg")
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"] == chart.title
        assert "var(--chart-ink, #1f2430)" in chart.svg
        assert "var(--chart-paper, #ffffff)" in chart.svg
        assert repr(chart) == f"Chart: {chart.title}"
        assert set(chart._repr_mimebundle_()) == {"image/svg+xml", "text/plain"}


def test_the_same_data_draw_the_same_picture() -> None:
    assert [chart.svg for chart in _all()] == [chart.svg for chart in _all()]


def test_a_title_is_escaped() -> None:
    chart = charts.bars({"a": 1.0}, title='a < b & "c"', unit="x")
    assert ElementTree.fromstring(chart.svg).attrib["aria-label"] == 'a < b & "c"'


@pytest.mark.parametrize("letters", [5, 30, 70])
def test_a_legend_stays_within_the_picture(letters: int) -> None:
    with charts._axes() as (drawn, axes):
        for number in range(4):
            axes.plot([1, 2], label=f"{number}" * letters)
        charts._legend(drawn)
        (legend,) = drawn.legends
        assert legend.get_window_extent().x1 <= drawn.bbox.x1
    charts.figure(drawn, title="Closed")


def test_no_figure_stays_behind() -> None:
    import matplotlib.pyplot as plt

    _all()
    with pytest.raises(ValueError, match="same first dimension"):
        charts.curves([1, 2], {"kit": [1]}, title="x", x_label="x", y_label="unit")
    assert plt.get_fignums() == []


def test_a_figure_of_ones_own_becomes_a_chart() -> None:
    import matplotlib.pyplot as plt

    with charts.style():
        drawn, axes = plt.subplots()
        axes.plot([1, 2, 3])
    assert charts.figure(drawn, title="Mine").title == "Mine"


ODD_NAMES = ["$\\evil$", "a$b$c", "$", "_hidden", "$\\frac{$", "x^{y_z}", "<b>&amp;", "%s {0}"]


def test_pictures_show_names_as_they_are() -> None:
    samples = {name: [0.1, 0.2, 0.3] for name in ODD_NAMES}
    for chart in (
        charts.latency(samples, title="$\\evil$"),
        charts.bars(dict.fromkeys(ODD_NAMES, 1.0), title="$\\evil$", unit="1/s"),
        charts.curves([1, 2, 3], samples, title="$\\evil$", x_label="$\\x$", y_label="$"),
    ):
        words = html.unescape(chart.svg)
        assert [name for name in ODD_NAMES if name not in words] == []


def test_other_pictures_show_names_as_they_are_too() -> None:
    table = pd.DataFrame({"recall@5": 0.5, "MRR@10": 0.5}, index=ODD_NAMES)
    rows: list[Any] = [{"group": {"user": name, "agent": name}, "operations": 1} for name in ODD_NAMES]
    usage = UsageReport({"rows": rows, "group_by": ["user", "agent"]})
    for drawn in (evaluation.figure(table, title="$\\evil$"), usage.figure("operations")):
        written = io.StringIO()
        with plt.rc_context({"svg.fonttype": "none"}):
            drawn.savefig(written, format="svg")
        words = html.unescape(written.getvalue())
        assert [name for name in ODD_NAMES if name not in words] == []
