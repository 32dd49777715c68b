"""Spend against thresholds: an alert when it crosses one, once, and again only after it had fallen back.

Periods roll: ``day`` is the last 24 hours, so spend can fall again and the alert can be armed anew. What was alerted is
kept in JetStream KV, so that a restarted worker, or a second one, does not repeat it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kit import codec
from kit.catalogue import LLMOPS_COST, LLMOPS_COST_ALERTS
from kit.errors import ConfigurationError, Conflict

if TYPE_CHECKING:
    from kit.components.llmops.table import OperationLog
    from kit.nats import Bus, Store

BUCKET = "llmops-alerts"
SLOTS = 60  # a period is counted in this many slots; the oldest counts in full until it is over
SECONDS = {"hour": 3600.0, "day": 86400.0, "week": 7 * 86400.0, "month": 30 * 86400.0, "total": 36500 * 86400.0}
ARMED, RAISED = "armed", "raised"
_STEPS = {"threshold_crossed": (ARMED, RAISED), "recovered": (RAISED, ARMED)}  # reason: state before, and after
COLUMNS = {"tenant": "tenant_id", "model": "model", "user": "user_id", "agent": "agent_id"}


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Spend that somebody wants to hear of.

    Attributes:
        limit: in ``currency``; spend at or above it raises the alert.
        period: rolling: hour, day, week, month (30 days), or total.
        scope: whose spend: the tenant's, each model's, user's or agent's.
        name: the one model, user or agent that is meant; None: each of them.
        hysteresis: share of the limit; once spend is below ``limit * (1 - hysteresis)``, the alert can be raised again.
    """

    limit: float
    currency: str = "USD"
    period: Literal["hour", "day", "week", "month", "total"] = "day"
    scope: Literal["tenant", "model", "user", "agent"] = "tenant"
    name: str | None = None
    hysteresis: float = 0.1

    def __post_init__(self) -> None:
        if not self.limit > 0 or not 0 <= self.hysteresis < 1:
            raise ConfigurationError("a threshold has a limit above 0 and a hysteresis of 0 or more, below 1")
        if self.period not in SECONDS or self.scope not in COLUMNS:
            raise ConfigurationError(f"a threshold's period is one of {list(SECONDS)}, its scope of {list(COLUMNS)}")

    @property
    def rearm(self) -> float:
        """Spend below which the alert can be raised again."""
        return self.limit * (1.0 - self.hysteresis)

    def key(self, who: str) -> str:
        """Return the name under which the alert's state is kept, for one model, user or agent."""
        exact = f"{self.scope} {who} {self.period} {self.currency} {self.limit!r} {self.hysteresis!r}"
        return f"{self.scope}.{self.period}.{hashlib.sha256(exact.encode()).hexdigest()[:24]}"


