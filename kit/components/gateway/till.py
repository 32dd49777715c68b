"""What every call of a provider takes: one request of the tenant's allowance, and money reserved and settled.

A request may make several calls: retries, fallbacks, a second try after a failed check. Each goes through its meter.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from kit.catalogue import GATEWAY_RATE_LIMIT_CHECK, GATEWAY_RATE_LIMIT_VIOLATIONS
from kit.errors import BusError, KitError
from kit.otel import semconv

from .budget import Line, Purse
from .errors import BudgetExceeded, PriceUnknown, ProviderFailed, RateLimited, timed_out
from .events import Events
from .limits import Limiter
from .prices import CURRENCY, Price, Prices
from .settings import RateLimit
from .usage import ESTIMATED

if TYPE_CHECKING:
    from kit.otel import Telemetry


T = TypeVar("T")
Made: TypeAlias = Callable[[], Line]  # writes a line when there is time
_PATIENCE = 1.0  # s; for which an answer waits until it is settled

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Till:
    """Where calls are let through and paid, the same for all requests of a worker."""

    telemetry: Telemetry
    prices: Prices
    limiter: Limiter
    events: Events
    worker_id: str
    purse: Purse | None = None
    settling: set[asyncio.Task[None]] = field(default_factory=set)

    async def admit(self, request: Mapping[str, Any], model: str, limit: RateLimit | None) -> None:
        """Take one call from the tenant's allowance of the model.

        Raises:
            RateLimited: it is used up.
        """
        with self.telemetry.operation(GATEWAY_RATE_LIMIT_CHECK, {semconv.MODEL: model}) as op:
            try:
                if limit is not None:
                    await self.limiter.take(model, limit)
                op.set(semconv.RATE_LIMIT_ALLOWED, True)
            except RateLimited as error:
                op.set(semconv.RATE_LIMIT_ALLOWED, False)
                self.telemetry.count(GATEWAY_RATE_LIMIT_VIOLATIONS, model=model)
                assert limit is not None
                self.events.violated(error, limit, dict(request))
                raise

    async def settle(self, name: str, cost: float, lines: Sequence[tuple[Context, Made]]) -> None:
        """Settle the calls' cost, then log them. A failing store delays nobody: it is tried again."""
        told = [(context, made()) for context, made in lines]
        settling = asyncio.create_task(self._settle(name, cost, told))
        self.settling.add(settling)
        settling.add_done_callback(self.settling.discard)
        await asyncio.wait((settling,), timeout=_PATIENCE)

    async def _settle(self, name: str, cost: float, lines: Sequence[tuple[Context, Line]]) -> None:
        assert self.purse is not None
        pause = 0.1
        while True:
            try:
                await self.purse.settle(name, cost, [line for _, line in lines])
                break
            except KitError as error:
                logger.warning("%g %s not settled yet: %s", cost, CURRENCY, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
        for context, line in lines:
            context.run(self.log, line)

    def log(self, line: Line) -> None:
        """Log a line, then delete it from the budget."""
        assert self.purse is not None
        self.events.operation(lambda: line, partial(self.purse.logged, line["operation_id"]))

    async def close(self, timeout: float) -> None:
        """Wait at most ``timeout`` until everything is settled and logged; another worker does the rest."""
        if self.settling:
            await asyncio.wait(tuple(self.settling), timeout=timeout)
        await self.events.drain(timeout)
        if self.purse is not None:
            with suppress(BusError):  # another worker lets go of what is logged
                await self.purse.release()


class Meter:
    """One request's account: what it may use, and what it used.

    Attributes:
        model: what was called last; empty before the first call.
        calls: how many calls were made since the last settlement; ``made``: since the beginning.
        noted: how many failures the health of providers knows already.
        before: deliveries of the request's job before this one: a worker died over each, maybe with a call.
        calling: whether a provider may be at work on the last one, or have been when nobody waited any longer.
        lost: how the last call that failed did so.
        refused: why the last call that was not let through was not.
        deadline: time of the event loop after which nobody waits for an answer.
    """

    def __init__(
        self, till: Till, request: dict[str, Any], *, estimate: Callable[[str], Price],
        line: Callable[..., Line], limit: Callable[[str], RateLimit | None], unlimited_too: bool = True,
    ) -> None:  # fmt: skip
        self._till, self._request = till, request
        self._estimate, self._limit, self._unlimited_too = estimate, limit, unlimited_too
        self._line = line
        self._not_before: dict[str, float] = {}
        self._paid = 0.0  # by earlier calls of the request
        self.made = 0
        self.before = request.get("delivery", 1) - 1
        self._open()

    def _open(self) -> None:
        self.model, self.calls, self.noted, self.calling = "", 0, 0, False
        self.lost: ProviderFailed | None = None
        self.refused: KitError | None = None
        self.deadline: float | None = None
        self._name, self._reserved, self._cost = "", 0.0, 0.0
        self._lines: list[tuple[Context, Made]] = []

    async def enter(self, model: str) -> None:
        """Let one call through: wait as its provider asked, take it from the allowance, reserve what it may cost.

        Of several calls for one answer the last is paid, and those that were worked on in vain.

        Raises:
            RateLimited, BudgetExceeded, PriceUnknown: it is not let through.
            ProviderFailed: its provider asked to wait for longer than anybody waits for the answer.
        """
        pause = self._not_before.get(model, 0.0) - asyncio.get_running_loop().time()
        if pause > 0:
            if self.lost is not None and not self.can_wait(pause):
                raise self.lost
            await asyncio.sleep(pause)
        limit = self._limit(model)
        if limit is not None or self._unlimited_too:
            await self._till.admit(self._request, model, limit)
        await self._reserve(model)
        self.model, self.calling, self.refused = model, True, None
        self.calls += 1
        self.made += 1

    async def within(self, seconds: float, call: Awaitable[T]) -> T:
        """Wait for a call, with all that is made for it, but not longer than somebody waits for its answer.

        Raises:
            ProviderFailed: the time is up.
        """
        model = self.model
        self.deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout(seconds):
                return await call
        except TimeoutError:
            raise (self.lost or timed_out(model)) from None  # what its provider answered says more

    @contextmanager
    def once(self) -> Iterator[None]:
        """Keep the queue from retrying a request for which calls were made: the gateway did all the retries."""
        try:
            yield
        except Exception as error:
            if self.made:
                error.retryable = False  # type: ignore[attr-defined]
            raise

    def can_wait(self, seconds: float) -> bool:
        """Say whether somebody will still wait for the answer then."""
        return self.deadline is None or asyncio.get_running_loop().time() + seconds < self.deadline

    def failed(self, error: ProviderFailed) -> None:
        """Note how a call failed. One that took too long may have been worked on all the same."""
        self.lost, self.calling = error, error.worked
        if error.retry_after:
            self._not_before[error.model] = asyncio.get_running_loop().time() + error.retry_after

    def pay(self, cost: float | None) -> None:
        """Note what a call cost, to be settled."""
        self._cost += cost or 0.0

    def log(self, made: Made) -> None:
        """Note a line for the log, in the present trace; it is written once the call is settled."""
        self._lines.append((copy_context(), made))

    async def settle(self) -> None:
        """Replace what was reserved by what was paid, and begin anew."""
        name, cost, lines = self._name, self._cost, self._lines
        self._paid += cost
        self._open()
        if self._till.purse is not None and (name or cost):
            await self._till.settle(name, cost, lines)
            return
        for context, made in lines:
            context.run(self._till.events.operation, made)

    async def _reserve(self, model: str) -> None:
        """Set aside what a call may cost, where there is a budget or the request bounds its own cost."""
        purse, most, source = self._till.purse, self._request.get("max_cost"), self._till.prices.source(model)
        if purse is None and most is None:
            return
        estimated = self._estimate(model).amount
        if estimated is None:
            raise PriceUnknown(model)
        try:
            if most is not None and (spent := self._paid + self._cost) + estimated > most:
                raise BudgetExceeded(
                    limit=most, spent=spent, estimated=estimated, currency=CURRENCY, period="request",
                    reset_at=None,
                )  # fmt: skip
            estimated += self._cost
            if purse is None or estimated <= self._reserved:
                return
            if not self._name:
                self._name = f"{self._request['request_id'][:120]}.{self._till.worker_id}.{uuid.uuid4().hex[:8]}"
            line = self._line(
                model=model, price=Price(amount=estimated, source=f"{source}; {ESTIMATED}"), status="error",
                error_type="WorkerLost",
            )  # fmt: skip
            alert = await purse.reserve(self._name, estimated, line)
            self._reserved = estimated
        except BudgetExceeded as error:
            self._till.events.refused(error, {**self._request, "model": model}, source)
            raise
        if alert is not None:
            self._till.events.alert({**alert, "price_source": source}, {**self._request, "model": model})
