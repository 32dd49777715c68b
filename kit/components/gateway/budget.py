"""Budgets per tenant: reserved before a call, settled after it, in one document that all workers change in turn."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.errors import Conflict

from .errors import BudgetExceeded

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.store import Store

    from .settings import Budget

BUCKET = "gateway-budget"
_KEY = "spend"
_FORGOTTEN = 900.0  # s; after which a reservation that nobody settled is taken back


class Purse:
    """What one tenant has spent and reserved in the present period.

    It is exact to what providers reported; of a call that was given up, what it took is estimated.
    """

    def __init__(self, store: Store, budget: Budget) -> None:
        self._store = store
        self.budget = budget
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, bus: Bus, budget: Budget) -> Purse:
        """Open the tenant's purse."""
        return cls(await bus.store(BUCKET), budget)

    async def reserve(self, request_id: str, estimated: float) -> dict[str, Any] | None:
        """Set aside what a request is estimated to cost; again under the same id, it is set aside once.

        Returns:
            A ``cost_alert`` (without the request's fields) when this reservation comes near the limit for the first
            time in the period, else None.

        Raises:
            BudgetExceeded: it would exceed the limit.
        """

        def change(purse: dict[str, Any]) -> dict[str, Any] | None:
            reserved = sum(amount for name, (amount, _) in purse["reserved"].items() if name != request_id)
            total = purse["spent"] + reserved + estimated
            if total > self.budget.limit + 1e-12:
                raise BudgetExceeded(
                    limit=self.budget.limit, spent=purse["spent"] + reserved, estimated=estimated,
                    currency=self.budget.currency, period=self.budget.period, reset_at=purse["reset_at"],
                )  # fmt: skip
            purse["reserved"][request_id] = [estimated, time.time() + _FORGOTTEN]
            if total >= self.budget.near * self.budget.limit and not purse["near_told"]:
                purse["near_told"] = True
                return self.alert("budget_near", purse, estimated)
            return None

        alert: dict[str, Any] | None = await self._change(change)
        return alert

    async def settle(self, request_id: str, cost: float) -> None:
        """Replace a reservation, if there is one, by what the request really cost (0 when it failed)."""

        def change(purse: dict[str, Any]) -> None:
            purse["reserved"].pop(request_id, None)
            purse["spent"] += cost

        await self._change(change)

    async def state(self) -> dict[str, Any]:
        """Return the purse: ``spent``, ``reserved``, ``limit``, ``currency``, ``period_start``, ``reset_at``."""
        entry = await self._store.get(_KEY)
        purse = self._present(codec.loads(entry.value) if entry is not None and entry.value else None)
        reserved = sum(amount for amount, _ in purse["reserved"].values())
        return {
            "spent": purse["spent"], "reserved": reserved, "limit": self.budget.limit, "currency": self.budget.currency,
            "period": self.budget.period, "period_start": purse["period_start"], "reset_at": purse["reset_at"],
        }  # fmt: skip

    def alert(self, reason: str, purse: dict[str, Any], estimated: float) -> dict[str, Any]:
        """Return a ``cost_alert`` about a purse."""
        reserved = sum(amount for amount, _ in purse["reserved"].values())
        data = {
            "scope": "tenant", "limit": self.budget.limit, "spent": purse["spent"], "reserved": reserved,
            "currency": self.budget.currency, "period": self.budget.period, "reason": reason, "estimated": estimated,
            "remaining": self.budget.limit - purse["spent"] - reserved, "threshold": min(self.budget.near, 1.0),
            "period_start": purse["period_start"], "timestamp": codec.now(),
        }  # fmt: skip
        if purse["reset_at"] is not None:
            data["reset_at"] = purse["reset_at"]
        return data

    async def _change(self, change: Any) -> Any:
        """Apply a change to the purse as it is now, whoever else changes it at the same time."""
        async with self._turn:
            tries = 0
            while True:
                entry = await self._store.get(_KEY)
                purse = self._present(codec.loads(entry.value) if entry is not None and entry.value else None)
                said = change(purse)
                try:
                    if entry is None:
                        await self._store.create(_KEY, codec.dumps(purse))
                    else:
                        await self._store.update(_KEY, codec.dumps(purse), entry.revision)
                except Conflict:
                    tries += 1
                    await asyncio.sleep(random.uniform(0, min(0.002 * 2**tries, 0.1)))
                    continue
                return said

    def _present(self, purse: dict[str, Any] | None) -> dict[str, Any]:
        """The purse of the present period: a new one when the period has changed; stale reservations are taken back."""
        start, end = period_of(self.budget.period, datetime.now(UTC))
        if purse is None or purse["period_start"] != start:
            kept = {} if purse is None else purse["reserved"]
            purse = {"period_start": start, "reset_at": end, "spent": 0.0, "reserved": kept, "near_told": False}
        now = time.time()
        purse["reserved"] = {name: row for name, row in purse["reserved"].items() if row[1] > now}
        return purse


def period_of(period: str, now: datetime) -> tuple[str, str | None]:
    """Return the beginning and the end of the calendar period around a time (UTC, RFC 3339; weeks begin on Monday)."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "total":
        return "1970-01-01T00:00:00Z", None
    if period == "hour":
        start = now.replace(minute=0, second=0, microsecond=0)
        end = start + timedelta(hours=1)
    elif period == "week":
        start = day - timedelta(days=day.weekday())
        end = start + timedelta(days=7)
    elif period == "month":
        start = day.replace(day=1)
        end = (start + timedelta(days=32)).replace(day=1)
    else:
        start, end = day, day + timedelta(days=1)
    return start.strftime("%Y-%m-%dT%H:%M:%SZ"), end.strftime("%Y-%m-%dT%H:%M:%SZ")
