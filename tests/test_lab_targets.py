"""A target is met or missed beyond doubt, or undecided; targets and goals are counted apart wherever they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit.errors import ReportError
from kit.lab import readme
from kit.lab.report import index
from kit.lab.targets import Ratio, Target, Verdicts, state_of, tally

PER_CENT = Target("overhead", 5.0, unit="%", metric="% of operation time")
GOAL = Target("rate", 2.0, unit="×", better="higher", goal=True)


def between(low: float, high: float) -> Ratio:
    return Ratio(value=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("better", "low", "high", "state"),
    [
        ("lower", 3.0, 4.9, "met"), ("lower", 4.0, 5.1, "undecided"), ("lower", 5.1, 6.0, "missed"),
        ("higher", 5.0, 6.0, "met"), ("higher", 4.9, 6.0, "undecided"), ("higher", 4.0, 4.9, "missed"),
    ],
)  # fmt: skip
def test_an_interval_decides_only_where_all_of_it_is_on_one_side(
    better: Any, low: float, high: float, state: str
) -> None:
    target = Target("overhead", 5.0, unit="%", better=better)
    verdict = target.verdict(5.0, interval=between(low, high))
    assert verdict.state == state
    assert verdict.met is (state == "met")
    assert verdict.plain()["goal"] is False  # undecided or missed, a target stays a target


def test_what_is_undecided_is_shown_as_such_and_stops_nothing() -> None:
    unsure, missed = (
        PER_CENT.verdict(5.0, interval=between(4.1, 5.9)),
        PER_CENT.verdict(7.0, interval=between(6.1, 7.9)),
    )
    cells = unsure.cells()
    assert (cells["measured"], cells["verdict"]) == ("5.00 % [4.10 %, 5.90 %]", "? undecided")
    Verdicts([unsure]).require()
    with pytest.raises(ReportError, match=r"1 of 2 targets missed: overhead: 7\.00 %"):
        Verdicts([unsure, missed]).require()


def test_a_card_counts_targets_and_goals_apart() -> None:
    rows = Verdicts([PER_CENT.verdict(5.0, interval=between(4.1, 5.9)), PER_CENT.verdict(1.0), GOAL.verdict(1.5)])
    assert list(index._chips(rows.plain())) == [
        {"chip": "wait", "text": "1/2 targets"}, {"chip": "wait", "text": "0/1 goals"},
    ]  # fmt: skip
    assert list(index._chips(Verdicts([PER_CENT.verdict(9.0)]).plain())) == [{"chip": "bad", "text": "0/1 targets"}]
    assert tally([]) == "no targets"


def test_the_readme_says_undecided() -> None:
    row = PER_CENT.verdict(5.0, interval=between(4.1, 5.9)).plain()
    assert readme._measured(row, Path("33_x.ipynb"))[2:5] == ("≤ 5.00 %", "5.00 % [4.10 %, 5.90 %]", "undecided")


def test_a_rates_ratio_is_shown_in_the_direction_of_what_is_measured_and_kept_as_one_of_time() -> None:
    time = Ratio(value=0.5, low=0.4, high=0.625)
    verdict = GOAL.verdict(2.0, ratio=time)
    assert verdict.cells()["ratio, by rounds"] == "2.00 × [1.60, 2.50]"
    assert verdict.plain()["ratio"] == time.plain()


def test_a_verdict_of_before_there_were_intervals_is_met_or_missed() -> None:
    assert (state_of({"met": True}), state_of({"met": False})) == ("met", "missed")
