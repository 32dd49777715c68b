"""Every operation of the stored stream is in the log once, its cost against thresholds, and in the usage reports."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from pathlib import Path
from typing import Any

import pytest

from kit import codec
from kit.catalogue import (
    LLMOPS_COST,
    LLMOPS_COST_ALERT_PUBLISH,
    LLMOPS_COST_ALERT_RECEIVE,
    LLMOPS_COST_ALERTS,
    LLMOPS_COST_TRACK,
    LLMOPS_OPERATION_LOG,
    LLMOPS_OPERATION_PUBLISH,
    LLMOPS_OPERATIONS,
    LLMOPS_OPERATIONS_LOGGED,
    LLMOPS_REPORT_BUILD,
    LLMOPS_REPORT_REQUEST,
    LLMOPS_REPORTS_BUILT,
)
from kit.components import llmops
from kit.components.llmops import CostTracker, OperationLog, Threshold, service
from kit.components.llmops.costs import BUCKET
from kit.errors import BusError, RemoteError


def operation(number: int | str, bus: Any = None, **fields: Any) -> dict[str, Any]:
    return {
        "operation_id": f"op-{number}",
        "operation_type": "completion",
        "model": "kit/extractive",
        "tokens": {"prompt": 10, "completion": 5, "total": 15},
        "cost": 0.25,
        "currency": "USD",
        "price_source": "litellm",
        "latency_ms": 10.0,
        "status": "success",
        "tenant_id": bus.tenant_id if bus else "acme",
        "timestamp": codec.now(),
    } | fields


async def until(condition: Any, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - it waits for what another task writes
            await asyncio.sleep(0.02)


async def logged(bus: Any, folder: Path, count: int) -> None:
    async def there() -> bool:
        return len(await llmops.operations(bus, uri=folder)) >= count

    await until(there)


class Alerts:
    """Hears the cost alerts of a tenant."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    async def hear(self, message: Any) -> None:
        self.heard.append(message.data)

    @property
    def reasons(self) -> list[str]:
        return [alert["reason"] for alert in self.heard]

    async def settled(self, count: int) -> None:
        """Wait for that many, and a moment for one too many."""

        async def enough() -> bool:
            return len(self.heard) >= count

        await until(enough)
        await asyncio.sleep(0.05)
        assert len(self.heard) == count, self.reasons


async def test_operations_are_logged_once_whatever_is_repeated(tenant_bus: Any, tmp_path: Path, telemetry: Any) -> None:
    for number in range(30):
        await tenant_bus.publish(LLMOPS_OPERATIONS, operation(number, tenant_bus))
    await tenant_bus.publish(LLMOPS_OPERATIONS, operation(3, tenant_bus, latency_ms=99.0))
    async with await llmops.serve(tenant_bus, uri=tmp_path):
        await tenant_bus.publish(LLMOPS_OPERATIONS, operation(30, tenant_bus, metadata={"a": [1]}, cost=None))
        await logged(tenant_bus, tmp_path, 31)

        async def all_handled() -> bool:
            return bool(telemetry.recorder.total(LLMOPS_OPERATIONS_LOGGED.name) == 32)

        await until(all_handled)
    frame = await llmops.operations(tenant_bus, uri=tmp_path)
    assert len(frame) == frame["operation_id"].nunique() == 31
    assert (frame["latency_ms"] == 10.0).all()
    assert frame["cost"].sum() == pytest.approx(7.5)
    assert frame.set_index("operation_id").loc["op-30", "metadata"] == '{"a":[1]}'
    assert telemetry.recorder.total(LLMOPS_COST.name) == pytest.approx(7.5)
    spans = telemetry.recorder.spans()
    assert {LLMOPS_OPERATION_PUBLISH.name, LLMOPS_OPERATION_LOG.name, LLMOPS_COST_TRACK.name} <= set(spans["name"])
    tracked = spans[spans["name"] == LLMOPS_COST_TRACK.name]
    assert set(tracked["parent_id"]) <= set(spans[spans["name"] == LLMOPS_OPERATION_LOG.name]["span_id"])