class _Spend:
    """What was spent in a rolling period, in slots."""

    def __init__(self, period: float) -> None:
        self.width = period / SLOTS
        self.cost: dict[int, float] = defaultdict(float)
        self.operations: dict[int, int] = defaultdict(int)
        self.sources: set[str] = set()

    def add(self, moment: dt.datetime, cost: float, source: str | None) -> None:
        slot = int(moment.timestamp() // self.width)
        self.cost[slot] += cost
        self.operations[slot] += 1
        if source:
            self.sources.add(source)

    def clear(self) -> None:
        self.cost.clear()
        self.operations.clear()

    def total(self, now: dt.datetime) -> tuple[float, int]:
        """Return cost and operations of the period, and forget what is older."""
        first = int(now.timestamp() // self.width) - SLOTS
        for slot in [slot for slot in self.cost if slot < first]:
            del self.cost[slot], self.operations[slot]
        return sum(self.cost.values()), sum(self.operations.values())


class CostTracker:
    """Adds up the cost of logged operations and raises the alerts of a tenant.

    Attributes:
        counting: held from before an operation is written until it is counted, and during a recount.
    """

    def __init__(
        self,
        bus: Bus,
        log: OperationLog,
        thresholds: Sequence[Threshold],
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._bus, self._log, self._clock = bus, log, clock
        self._thresholds = tuple(thresholds)
        self._spend: dict[tuple[Threshold, str], _Spend] = {}
        self._raised: set[str] = set()
        self._untold: set[str] = set()  # notes of alerts whose publication has failed
        self.counting = asyncio.Lock()
        self._judging = asyncio.Lock()
        self._store: Store

    async def start(self) -> None:
        """Take up where the last worker stopped: its spend, its alerts, and one it may have died over."""
        if not self._thresholds:
            return
        self._store = await self._bus.store(BUCKET)
        for key in await self._store.keys():
            entry = await self._store.get(key)
            if entry is None or entry.value is None:
                continue
            noted = codec.loads(entry.value)
            if noted["due"]:
                await self._tell(key, noted, entry.revision)
            if noted["state"] == RAISED:
                self._raised.add(key)
                self._watch(key, noted["alert"])
        await self.sweep()

    def _watch(self, key: str, alert: Mapping[str, Any]) -> None:
        """Look at a raised alert's spend from the start: where none is left, no operation would bring it up."""
        for threshold in self._thresholds:
            who = alert.get(COLUMNS[threshold.scope])
            if who is not None and threshold.key(who) == key:
                self._spend[threshold, who] = _Spend(SECONDS[threshold.period])

    def count(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add operations that were just written, while ``counting`` is held: a recount must not see half of it."""
        self._put(row for row in rows if row["cost"] is not None)

    async def judge(self, row: Mapping[str, Any]) -> int:
        """Look at the thresholds that an operation touches; return how many alerts were raised or taken back."""
        if row["cost"] is None:
            return 0
        if row["currency"] == LLMOPS_COST.unit:
            self._bus.telemetry.count(LLMOPS_COST, row["cost"], model=row["model"])
        return await self._judge(self._places(row))

    async def sweep(self) -> None:
        """Count anew from the log, with what other workers wrote, and look at every threshold."""
        if not self._thresholds:
            return
        async with self.counting:
            longest = max(SECONDS[threshold.period] for threshold in self._thresholds)
            since = self._clock() - dt.timedelta(seconds=longest)
            columns = sorted({"timestamp", "cost", "currency", "price_source", "operation_id", *COLUMNS.values()})
            frame = await self._log.frame(since=since, columns=columns)
            frame = frame[frame["cost"].notna()]
            for spend in self._spend.values():
                spend.clear()
            self._put(frame.astype(object).where(frame.notna(), None).to_dict("records"))
        await self._judge(list(self._spend))

    def _places(self, row: Mapping[str, Any]) -> list[tuple[Threshold, Any]]:
        """Return the thresholds that an operation counts for, and whose spend it is."""
        return [
            (threshold, who)
            for threshold in self._thresholds
            if threshold.currency == row["currency"]
            and (who := row[COLUMNS[threshold.scope]]) is not None
            and threshold.name in (None, who)
        ]

    def _put(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            for place in self._places(row):
                spend = self._spend.get(place)
                if spend is None:
                    spend = self._spend[place] = _Spend(SECONDS[place[0].period])
                spend.add(row["timestamp"], row["cost"], row["price_source"])

    async def _judge(self, places: Sequence[tuple[Threshold, str]]) -> int:
        moved = 0
        async with self._judging:
            for threshold, who in places:
                spent, operations = self._spend[threshold, who].total(self._clock())
                key, raised = threshold.key(who), threshold.key(who) in self._raised
                if not raised and spent >= threshold.limit:
                    moved += await self._move(threshold, who, "threshold_crossed", spent, operations)
                    self._raised.add(key)
                elif raised and spent < threshold.rearm:
                    moved += await self._move(threshold, who, "recovered", spent, operations)
                    self._raised.discard(key)
        return moved

    async def _move(self, threshold: Threshold, who: str, reason: str, spent: float, operations: int) -> bool:
        """Note that an alert is due, tell it, and note that it was told: whoever dies in between leaves a trace."""
        key, before, after = threshold.key(who), *_STEPS[reason]
        entry = await self._store.get(key)
        known = {"state": ARMED} if entry is None or entry.value is None else codec.loads(entry.value)
        if entry is not None and known["state"] == after and known["due"] and key in self._untold:
            await self._tell(key, known, entry.revision)
            return True
        if known["state"] != before:
            return False  # another worker told it
        noted = {"state": after, "due": True, "alert": self._alert(threshold, who, reason, spent, operations)}
        value = codec.dumps(noted)
        try:
            if entry is None:
                revision = await self._store.create(key, value)
            else:
                revision = await self._store.update(key, value, entry.revision)
        except Conflict:
            return False  # another worker tells it
        await self._tell(key, noted, revision)
        return True

    async def _tell(self, key: str, noted: dict[str, Any], revision: int) -> None:
        alert = noted["alert"]
        self._untold.add(key)  # until it is: who cannot publish tells it when it judges again, under the same id
        await self._bus.publish(LLMOPS_COST_ALERTS, alert | {"timestamp": codec.now()}, message_id=alert["alert_id"])
        self._untold.discard(key)
        with contextlib.suppress(Conflict):  # a later step of the same threshold is noted already
            await self._store.update(key, codec.dumps(noted | {"due": False}), revision)

    def _alert(self, threshold: Threshold, who: str, reason: str, spent: float, operations: int) -> dict[str, Any]:
        now = self._clock()
        start = now - dt.timedelta(seconds=SECONDS[threshold.period])
        sources = sorted(self._spend[threshold, who].sources)
        alert: dict[str, Any] = {
            "alert_id": f"{threshold.key(who)}.{reason}.{int(now.timestamp() * 1000)}",
            "tenant_id": self._bus.tenant_id,
            "scope": threshold.scope,
            "limit": threshold.limit,
            "spent": round(spent, 12),
            "currency": threshold.currency,
            "period": threshold.period,
            "reason": reason,
            "operations": operations,
            "remaining": round(threshold.limit - spent, 12),
        }
        if threshold.period != "total":
            alert["period_start"] = start.isoformat().replace("+00:00", "Z")
        if threshold.scope != "tenant":
            alert[COLUMNS[threshold.scope]] = who
        if sources:
            alert["price_source"] = ", ".join(sources)[:200]
        return alert
