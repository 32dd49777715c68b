"""The log's table is checked row by row, and usage is reckoned without mixing what does not mix."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from kit import codec
from kit.components import LANCEDB_VARIABLE
from kit.components.llmops import OperationLog, ReportRefused, Threshold, UsageReport, table, usage
from kit.errors import ConfigurationError


def operation(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "operation_id": f"op-{number}",
        "operation_type": "completion",
        "model": "m",
        "tokens": {"prompt": 10, "completion": 5, "total": 15},
        "cost": 1.0,
        "latency_ms": 10,
        "status": "success",
        "tenant_id": "acme",
        "timestamp": f"2026-03-0{number % 3 + 1}T10:00:00Z",
    } | fields


async def written(folder: Path, *operations: dict[str, Any]) -> OperationLog:
    log = await OperationLog.open("acme", folder)
    rows, refused = log.check(list(operations))
    assert not refused
    await log.append(rows)
    return log


@pytest.mark.parametrize(
    ("fields", "column", "check"),
    [
        ({"latency_ms": -1}, "latency_ms", "greater_than_or_equal_to"),
        ({"cost": -0.5}, "cost", "greater_than_or_equal_to"),
        ({"status": "fine"}, "status", "isin"),
        ({"model": ""}, "model", "str_length"),
        ({"model": None}, "model", "not_nullable"),
        ({"tokens": {"prompt": -1, "completion": 0, "total": 0}}, "tokens_prompt", "greater_than_or_equal_to"),
        ({"tenant_id": "globex"}, "tenant_id", "equal_to"),
        ({"timestamp": "2026-06-30T23:59:60Z"}, "timestamp", "representable"),
        ({"timestamp": "0000-01-01T00:00:00Z"}, "timestamp", "representable"),
    ],
)
async def test_a_row_that_breaks_a_check_is_named(
    tmp_path: Path, fields: dict[str, Any], column: str, check: str
) -> None:
    log = await OperationLog.open("acme", tmp_path)
    rows, refused = log.check([operation(1, **fields), operation(2)])
    (fault,) = refused.values()
    assert rows.column("operation_id").to_pylist() == ["op-2"]
    assert (fault.operation_id, fault.column) == ("op-1", column)
    assert check in fault.check


async def test_an_id_with_quotes_is_data(tmp_path: Path) -> None:
    hostile = "x' OR operation_id != '"
    log = await written(tmp_path, operation(1), operation(2, operation_id=hostile))
    rows, _ = log.check([operation(2, operation_id=hostile), operation(3)])
    assert await log.append(rows) == ["op-3"]
    assert await log.count() == 3


async def test_nothing_to_write_writes_nothing(tmp_path: Path) -> None:
    log = await OperationLog.open("acme", tmp_path)
    rows, _ = log.check([])
    assert await log.append(rows) == []
    assert (await log.frame()).empty


async def test_a_log_is_compacted_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "COMPACT_EVERY", 2)
    log = await OperationLog.open("acme", tmp_path)
    for number in range(4):
        await log.append(log.check([operation(number)])[0])
    assert await log.count() == 4


async def test_the_folder_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LANCEDB_VARIABLE, str(tmp_path))
    await OperationLog.open("acme")
    assert (tmp_path / "acme").is_dir()
    with pytest.raises(ConfigurationError):
        await OperationLog.open("../acme")


async def test_times_bound_what_is_read(tmp_path: Path) -> None:
    log = await written(tmp_path, *(operation(number) for number in range(6)))
    second = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)
    assert len(await log.frame(since=second)) == 4
    assert len(await log.frame(until=second)) == 2
    frame = await log.frame(second, second + dt.timedelta(days=1), columns=["model"])
    assert frame.shape == (2, 1)


async def test_currencies_are_not_added_up(tmp_path: Path) -> None:
    log = await written(
        tmp_path,
        operation(1, cost=1.0),
        operation(2, cost=2.0, currency="EUR", price_source="contract"),
        operation(3, cost=None),
    )
    report = usage(await log.frame(), ["model"])
    assert report["costs"] == {"EUR": 2.0, "USD": 1.0}
    assert report["totals"]["cost"] is None
    assert [(row["group"]["currency"], row["cost"]) for row in report["rows"]] == [
        ("EUR", 2.0), ("USD", 1.0), ("none", None),
    ]  # fmt: skip
    only = usage(await log.frame(), ["model"], currency="EUR")
    assert (only["totals"]["cost"], only["totals"]["operations"], only["totals"]["unpriced"]) == (2.0, 2, 1)
    for data in (report, only):
        codec.validate("usage_report", data | {"request_id": "r", "timestamp": codec.now()})


async def test_groups_and_limits(tmp_path: Path) -> None:
    many = [operation(number, model=f"m{number % 4}", user_id="u" if number % 2 else None) for number in range(10)]
    frame = await (await written(tmp_path, *many)).frame()
    report = usage(frame, ["model"], limit=2)
    assert [row["group"]["model"] for row in report["rows"]] == ["m0", "m1"]
    assert report["truncated"]
    assert report["totals"]["operations"] == 10
    assert {row["group"]["user"] for row in usage(frame, ["user"])["rows"]} == {"u", "unknown"}
    assert usage(frame, ["hour"])["rows"][0]["group"] == {"hour": "2026-03-01T10:00Z"}
    assert usage(frame, [])["rows"][0]["group"] == {}
    assert usage(frame[:0], ["model"])["rows"] == []
    with pytest.raises(ReportRefused, match="colour"):
        usage(frame, ["colour"])


async def test_percentiles_are_those_of_the_operations(tmp_path: Path) -> None:
    frame = await (await written(tmp_path, *(operation(n, latency_ms=n) for n in range(101)))).frame()
    latency = usage(frame)["totals"]["latency_ms"]
    assert latency == {"mean": 50.0, "p50": 50.0, "p95": 95.0, "p99": 99.0}


@pytest.mark.parametrize("what", ["cost", "tokens", "latency", "errors", "operations"])
async def test_figures(tmp_path: Path, what: str) -> None:
    many = [operation(number, model=f"m{number % 2}", status=("success", "error")[number % 2]) for number in range(9)]
    frame = await (await written(tmp_path, *many)).frame()
    for group_by in (["day", "model"], ["model"], []):
        report = UsageReport(usage(frame, group_by))
        (axes,) = report.figure(what).axes
        assert axes.get_title()
        assert axes.get_ylabel()
        assert "<table" in report._repr_html_()
    with pytest.raises(ReportRefused):
        report.figure("weather")


def test_thresholds_that_cannot_work_are_refused() -> None:
    for wrong in ({"limit": 0}, {"limit": 1, "hysteresis": 1.0}, {"limit": 1, "period": "fortnight"}):
        with pytest.raises(ConfigurationError):
            Threshold(**wrong)
