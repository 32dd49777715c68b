"""Telemetry's cost is decided by off and on in the same rounds; what noise leaves open is undecided, never a miss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kit.catalogue import GATEWAY_CACHE_HITS, RAG_VECTOR_SEARCH
from kit.errors import ReportError
from kit.lab.bench import Comparison
from kit.lab.benchmarks import otel, telemetry_costs, telemetry_peers, telemetry_singles
from kit.lab.benchmarks.contest import Contest
from kit.lab.benchmarks.kept import Kept
from kit.lab.benchmarks.otel import BARE, GATEWAY, wall_of
from kit.lab.benchmarks.telemetry_switch import LOGGED, METRICS, OFF, TRACED, Switch, all_settings


def _result(noise: float, tracing: float = 0.02, wall: float = 1.0) -> Comparison:
    """Forty rounds of 10 ms, in which neighbouring settings differ by their cost, give or take up to the noise."""
    spread = np.linspace(-noise, noise, 40).reshape(-1, 1)
    whole = {OFF: 1 + 0 * spread, METRICS: 1.001 + spread, TRACED: 1.001 + tracing, LOGGED: 1.002 + tracing + spread}
    samples = {
        name: np.broadcast_to(1e7 * cost, (40, 1)) for name, cost in (whole | {wall_of(OFF): wall + 0 * spread}).items()
    }
    return Comparison(name="made", samples=samples, baseline=OFF)


@pytest.mark.parametrize(
    ("noise", "tracing", "wall", "state"),
    [
        (0.001, 0.02, 1.0, "met"),
        (0.001, 0.09, 1.0, "missed"),
        (0.001, 0.09, 2.0, "met"),  # the share is of the time on the wall
        (0.2, 0.04, 1.0, "undecided"),
        (0.2, 0.06, 1.0, "undecided"),
    ],
)
def test_off_and_on_decide_unless_the_target_lies_within_the_interval(
    noise: float, tracing: float, wall: float, state: str
) -> None:
    result = _result(noise, tracing, wall)
    rows = {row.target.name: row for row in otel.overheads(otel.deciding(result, result), "a query")}
    assert rows["OTEL overhead: a query"].measured == pytest.approx(100 * (0.002 + tracing) / wall, abs=100 * noise)
    row = rows["tracing overhead: a query"]
    assert (row.state, row.target.goal) == (state, False)
    assert row.interval is not None
    assert row.interval.low <= row.measured <= row.interval.high


def test_the_noise_of_the_wall_is_in_the_interval_of_a_share() -> None:
    steady = _result(0.0)
    walls = np.random.default_rng(1).uniform(0.5, 1.5, (40, 1)) * 1e7
    noisy = replace(steady, samples=steady.samples | {wall_of(OFF): walls})
    sure, unsure = (otel.share(result, otel.STEPS["tracing overhead"]) for result in (steady, noisy))
    assert sure.high - sure.low < 1e-9 < unsure.high - unsure.low


def test_metrics_alone_count_and_time_without_a_span_or_a_header() -> None:
    telemetry = all_settings()[METRICS]
    with telemetry.operation(RAG_VECTOR_SEARCH, {"rag.top_k": 5}) as opened:
        assert opened.headers() is None
    with pytest.raises(ValueError, match="lost"), telemetry.operation(RAG_VECTOR_SEARCH):
        raise ValueError("lost")
    found = telemetry.recorder.metrics()
    assert {"success", "error"} <= {labels["status"] for labels in found["labels"]}
    assert telemetry.recorder.spans().empty
    telemetry.shutdown(1.0)


def test_a_switch_turns_loggers_that_were_bound_before_and_a_tally_counts() -> None:
    switch = Switch(all_settings())
    log = switch.logger("kit.rag")
    log.warning("unheard")
    switch.use(LOGGED)
    log.info("heard %d", 1)
    log.debug("too low")
    told = switch.settings[LOGGED].recorder.logs()
    assert list(told["body"]) == ["heard 1"]
    with switch.counting(TRACED) as tally:
        switch.count(GATEWAY_CACHE_HITS)
        with switch.operation(RAG_VECTOR_SEARCH):
            switch.annotate({"rag.top_k": 5})
    switch.count(GATEWAY_CACHE_HITS)
    assert dict(tally.calls) == {"count": 1, "operation": 1, "annotate": 1}
    for telemetry in switch.settings.values():
        telemetry.shutdown(1.0)


async def test_an_operation_is_measured_with_both_clocks_and_kept_and_read_again(tmp_path: Path) -> None:
    place = await otel.Workplace.open(1)
    try:
        name = otel.file_name(BARE)
        kept = Kept(folder=tmp_path)
        bare = await kept.take(name, place.compare, BARE, rounds=4)
        assert (bare.conditions["clock"], bare.conditions["gc"]) == ("cpu", "rounds")
        assert {samples.shape for samples in bare.samples.values()} == {(4, 1)}
        assert otel.clocks(bare).shape == (4, 6)
        calls = await kept.facts("otel_calls", place.calls, times=3)
        assert calls[BARE] == {"operation": 2.0, "log line": 1.0}  # which is the benchmark's
        assert calls[GATEWAY]["operation"] > 2
        costs = {
            kind: await kept.take(f"otel_one_{kind}", telemetry_costs.unit_cost, place, kind, rounds=3)
            for kind in telemetry_costs.KINDS
        }
        counted = telemetry_costs.count_all(calls, costs, bare)
        assert counted[BARE]["tracing overhead"] == bare.difference(TRACED, to=METRICS)
        assert counted[BARE]["metrics collection overhead"].value == pytest.approx(
            bare.difference(METRICS, to=OFF).value
        )
        again = await Kept(measure=False, folder=tmp_path).take(name, place.compare, BARE, rounds=4)
        line = await kept.take(f"{name}_line", place.compare, BARE, rounds=3, settings=otel.LINE)
        assert set(line.samples) == {*otel.LINE, *map(wall_of, otel.LINE)}
        assert {signal: which is line for signal, which in otel.deciding(bare, line).items()} == {
            "metrics collection overhead": False, "tracing overhead": False, "logging overhead": True,
        }  # fmt: skip
        first, second = ({BARE: otel.deciding(whole, line)} for whole in (bare, again))
        assert otel.estimates(first, counted).equals(otel.estimates(second, counted))
    finally:
        await place.close()


async def test_what_a_gateway_request_leaves_to_the_background_is_done_within_its_turn() -> None:
    place = await otel.Workplace.open(1)
    try:
        recorder = place.switch.settings[LOGGED].recorder
        await place._turn(LOGGED, GATEWAY, [])
        recorder.clear()
        await place._turn(LOGGED, GATEWAY, [])
        done = len(recorder.finished)
        place.switch.use(OFF)
        await place._turn(OFF, GATEWAY, [])
        assert len(recorder.finished) == done > 2
    finally:
        await place.close()


async def test_faststreams_middleware_stands_beside_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    place = await otel.Workplace.open(1)
    try:
        peers = await telemetry_peers.compare_peers(place, rounds=2, block=2)
        assert "not installed" not in set(telemetry_peers.table(peers)["without"])
        monkeypatch.setattr(telemetry_peers, "installed", lambda name: None)
        alone = await telemetry_peers.compare_peers(place, rounds=2, block=2)
        assert list(telemetry_peers.table(alone)["without"])[1] == "not installed"
        (goal,) = telemetry_peers.goals(peers)
        assert goal.ratio is not None
        assert list(telemetry_peers.goals(alone)) == []
    finally:
        await place.close()


async def test_single_calls_are_proved_by_what_was_recorded() -> None:
    place = await otel.Workplace.open(1)
    try:
        made = (telemetry_singles.spans, telemetry_singles.increments, telemetry_singles.lines)
        for contest in (make(place, 3) for make in made):
            (goal,) = telemetry_singles.goals({contest.name: contest.run(rounds=2, samples=2)})
            assert (goal.target.goal, goal.ratio) == (True, goal.interval)
            for lost in (telemetry_singles.KIT, telemetry_singles.SDK):
                contender = replace(contest.contenders[lost], call=lambda: None)
                silent = Contest(name="silent", contenders={lost: contender}, inner=3)
                with pytest.raises(ReportError, match="wrong answer"):
                    silent.run(rounds=1, samples=1)
    finally:
        await place.close()
