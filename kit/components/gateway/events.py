"""What the gateway tells others: sent after the answer, so that nobody waits for it, and before the worker stops."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import (
    GATEWAY_COST_ALERTS,
    GATEWAY_HEALTH,
    GATEWAY_RATE_LIMIT,
    GATEWAY_RESPONSES,
    LLMOPS_OPERATIONS,
    RAG_EMBEDDING_RESULTS,
    Operation,
)
from kit.errors import KitError

from .errors import BudgetExceeded, RateLimited
from .health import BUCKET as HEALTH_BUCKET
from .settings import RateLimit

if TYPE_CHECKING:
    from kit.nats.bus import Bus

_AFTER = 0.001  # s; the answer goes first
_GATHER = 0.25  # s; violations of one limit within it are told by one event
_HEALTH_KEPT = 3600.0
_LOG_TRIES = 12  # each of five seconds, while the stream does not acknowledge

logger = logging.getLogger(__name__)


class Events:
    """Publishes in the background, in order of happening as far as the bus keeps it.

    An event that cannot be sent is logged and dropped, except operations for the log, which are tried for a minute.
    """

    def __init__(self, bus: Bus, worker_id: str, log_interval: float) -> None:
        self._bus, self._worker_id, self._log_interval = bus, worker_id, log_interval
        self._tasks: set[asyncio.Task[Any]] = set()
        self._due = 0
        self._violations: dict[str, int] = {}
        self._lines: list[tuple[Context, Callable[[], dict[str, Any]], Callable[[], None] | None]] = []

    async def drain(self, timeout: float) -> None:
        """Wait until everything is sent, at most ``timeout`` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        while (self._due or self._tasks) and asyncio.get_running_loop().time() < deadline:
            if self._tasks:
                await asyncio.wait(tuple(self._tasks), timeout=deadline - asyncio.get_running_loop().time())
            else:
                await asyncio.sleep(_AFTER)

    def response(self, data: dict[str, Any]) -> None:
        """Tell that a response was given, or that there will be none."""
        self._later(lambda: self._publish(GATEWAY_RESPONSES, data))

    def embeddings(self, data: dict[str, Any]) -> None:
        """Tell that bulk embeddings are ready."""
        self._later(lambda: self._publish(RAG_EMBEDDING_RESULTS, data))

    def operation(self, made: Callable[[], dict[str, Any]], logged: Callable[[], None] | None = None) -> None:
        """Log a provider's call, in the present trace.

        Args:
            made: makes its line later.
            logged: is called after the line is logged.
        """
        self._lines.append((copy_context(), made, logged))
        if len(self._lines) == 1:
            self._later(self._log, self._log_interval)

    def health(self, data: dict[str, Any]) -> None:
        """Tell how a provider is doing, and keep it for the table."""
        self._later(lambda: self._health({**data, "tenant_id": self._bus.tenant_id}))

    def alert(self, data: dict[str, Any], request: dict[str, Any]) -> None:
        """Tell that a request met, or came near, the tenant's budget."""
        alert: dict[str, Any] = {**data, "tenant_id": self._bus.tenant_id}
        alert.update(
            {name: request[name] for name in ("request_id", "model", "user_id", "agent_id") if name in request}
        )
        alert["alert_id"] = f"{alert['reason']}-{request['request_id']}"[:200]
        self._later(lambda: self._publish(GATEWAY_COST_ALERTS, alert, message_id=alert["alert_id"], tries=2))

    def refused(self, error: BudgetExceeded, request: dict[str, Any], price_source: str) -> None:
        """Tell that the budget refused a request."""
        data: dict[str, Any] = {
            "scope": "request" if error.period == "request" else "tenant", "limit": error.limit, "spent": error.spent,
            "currency": error.currency, "period": error.period, "reason": "budget_exceeded",
            "estimated": error.estimated, "remaining": error.limit - error.spent, "price_source": price_source,
            "timestamp": codec.now(),
        }  # fmt: skip
        if error.reset_at is not None:
            data["reset_at"] = error.reset_at
        self.alert(data, request)

    def violated(self, error: RateLimited, limit: RateLimit, request: dict[str, Any]) -> None:
        """Tell that a request was over its rate limit; those of one moment together."""
        model = error.model
        self._violations[model] = self._violations.get(model, 0) + 1
        if self._violations[model] == 1:
            self._later(lambda: self._tell_violations(error, limit, request))

    async def _tell_violations(self, error: RateLimited, limit: RateLimit, request: dict[str, Any]) -> None:
        await asyncio.sleep(_GATHER)
        count = self._violations.pop(error.model)
        reset = datetime.now(UTC) + timedelta(seconds=error.retry_after)
        data: dict[str, Any] = {
            "tenant_id": self._bus.tenant_id, "model": error.model, "limit": limit.requests, "unit": "requests",
            "used": limit.requests, "requested": count, "window": limit.window, "retry_after": error.retry_after,
            "reset_at": reset.isoformat().replace("+00:00", "Z"), "allowed": False, "violations": count,
            "worker_id": self._worker_id, "timestamp": codec.now(),
        }  # fmt: skip
        data.update({name: request[name] for name in ("request_id", "user_id", "agent_id") if name in request})
        await self._publish(GATEWAY_RATE_LIMIT, data)

    async def _log(self) -> None:
        lines, self._lines = self._lines, []
        await asyncio.gather(
            *(asyncio.create_task(self._line(made(), logged), context=trace) for trace, made, logged in lines)
        )

    async def _line(self, data: dict[str, Any], logged: Callable[[], None] | None) -> None:
        if await self._publish(LLMOPS_OPERATIONS, data, message_id=data["operation_id"], tries=_LOG_TRIES) and logged:
            logged()

    async def _health(self, data: dict[str, Any]) -> None:
        await self._publish(GATEWAY_HEALTH, data)
        try:
            store = await self._bus.store(HEALTH_BUCKET, _HEALTH_KEPT)
            named = codec.dumps([self._worker_id, data["provider"], data["model"]])
            key = hashlib.sha256(named).hexdigest()
            await store.put(key, codec.dumps({**data, "told_at": time.time()}))
        except KitError as error:
            logger.warning("a provider's health was not kept: %s", error)

    async def _publish(
        self, row: Operation, data: dict[str, Any], *, message_id: str | None = None, tries: int = 1
    ) -> bool:
        for attempt in range(1, tries + 1):
            try:
                await self._bus.publish(row, data, message_id=message_id)
                return True
            except KitError as error:
                if attempt == tries:
                    logger.warning("%s was not told: %s", row.name, error)
                else:
                    await asyncio.sleep(0.2 * attempt)
        return False

    def _later(self, work: Callable[[], Coroutine[Any, Any, Any]], after: float = _AFTER) -> None:
        """Begin in a moment: the answer goes first."""
        self._due += 1
        asyncio.get_running_loop().call_later(after, self._begin, work)

    def _begin(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._due -= 1
        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