async def test_a_worker_that_comes_back_goes_on_where_it_stopped(tenant_bus: Any, tmp_path: Path) -> None:
    async with await llmops.serve(tenant_bus, uri=tmp_path):
        await tenant_bus.publish(LLMOPS_OPERATIONS, operation(1, tenant_bus))
        await logged(tenant_bus, tmp_path, 1)
    await tenant_bus.publish(LLMOPS_OPERATIONS, operation(2, tenant_bus))
    async with await llmops.serve(tenant_bus, uri=tmp_path):
        await logged(tenant_bus, tmp_path, 2)


async def test_what_pandera_does_not_take_is_refused_and_the_rest_is_written(
    tenant_bus: Any, tmp_path: Path, telemetry: Any
) -> None:
    async with await llmops.serve(tenant_bus, uri=tmp_path):
        await tenant_bus.publish(LLMOPS_OPERATIONS, operation(1, tenant_bus, timestamp="2026-06-30T23:59:60Z"))
        await tenant_bus.publish(LLMOPS_OPERATIONS, operation(2, tenant_bus))
        await logged(tenant_bus, tmp_path, 1)

        async def refused() -> bool:
            return bool(telemetry.recorder.total(LLMOPS_OPERATIONS_LOGGED.name, error_type="OperationRefused"))

        await until(refused)
    frame = await llmops.operations(tenant_bus, uri=tmp_path)
    assert list(frame["operation_id"]) == ["op-2"]


@pytest.mark.parametrize(
    "odd",
    [
        {"timestamp": "2026-06-30T23:59:60Z"},
        {"timestamp": "2026-06-30T23:59:60Z", "operation_id": "op-2"},  # under the name of a good one
        {"model": "unwritable"},
    ],
    ids=repr,
)
async def test_an_odd_line_takes_none_along_that_came_with_it(
    tenant_bus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, telemetry: Any, odd: dict[str, Any]
) -> None:
    real = OperationLog.append

    async def append(self: OperationLog, rows: Any) -> list[str]:
        if "unwritable" in rows.column("model").to_pylist():
            raise ValueError("the database does not take it")
        return await real(self, rows)

    monkeypatch.setattr(OperationLog, "append", append)
    monkeypatch.setattr(service, "LINGER", 0.5)
    async with await llmops.serve(tenant_bus, uri=tmp_path):
        several = [operation(1, tenant_bus), operation(9, tenant_bus, **odd), operation(2, tenant_bus)]
        await asyncio.gather(
            *(tenant_bus.publish(LLMOPS_OPERATIONS, one, message_id=f"m{n}") for n, one in enumerate(several))
        )
        await logged(tenant_bus, tmp_path, 2)

        async def counted() -> bool:
            return bool(telemetry.recorder.total(LLMOPS_OPERATIONS_LOGGED.name, status="error"))

        await until(counted)
    frame = await llmops.operations(tenant_bus, uri=tmp_path)
    assert sorted(frame["operation_id"]) == ["op-1", "op-2"]
    assert set(frame["tenant_id"]) == {tenant_bus.tenant_id}
    if "model" not in odd:
        name = odd.get("operation_id", "op-9")
        assert any(f"operation '{name}' is not logged" in record.message for record in caplog.records)


