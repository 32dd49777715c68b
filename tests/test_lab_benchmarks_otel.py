"""Telemetry's cost is told by two methods, from the upper end of an interval; what noise hides is never a miss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kit.catalogue import GATEWAY_CACHE_HITS, RAG_VECTOR_SEARCH
from kit.lab.bench import Comparison, Ratio
from kit.lab.benchmarks import otel, telemetry_costs, telemetry_peers
from kit.lab.benchmarks.otel import BARE, LOGGED, METRICS, OFF, TRACED


def _result(noise: float, tracing: float = 0.02) -> Comparison:
    """Forty rounds of 10 ms, in which neighbouring settings differ by their cost, give or take up to the noise."""
    spread = np.linspace(-noise, noise, 40).reshape(-1, 1)
    whole = {OFF: 1 + 0 * spread, METRICS: 1.001 + spread, TRACED: 1.001 + tracing, LOGGED: 1.002 + tracing + spread}
    samples = {name: np.broadcast_to(1e7 * cost, (40, 1)) for name, cost in whole.items()}
    return Comparison(name="made", samples=samples, baseline=OFF)


def _counted(share: float, spread: float = 0.0) -> dict[str, Ratio]:
    seconds = share * 10e-3
    cost = Ratio(value=seconds, low=seconds * (1 - spread), high=seconds * (1 + spread))
    return dict.fromkeys(otel.STEPS, cost)


@pytest.mark.parametrize(
    ("noise", "tracing", "counted", "spread", "method", "met", "decided"),
    [
        (0.001, 0.02, 0.9, 0.0, otel.PAIRED, True, True),  # a quiet machine tells by itself
        (0.001, 0.09, 0.0, 0.0, otel.PAIRED, False, True),
        (0.2, 0.02, 0.01, 0.1, otel.CALLS, True, True),  # a noisy one leaves it to the calls
        (0.2, 0.02, 0.09, 0.1, otel.CALLS, False, False),  # they charge at most
        (0.2, 0.02, 0.05, 0.5, otel.CALLS, False, False),
    ],
)
def test_the_method_that_decides_gives_the_verdict(
    noise: float, tracing: float, counted: float, spread: float, method: str, met: bool, decided: bool
) -> None:
    rows = list(otel.overheads(_result(noise, tracing), _counted(counted, spread), "a query", 10e-3))
    (row,) = [row for row in rows if row.target.name == "tracing overhead: a query"]
    assert row.target.metric.endswith(method)
    assert (row.met, row in otel.decided(rows)) == (met, decided)


def test_metrics_alone_count_and_time_without_a_span_or_a_header() -> None:
    telemetry = otel._settings()[METRICS]
    with telemetry.operation(RAG_VECTOR_SEARCH, {"rag.top_k": 5}) as opened:
        assert opened.headers() is None
    with pytest.raises(ValueError, match="lost"), telemetry.operation(RAG_VECTOR_SEARCH):
        raise ValueError("lost")
    found = telemetry.recorder.metrics()
    assert {"success", "error"} <= {labels["status"] for labels in found["labels"]}
    assert telemetry.recorder.spans().empty
    telemetry.shutdown(1.0)


def test_a_switch_turns_loggers_that_were_bound_before_and_a_tally_counts() -> None:
    switch = otel.Switch(otel._settings())
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


async def test_a_bare_request_is_measured_by_both_methods_and_beside_faststream(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = await otel.Workplace.open(1)
    try:
        bare = await place.compare(BARE, rounds=4, block=3)
        assert bare.conditions["clock"] == "cpu"
        calls = await place.calls(BARE, times=3)
        assert calls == {"operation": 2.0, "log line": 1.0}
        counted = (await telemetry_costs.count_all(place, {BARE: bare}, rounds=3))[BARE]
        tracing = bare.difference(TRACED, to=METRICS)
        assert counted["tracing overhead"].value == pytest.approx(tracing.value)
        assert counted["metrics collection overhead"].value == pytest.approx(bare.difference(METRICS, to=OFF).value)
        peers = await telemetry_peers.compare_peers(place, rounds=2, block=2)
        assert "not installed" not in set(telemetry_peers.table(peers)["without"])
        monkeypatch.setattr(telemetry_peers, "installed", lambda name: None)
        alone = await telemetry_peers.compare_peers(place, rounds=2, block=2)
        assert list(telemetry_peers.table(alone)["without"])[1] == "not installed"
    finally:
        await place.close()
