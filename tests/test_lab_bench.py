"""Measurements are interleaved, checked, kept, and judged: the numbers come out of the samples and of nothing else."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.errors import ConfigurationError, ReportError
from kit.lab import bench
from kit.lab.baseline import Known, changes, is_worse, past, write
from kit.lab.bench import Comparison, Ratio, Target, Verdicts, compare, compare_async
from kit.lab.environment import commit, conditions, environment, versions
from kit.lab.project import project_root
from kit.lab.quantities import digits, elapsed, quantity


def _made(**samples: Any) -> Comparison:
    """A comparison whose samples, in nanoseconds, are given."""
    arrays = {name: np.asarray(values, dtype=float) for name, values in samples.items()}
    return Comparison(name="made", samples=arrays, baseline=next(iter(samples)))


def test_contenders_take_turns_in_every_round_in_changing_order() -> None:
    turns: list[str] = []
    contenders = {name: (lambda name=name: turns.append(name)) for name in "abc"}
    compare(contenders, name="turns", rounds=8, samples=2, warmup=1, check=lambda _: None)
    rounds = [turns[start : start + 6] for start in range(0, len(turns), 6)]
    assert len(rounds) == 9
    assert all(sorted(one[::2]) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_every_sample_answer_is_checked_and_a_wrong_one_ends_the_measurement() -> None:
    answers = itertools.count()
    seen: list[int] = []
    compare({"kit": lambda: next(answers)}, name="seen", rounds=3, samples=4, warmup=0, check=seen.append)
    assert seen == list(range(12))
    with pytest.raises(ReportError, match="sloppy gave a wrong answer: 41"):
        compare({"sound": lambda: 42, "sloppy": lambda: 41}, name="wrong", check=lambda answer: answer == 42)


def test_a_check_may_be_its_own_for_each_contender() -> None:
    checks = {"a": lambda answer: answer == 1, "b": lambda answer: answer == "1"}
    result = compare({"a": lambda: 1, "b": lambda: "1"}, name="own", rounds=2, samples=2, check=checks)
    assert set(result.samples) == {"a", "b"}
    with pytest.raises(ConfigurationError, match="no check for b"):
        compare({"a": int, "b": int}, name="own", check={"a": bool})


@pytest.mark.parametrize(
    ("contenders", "baseline", "message"),
    [({}, None, "nothing to compare"), ({"a": int}, "b", "baseline 'b' is not among a")],
)
def test_what_cannot_be_compared_is_refused(contenders: Any, baseline: str | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compare(contenders, name="x", check=bool, baseline=baseline)


def test_the_garbage_collector_is_out_of_the_timed_stretch_and_back_afterwards() -> None:
    states: list[bool] = []
    result = compare({"a": lambda: states.append(gc.isenabled())}, name="gc", rounds=2, samples=2, check=lambda _: None)
    assert states
    assert not any(states)
    assert gc.isenabled()
    assert result.conditions["gc"] == "between"
    states.clear()
    compare({"a": lambda: states.append(gc.isenabled())}, name="gc", rounds=1, check=lambda _: None, garbage="on")
    assert all(states)


def test_garbage_may_be_collected_once_a_round() -> None:
    found: list[tuple[bool, int]] = []

    def look() -> None:
        found.append((gc.isenabled(), gc.get_stats()[2]["collections"]))

    compare({"a": look, "b": look}, name="gc", rounds=2, samples=1, warmup=0, check=lambda _: None, garbage="rounds")
    assert not any(enabled for enabled, _ in found)
    assert [collections - found[0][1] for _, collections in found] == [0, 0, 1, 1]
    assert gc.isenabled()


def test_inner_calls_are_averaged() -> None:
    calls = itertools.count()
    compare({"a": lambda: next(calls)}, name="inner", rounds=2, samples=3, inner=10, warmup=0, check=lambda _: None)
    assert next(calls) == 60


async def test_coroutines_are_compared_the_same_way() -> None:
    async def answer() -> int:
        return 42

    result = await compare_async(
        {"kit": answer, "bare": answer},
        name="async",
        rounds=3,
        samples=5,
        operations=10,
        check=lambda found: found == 42,
    )
    assert result.samples["kit"].shape == (3, 5)
    assert result.rate("kit") > 10
    assert "rate" in result.table().columns


def test_percentiles_come_from_raw_samples_and_ratios_from_rounds() -> None:
    result = _made(kit=[[2000, 4000], [20000, 40000]], bare=[[1000, 2000], [10000, 20000]])
    assert result.percentile("kit", 100) == pytest.approx(40e-6)
    assert list(result.seconds("bare")) == [1e-6, 2e-6, 1e-5, 2e-5]
    assert result.ratio("kit", to="bare").value == pytest.approx(2.0)  # a slow round is slow for both
    assert result.ratio("bare").value == pytest.approx(0.5)
    assert result.difference("kit", to="bare").value == pytest.approx((1.5e-6 + 15e-6) / 2)
    with pytest.raises(ConfigurationError, match="no contender 'x', only kit, bare"):
        result.seconds("x")


def test_the_interval_holds_the_median_and_narrows_with_rounds() -> None:
    rng = np.random.default_rng(1)
    few, many = (bench.median_interval(rng.normal(1.2, 0.1, size)) for size in (10, 1000))
    assert few.low <= few.value <= few.high
    assert many.high - many.low < few.high - few.low
    assert many.low < 1.2 < many.high


def test_samples_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    result = compare({"a": int, "b": float}, name="kept", rounds=3, samples=4, check=lambda answer: answer == 0)
    again = bench.load(result.save(tmp_path))
    assert again.name == "kept"
    assert again.environment == result.environment
    for name in result.samples:
        np.testing.assert_allclose(again.samples[name], result.samples[name], atol=0.06)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ReportError, match="holds no samples"):
        bench.load(tmp_path / "other.json")


def test_a_table_has_units_and_intervals_and_a_summary_is_plain() -> None:
    table = _made(kit=[[2000.0, 4000], [2000, 4000]], bare=[[1000.0, 2000], [1000, 2000]]).table()
    assert table.loc["kit", "p50"] == "3.00 µs"
    assert table.loc["kit", "ratio to kit"] == "1"
    assert table.loc["bare", "ratio to kit"] == "0.500 × [0.500, 0.500]"
    summary = _made(kit=[[2000.0, 4000], [2000, 4000]]).summary()
    assert summary["kit"]["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}


# --- targets ----------------------------------------------------------------------------------------------------


def test_the_nine_targets_of_the_specification() -> None:
    assert len(bench.SPECIFICATION) == 9
    assert {target.component for target in bench.SPECIFICATION} == {"NATS", "OTEL", "CODEC"}


@pytest.mark.parametrize(
    ("better", "measured", "met"),
    [("lower", 9.0, True), ("lower", 10.1, False), ("higher", 9.0, False), ("higher", 10.0, True)],
)
def test_a_verdict_follows_the_direction(better: Any, measured: float, met: bool) -> None:
    assert Target("x", 10.0, unit="/s", better=better).verdict(measured).met is met


def test_missed_targets_are_named_after_the_table_was_shown() -> None:
    ratio = Ratio(value=1.2, low=1.1, high=1.3)
    rows = Verdicts(
        [Target("fast", 1e-3).verdict(0.5e-3, limit=0.1e-3, ratio=ratio), Target("slow", 1e-3).verdict(2e-3)]
    )
    assert list(rows.table()["verdict"]) == ["✓ met", "✗ missed"]
    assert "1.20 × [1.10, 1.30]" in repr(rows)
    assert "<td>≤ 1.00 ms</td>" in rows._repr_html_()
    assert "no targets" in Verdicts([])._repr_html_()
    with pytest.raises(ReportError, match=r"1 of 2 targets missed: slow: 2.00 ms, target ≤ 1.00 ms"):
        rows.require()
    Verdicts(rows[:1]).require()


def test_a_table_says_how_many_samples_there_are_and_shows_no_percentile_that_these_do_not_reach() -> None:
    fewest, few, many = (bench.Comparison(name="a_b", samples={"x": np.full(shape, 1e6)}, baseline="x", inner=inner)
                         for shape, inner in (((13, 3), 1), ((9, 11), 50), ((10, 10), 1)))  # fmt: skip
    assert fewest.table().loc["x"].tolist() == ["1.00 ms", "–", "–", "1", "39"]
    assert few.table().loc["x"].tolist() == ["1.00 ms", "1.00 ms", "–", "1", "99 of 50 calls"]
    assert many.table().loc["x", "p99"] == "1.00 ms"
    assert many.table().index.name == "a b"
    assert "p99_s" not in few.summary()["x"]


def test_curves_have_the_intervals_of_their_points_as_bands() -> None:
    rows = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]) * 1e3
    series, bands = bench.growth([bench.Comparison(name="a", samples={"x": rows}, baseline="x")], 1e6)
    assert series == {"x": [pytest.approx(2.0)]}
    assert [end[0] for end in bands["x"]] == [pytest.approx(1.0), pytest.approx(3.0)]


def test_pytest_benchmark_only_finds_every_benchmark_and_no_test() -> None:
    around = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "--benchmark-only", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=project_root(), env=around, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    files = (project_root() / "tests" / "benchmarks").glob("benchmark_*.py")
    assert found == {path.relative_to(project_root()).as_posix() for path in files}


# --- baseline ---------------------------------------------------------------------------------------------------


def _body(**found: tuple[float, float, float]) -> list[dict[str, Any]]:
    rows = [{"name": name, "ratio": dict(zip(("value", "low", "high"), of, strict=True))} for name, of in found.items()]
    return [{"notebook": "31_x", "records": [{"verdicts": [*rows, {"name": "plain", "ratio": None}]}]}]


def test_only_a_ratio_beyond_the_noise_of_both_is_a_regression(tmp_path: Path) -> None:
    assert (
        write(_body(encode=(1.2, 1.1, 1.3), decode=(1.2, 1.1, 1.3), fast=(2, 1.9, 2.1), gone=(1, 1, 1)), tmp_path) == 4
    )
    now = _body(encode=(1.9, 1.8, 2.0), decode=(1.35, 1.2, 1.5), fast=(1, 0.9, 1.1), new=(9, 9, 9))
    found = {change.name: change for change in changes(now, tmp_path)}
    assert {name: change.state for name, change in found.items()} == {
        "31_x/encode": "worse", "31_x/decode": "steady", "31_x/fast": "better", "31_x/new": "new",
    }  # fmt: skip
    told = "31_x/encode: 1.90 × [1.80, 2.00], baseline 1.20 × [1.10, 1.30]: +58 %, 50 % allowed by 1 run"
    assert str(found["31_x/encode"]) == told
    assert str(found["31_x/new"]).endswith("baseline none")
    assert write(now, tmp_path) == 4
    assert "31_x/gone" in (tmp_path / "baseline.json").read_text()


def test_the_trend_is_that_of_the_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.lab.baseline.project_root", lambda: tmp_path)
    assert past() == []
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "reports").mkdir()
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    for value in (1.5, 1.3):
        write(_body(encode=(value, value, value)), tmp_path / "reports")
        subprocess.run([*git, "add", "-A"], cwd=tmp_path, check=True)
        subprocess.run([*git, "commit", "-q", "-m", "x"], cwd=tmp_path, check=True)
    (change,) = changes(_body(encode=(1.1, 1.0, 1.2)), tmp_path / "reports", history=True)
    assert change.history == (1.5, 1.3, 1.1)


@pytest.mark.parametrize(
    ("runs", "allowed"),
    [([1.0], 0.5), ([1.0, 1.02], 0.3), ([1.0, 1.02, 0.99], 0.15), ([1.0, 0.9, 1.2], 0.4), ([1.0, 0.5, 1.0, 1.1], 2.0)],
)
def test_each_ratio_has_a_margin_from_its_own_runs(runs: list[float], allowed: float) -> None:
    known = Known(runs=tuple(Ratio(value=run, low=run, high=run) for run in runs))
    assert known.margin("") == pytest.approx(allowed)


def test_the_baseline_keeps_the_last_runs_of_what_is_the_same_code(tmp_path: Path) -> None:
    for value in (1.0, 1.05, 0.95, 1.02, 0.98, 1.01):
        write(_body(encode=(value, value, value)), tmp_path)
    kept = json.loads((tmp_path / "baseline.json").read_text())["31_x/encode"]["runs"]
    assert [run["value"] for run in kept] == [1.05, 0.95, 1.02, 0.98, 1.01]
    (slower,) = changes(_body(encode=(1.2, 1.19, 1.21)), tmp_path)
    assert (slower.state, slower.runs) == ("worse", 5)
    (noisy,) = changes(_body(encode=(1.2, 1.04, 1.4)), tmp_path)
    assert noisy.state == "steady"
    write(_body(encode=(0.5, 0.5, 0.5)), tmp_path)
    assert len(json.loads((tmp_path / "baseline.json").read_text())["31_x/encode"]["runs"]) == 1


def test_a_baseline_of_a_single_run_is_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "baseline.json").write_text('{"31_x/encode": {"value": 1, "low": 0.9, "high": 1.1, "machine": ""}}')
    (change,) = changes(_body(encode=(1.4, 1.3, 1.5)), tmp_path)
    assert (change.state, change.least) == ("steady", 0.5)


@pytest.mark.parametrize(
    ("now", "worse"),
    [((1.2, 1.19, 1.21), False), ((1.6, 1.55, 1.65), True), ((1.9, 0.95, 2.5), False), ((0.5, 0.4, 0.6), False)],
)
def test_a_small_change_is_none_on_a_quiet_machine_nor_a_large_one_on_a_noisy_machine(
    now: tuple[float, float, float], worse: bool
) -> None:
    value, low, high = now
    assert is_worse(Ratio(value=value, low=low, high=high), Ratio(value=1.0, low=0.99, high=1.01), 0.5) is worse


_HERE = {"cpu": "EPYC", "cores": 2, "python": "CPython 3.11.7"}


@pytest.mark.parametrize(
    ("around", "value", "state"),
    [
        ({"python": "CPython 3.11.9"}, 1.6, "worse"), ({"cores": 16}, 1.6, "steady"), ({"cores": 16}, 2.6, "worse"),
        ({"cpu": "Xeon"}, 0.45, "better"), ({"python": "CPython 3.13.0"}, 0.6, "steady"),
    ],
)  # fmt: skip
def test_on_another_machine_than_the_baseline_only_a_doubling_counts(
    tmp_path: Path, around: dict[str, Any], value: float, state: str
) -> None:
    write([{**_body(encode=(1.0, 0.9, 1.1))[0], "environment": _HERE}], tmp_path)
    now = [{**_body(encode=(value, value, value))[0], "environment": _HERE | around}]
    (change,) = changes(now, tmp_path)
    assert change.state == state


def test_noise_between_runs_of_the_same_code_does_not_cry_wolf_and_a_slow_piece_of_code_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)

    def run(cost: float) -> list[dict[str, Any]]:
        """Thirty rounds on a machine whose runs differ by 6 %, and whose rounds differ by 20 %."""
        drift = rng.normal(1.0, 0.06)
        ratio = bench.median_interval(cost * drift * rng.lognormal(0.0, 0.2, 30))
        return _body(encode=(ratio.value, ratio.low, ratio.high))

    write(run(1.0), tmp_path)
    states = {cost: [changes(run(cost), tmp_path)[0].state for _ in range(100)] for cost in (1.0, 2.0)}
    assert states[1.0].count("worse") <= 1
    assert states[2.0].count("worse") >= 95


# --- environment and units --------------------------------------------------------------------------------------


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    around = environment()
    assert around["cores"] >= 1
    assert around["packages"]["nbval"]
    assert versions(("no-such-package",)) == {}
    assert set(conditions()) >= {"gc_enabled", "logging_level", "tracing"}
    monkeypatch.setenv("PATH", "")
    assert commit() == ""


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00123, "s", "1.23 ms"), (1.5e-6, "s", "1.50 µs"), (5e-10, "s", "0.500 ns"), (2.0, "s", "2.00 s"),
        (0, "s", "0 s"), (12345.6, "/s", "12,346 /s"),
        (1.2, "×", "1.20 ×"), (None, "s", "–"), (float("nan"), "%", "–"), (3, "", "3"),
        (0.0000123, "", "1.23e-05"), (42.0, "%", "42.0 %"),
    ],
)  # fmt: skip
def test_a_quantity_reads_well(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_wall_clock_time_reads_well() -> None:
    assert [elapsed(8.26), elapsed(125.2), digits(0)] == ["8.3 s", "2 min 05 s", "0"]