async def test_a_log_that_cannot_be_written_loses_nothing(
    tenant_bus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = OperationLog.append, [OSError("no space left")]

    async def failing(self: OperationLog, rows: Any) -> list[str]:
        if failures:
            raise failures.pop()
        return await real(self, rows)

    monkeypatch.setattr(OperationLog, "append", failing)
    async with await llmops.serve(tenant_bus, uri=tmp_path):
        await tenant_bus.publish(LLMOPS_OPERATIONS, operation(1, tenant_bus))
        await logged(tenant_bus, tmp_path, 1)
    assert not failures


class Account:
    """What a tenant spends, looked at by one tracker whose clock stands still until it is moved."""

    def __init__(self, bus: Any, threshold: Threshold) -> None:
        self._bus, self.threshold, self.now = bus, threshold, dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
        self._log: OperationLog
        self._tracker: CostTracker
        self._numbers = itertools.count(1)

    async def open(self, folder: Path) -> None:
        self._log = await OperationLog.open(self._bus.tenant_id, folder)
        await self.restart()

    async def restart(self) -> None:
        """Let another worker take over."""
        self._tracker = CostTracker(self._bus, self._log, [self.threshold], clock=lambda: self.now)
        await self._tracker.start()

    async def spend(self, *costs: float) -> int:
        """Log operations now; return how many alerts they moved."""
        moment = self.now.isoformat().replace("+00:00", "Z")
        taken = [operation(next(self._numbers), self._bus, timestamp=moment, cost=cost) for cost in costs]
        rows, _ = self._log.check(taken)
        async with self._tracker.counting:
            await self._log.append(rows)
            self._tracker.count(rows.to_pylist())
        return sum([await self._tracker.judge(row) for row in rows.to_pylist()])

    async def later(self, minutes: float) -> None:
        """Move the clock, and recount."""
        self.now += dt.timedelta(minutes=minutes)
        await self._tracker.sweep()


async def test_an_alert_is_raised_once_and_again_after_spend_fell(tenant_bus: Any, tmp_path: Path) -> None:
    account, alerts = Account(tenant_bus, Threshold(limit=1.0, period="hour", hysteresis=0.2)), Alerts()
    async with await tenant_bus.subscribe(LLMOPS_COST_ALERTS, alerts.hear):
        await account.open(tmp_path)
        assert await account.spend(0.25, 0.25, 0.25) == 0
        assert await account.spend(0.25) == 1
        assert await account.spend(0.25, 0.25) == 0
        await account.later(120)
        assert await account.spend(0.25, 0.25, 0.25, 0.25) == 1
        await account.later(0)
        await alerts.settled(3)
    assert alerts.reasons == ["threshold_crossed", "recovered", "threshold_crossed"]
    first = alerts.heard[0]
    assert (first["spent"], first["limit"], first["currency"], first["operations"]) == (1.0, 1.0, "USD", 4)
    assert (first["scope"], first["period"], first["price_source"]) == ("tenant", "hour", "litellm")
    assert len({alert["alert_id"] for alert in alerts.heard}) == 3


@pytest.mark.parametrize("rest", [0.75, 0.875])
async def test_spend_that_rests_between_two_levels_moves_no_alert(tenant_bus: Any, tmp_path: Path, rest: float) -> None:
    account, alerts = Account(tenant_bus, Threshold(limit=1.0, period="hour", hysteresis=0.25)), Alerts()
    async with await tenant_bus.subscribe(LLMOPS_COST_ALERTS, alerts.hear):
        await account.open(tmp_path)
        assert await account.spend(1.0 - rest) == 0
        await account.later(30)
        assert await account.spend(rest) == 1
        await account.later(35)  # what came first is over: spend rests at or above the level of 0.75
        await account.restart()
        assert await account.spend(0.0) == 0
        assert await account.spend(0.5) == 0  # crosses the limit again, but never fell below that level
        await alerts.settled(1)
        await account.later(30)  # only 0.5 is left
        assert await account.spend(0.25) == 0
        assert await account.spend(0.25) == 1
        await alerts.settled(3)
    assert alerts.reasons == ["threshold_crossed", "recovered", "threshold_crossed"]
    assert [alert["spent"] for alert in alerts.heard] == [1.0, 0.5, 1.0]


async def test_spend_that_rests_at_a_limit_without_hysteresis_alerts_once(tenant_bus: Any, tmp_path: Path) -> None:
    account, alerts = Account(tenant_bus, Threshold(limit=1.0, period="hour", hysteresis=0.0)), Alerts()
    async with await tenant_bus.subscribe(LLMOPS_COST_ALERTS, alerts.hear):
        await account.open(tmp_path)
        assert await account.spend(1.0) == 1
        await account.later(1)
        await account.later(1)
        await alerts.settled(1)
    assert alerts.reasons == ["threshold_crossed"]


async def test_an_alert_is_taken_back_by_a_worker_that_finds_no_spend_left(tenant_bus: Any, tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    threshold, alerts = Threshold(limit=0.2, scope="model"), Alerts()
    async with await tenant_bus.subscribe(LLMOPS_COST_ALERTS, alerts.hear):
        async with await llmops.serve(tenant_bus, uri=tmp_path, thresholds=[threshold]):
            await tenant_bus.publish(LLMOPS_OPERATIONS, operation(1, tenant_bus))

            async def one() -> bool:
                return len(alerts.heard) == 1

            await until(one)
        log = await OperationLog.open(tenant_bus.tenant_id, tmp_path)
        await CostTracker(tenant_bus, log, [threshold], clock=lambda: now + dt.timedelta(days=2)).start()

        async def two() -> bool:
            return len(alerts.heard) == 2

        await until(two)
    assert alerts.reasons == ["threshold_crossed", "recovered"]
    assert (alerts.heard[1]["spent"], alerts.heard[1]["model"]) == (0.0, "kit/extractive")


async def test_alerts_are_not_repeated_by_a_restart_or_a_second_worker(
    tenant_bus: Any, tmp_path: Path, telemetry: Any
) -> None:
    alerts = Alerts()
    settings: dict[str, Any] = {"uri": tmp_path, "thresholds": [1.0], "sweep_seconds": 0.05}

    async def heard() -> bool:
        return bool(alerts.heard)

    async with await tenant_bus.subscribe(LLMOPS_COST_ALERTS, alerts.hear):
        async with await llmops.serve(tenant_bus, **settings), await llmops.serve(tenant_bus, **settings):
            for number in range(8):
                await tenant_bus.publish(LLMOPS_OPERATIONS, operation(number, tenant_bus))
            await logged(tenant_bus, tmp_path, 8)
            await until(heard)
            await asyncio.sleep(0.2)
        async with await llmops.serve(tenant_bus, **settings):
            await tenant_bus.publish(LLMOPS_OPERATIONS, operation(9, tenant_bus))
            await logged(tenant_bus, tmp_path, 9)
            await asyncio.sleep(0.2)
    assert alerts.reasons == ["threshold_crossed"]
    names = set(telemetry.recorder.spans()["name"])
    assert {LLMOPS_COST_ALERT_PUBLISH.name, LLMOPS_COST_ALERT_RECEIVE.name} <= names


async def test_an_alert_that_a_worker_died_over_is_told_by_the_next(tenant_bus: Any, tmp_path: Path) -> None:
    threshold = Threshold(limit=1.0)
    noted = {
        "state": "raised",
        "due": True,
        "alert": {
            "alert_id": "one", "scope": "tenant", "limit": 1.0, "spent": 2.0, "currency": "USD", "period": "day",
            "reason": "threshold_crossed",
        },
    }  # fmt: skip
    store = await tenant_bus.store(BUCKET)
    await store.put(threshold.key(tenant_bus.tenant_id), codec.dumps(noted))
    alerts = Alerts()

    async def heard() -> bool:
        return bool(alerts.heard)

    async with (
        await tenant_bus.subscribe(LLMOPS_COST_ALERTS, alerts.hear),
        await llmops.serve(tenant_bus, uri=tmp_path, thresholds=[threshold]),
    ):
        await until(heard)
    assert alerts.heard[0]["alert_id"] == "one"


async def test_an_alert_whose_publication_failed_once_is_told_by_the_next_sweep(
    tenant_bus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, alerts = Account(tenant_bus, Threshold(limit=1.0)), Alerts()
    failures, real = [BusError("the server is away")], tenant_bus.publish

    async def failing(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await real(*args, **options)

    async with await tenant_bus.subscribe(LLMOPS_COST_ALERTS, alerts.hear):
        await account.open(tmp_path)
        monkeypatch.setattr(tenant_bus, "publish", failing)
        with pytest.raises(BusError):
            await account.spend(2.0)
        await account.later(0)
        assert await account.spend(2.0) == 0
        await account.later(0)
        await alerts.settled(1)
    assert alerts.reasons == ["threshold_crossed"]


async def test_each_model_has_its_own_threshold(tenant_bus: Any, tmp_path: Path) -> None:
    alerts = Alerts()

    async def two() -> bool:
        return len(alerts.heard) >= 2

    thresholds = [{"limit": 0.5, "scope": "model"}, Threshold(limit=9.0, scope="model", name="dear")]
    async with (
        await tenant_bus.subscribe(LLMOPS_COST_ALERTS, alerts.hear),
        await llmops.serve(tenant_bus, uri=tmp_path, thresholds=thresholds),
    ):
        for number, model in enumerate(["a", "a", "b", "c", "c"]):
            await tenant_bus.publish(LLMOPS_OPERATIONS, operation(number, tenant_bus, model=model))
        await tenant_bus.publish(LLMOPS_OPERATIONS, operation("eur", tenant_bus, model="b", currency="EUR", cost=9.0))
        await until(two)
        await asyncio.sleep(0.1)
    assert sorted(alert["model"] for alert in alerts.heard) == ["a", "c"]


async def test_reports_are_answered_over_the_bus(tenant_bus: Any, tmp_path: Path, telemetry: Any) -> None:
    days = ("2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z")
    async with await llmops.serve(tenant_bus, uri=tmp_path):
        for number in range(20):
            failed = {"status": "error", "cost": None, "error_type": "RateLimitError"} if number % 10 == 0 else {}
            await tenant_bus.publish(
                LLMOPS_OPERATIONS,
                operation(number, tenant_bus, latency_ms=float(number), timestamp=days[number % 2],
                          model="small" if number < 15 else "large", **failed),
            )  # fmt: skip
        await logged(tenant_bus, tmp_path, 20)
        report = await llmops.report(tenant_bus, ["day", "model"], percentiles=[50, 90])
        assert report.totals["operations"] == 20
        assert report.totals["error_rate"] == pytest.approx(0.1)
        assert report.totals["cost"] == pytest.approx(4.5)
        assert report.totals["unpriced"] == 2
        assert report.data["price_sources"] == ["litellm"]
        frame = report.frame
        assert list(frame["day"]) == ["2026-03-01", "2026-03-01", "2026-03-02", "2026-03-02"]
        assert list(frame["model"]) == ["large", "small"] * 2
        small = frame[(frame["day"] == "2026-03-01") & (frame["model"] == "small")].iloc[0]
        assert (small["operations"], small["errors"], small["tokens.total"]) == (8, 2, 120)
        assert small["latency_ms.p50"] == 7.0
        one_day = await llmops.report(
            tenant_bus, ["tenant"], since=dt.datetime(2026, 3, 2, tzinfo=dt.UTC),
            until=dt.datetime(2026, 3, 3, tzinfo=dt.UTC), models=["large"],
        )  # fmt: skip
        assert one_day.data["rows"][0]["group"] == {"tenant": tenant_bus.tenant_id}
        assert one_day.totals["operations"] == 3
        with pytest.raises(RemoteError) as refused:
            await llmops.report(tenant_bus, since=dt.datetime.now(dt.UTC), until=dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
        assert refused.value.error_type == "ReportRefused"
    names = set(telemetry.recorder.spans()["name"])
    assert {LLMOPS_REPORT_REQUEST.name, LLMOPS_REPORT_BUILD.name} <= names
    assert telemetry.recorder.total(LLMOPS_REPORTS_BUILT.name) == 3


async def test_tenants_have_databases_of_their_own(tenant_bus: Any, bus: Any, tmp_path: Path) -> None:
    async with (
        await llmops.serve(tenant_bus, uri=tmp_path),
        await llmops.serve(bus, uri=tmp_path),
    ):
        await tenant_bus.publish(LLMOPS_OPERATIONS, operation(1, tenant_bus))
        await bus.publish(LLMOPS_OPERATIONS, operation(2, bus))
        await logged(tenant_bus, tmp_path, 1)
        await logged(bus, tmp_path, 1)
    both = await llmops.operations([tenant_bus.tenant_id, bus.tenant_id], uri=tmp_path)
    assert sorted(zip(both["tenant_id"], both["operation_id"], strict=True)) == [
        (bus.tenant_id, "op-2"), (tenant_bus.tenant_id, "op-1"),
    ]  # fmt: skip
    assert len(await llmops.operations(bus.tenant_id, uri=tmp_path)) == 1
