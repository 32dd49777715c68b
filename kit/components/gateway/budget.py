"""Budgets per tenant: reserved before a call, settled after it, in one document that all workers change in turn."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from kit import codec
from kit.errors import Conflict, KitError

from .errors import BudgetExceeded

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.store import Store

    from .settings import Budget

BUCKET = "gateway-budget"
_KEY = "spend"
_DEAD = 6.0  # s; of silence beyond the point at which its peers consider a worker dead
_SWEEP = 2.0

logger = logging.getLogger(__name__)

Line: TypeAlias = dict[str, Any]  # of the operation log: ``llm_operation`` data
Alive: TypeAlias = Callable[[str], Awaitable[bool]]


class Purse:
    """What one tenant has spent and reserved in the present period.

    It is exact if providers report their usage; the cost of a call that was given up is estimated. It agrees with the
    operation log even after crashes, because it stores the lines that may not be logged yet along with the amounts. A
    dead worker's reservations are spent, because its provider may have answered; another worker logs ``WorkerLost``.
    """

    def __init__(self, store: Store, budget: Budget) -> None:
        self._store = store
        self.budget = budget
        self._turn = asyncio.Lock()
        self._logged: set[str] = set()  # lines to be let go of with the next change
        self._silent: dict[str, float] = {}  # workers that own something and were not heard of, since when

    @classmethod
    async def open(cls, bus: Bus, budget: Budget) -> Purse:
        """Open the tenant's purse."""
        return cls(await bus.store(BUCKET), budget)

    async def reserve(self, name: str, estimated: float, line: Line | None = None) -> dict[str, Any] | None:
        """Reserve a call's estimated cost; the same name reserves it once.

        Args:
            name: the reservation's name; its second-to-last part, between dots, is the worker's id.
            estimated: in ``currency``.
            line: what to log if the worker dies during the call.

        Returns:
            A ``cost_alert`` (without the request's fields) if this is the period's first reservation near the limit,
            else None.

        Raises:
            BudgetExceeded: it would exceed the limit.
        """

        def change(purse: dict[str, Any]) -> dict[str, Any] | None:
            reserved = sum(amount for other, amount in purse["reserved"].items() if other != name)
            total = purse["spent"] + reserved + estimated
            if total > self.budget.limit + 1e-12:
                raise BudgetExceeded(
                    limit=self.budget.limit, spent=purse["spent"] + reserved, estimated=estimated,
                    currency=self.budget.currency, period=self.budget.period, reset_at=purse["reset_at"],
                )  # fmt: skip
            purse["reserved"][name] = estimated
            if line is not None:
                purse["lines"][name] = {**line, "operation_id": name, "cost": estimated}
            if total >= self.budget.near * self.budget.limit and not purse["near_told"]:
                purse["near_told"] = True
                return self.alert("budget_near", purse, estimated)
            return None

        alert: dict[str, Any] | None = await self._change(change)
        return alert

    async def settle(self, name: str, cost: float, lines: Sequence[Line] = ()) -> None:
        """Replace a reservation, if any, with the call's real cost, and keep its lines until ``logged``."""

        def change(purse: dict[str, Any]) -> None:
            if any(line["operation_id"] in purse["lines"] for line in lines):
                return  # done before, though the answer was lost
            purse["reserved"].pop(name, None)
            purse["lines"].pop(name, None)
            purse["spent"] += cost
            purse["lines"].update({line["operation_id"]: line for line in lines})

        await self._change(change)

    def logged(self, operation_id: str) -> None:
        """Note that a line is logged."""
        self._logged.add(operation_id)

    async def release(self) -> None:
        """Delete lines that are logged."""
        if self._logged:
            await self._change(lambda purse: None)

    async def look_after(self, alive: Alive, log: Callable[[Line], None]) -> None:
        """Log dead workers' lines, again and again, and delete lines that are logged.

        Args:
            alive: returns whether a worker is alive.
            log: logs a line, and calls ``logged`` afterwards.
        """
        while True:
            await asyncio.sleep(_SWEEP)
            try:
                await self.sweep(alive, log)
            except KitError as error:
                logger.info("the budget's lines were not logged: %s", error)

    async def sweep(self, alive: Alive, log: Callable[[Line], None]) -> None:
        """Spend the reservations of workers that died a while ago, and log their lines."""
        purse, now = await self._read(), time.monotonic()
        owners = {_owner(name) for name in (*purse["reserved"], *purse["lines"])}
        self._silent = {owner: self._silent.get(owner, now) for owner in owners if not await alive(owner)}
        dead = {owner for owner, since in self._silent.items() if now - since >= _DEAD}
        if not dead:
            return await self.release()

        def change(purse: dict[str, Any]) -> list[Line]:
            for name in [name for name in purse["reserved"] if _owner(name) in dead]:
                purse["spent"] += purse["reserved"].pop(name)
            return [line for name, line in purse["lines"].items() if _owner(name) in dead]

        for line in await self._change(change):
            log(line)

    async def state(self) -> dict[str, Any]:
        """Return the purse: ``spent``, ``reserved``, ``limit``, ``currency``, ``period_start``, ``reset_at``."""
        purse = await self._read()
        return {
            "spent": purse["spent"], "reserved": sum(purse["reserved"].values()), "limit": self.budget.limit,
            "currency": self.budget.currency, "period": self.budget.period, "period_start": purse["period_start"],
            "reset_at": purse["reset_at"],
        }  # fmt: skip

    def alert(self, reason: str, purse: dict[str, Any], estimated: float) -> dict[str, Any]:
        """Return a ``cost_alert`` about a purse."""
        reserved = sum(purse["reserved"].values())
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
                logged = set(self._logged)
                for name in logged:
                    purse["lines"].pop(name, None)
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
                self._logged -= logged
                return said

    async def _read(self) -> dict[str, Any]:
        entry = await self._store.get(_KEY)
        return self._present(codec.loads(entry.value) if entry is not None and entry.value else None)

    def _present(self, purse: dict[str, Any] | None) -> dict[str, Any]:
        """The budget of the present period; a new period keeps open reservations."""
        start, end = period_of(self.budget.period, datetime.now(UTC))
        if purse is None or purse["period_start"] != start:
            kept = purse or {}
            purse = {
                "period_start": start, "reset_at": end, "spent": 0.0, "near_told": False,
                "reserved": kept.get("reserved", {}), "lines": kept.get("lines", {}),
            }  # fmt: skip
        purse.setdefault("lines", {})  # an earlier version kept none, and reservations with the time of their end
        purse["reserved"] = {name: row[0] if isinstance(row, list) else row for name, row in purse["reserved"].items()}
        return purse


def _owner(name: str) -> str:
    """Return the worker that made a reservation or a line."""
    return name.rsplit(".", 2)[-2] if name.count(".") >= 2 else ""


async def spend(bus: Bus, budget: Budget) -> dict[str, Any]:
    """Return a tenant's budget: ``spent``, ``reserved``, ``reset_at``, …"""
    return await (await Purse.open(bus, budget)).state()


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
