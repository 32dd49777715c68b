"""What is told of every call of a provider, however it ended: tokens and money, the provider's health, the log."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

from kit import codec
from kit.catalogue import GATEWAY_COST, GATEWAY_TOKENS_USED

from .budget import Line
from .errors import ProviderFailed
from .parts import Parts
from .prices import CURRENCY, Price
from .responses import operation_of
from .till import Meter
from .usage import IMPLAUSIBLE, Asked, reported

logger = logging.getLogger(__name__)
_NOTHING = {"prompt": 0, "completion": 0, "total": 0}


class Books:
    """The books of one worker.

    Args:
        parts: of its gateway.
        operation_type: of its lines in the log: ``completion`` or ``embedding``.
    """

    def __init__(self, parts: Parts, operation_type: str) -> None:
        self._parts, self._type = parts, operation_type
        self._serial = 0

    def paid(self, meter: Meter, tokens: dict[str, int], price: Price) -> None:
        """Count tokens and money that a call took, and have the money settled."""
        telemetry, provider = self._parts.telemetry, self._parts.providers.provider_of(meter.model)
        telemetry.record(GATEWAY_TOKENS_USED, tokens["total"], model=meter.model, provider=provider)
        if price.amount is not None:
            telemetry.record(GATEWAY_COST, price.amount, model=meter.model, provider=provider)
        meter.pay(price.amount)

    def used(self, model: str, response: Any, asked: Asked, said: str) -> tuple[dict[str, int], Price]:
        """Return a call's tokens and their price: as reported, or estimated if the report is impossible."""
        tokens, doubt = reported(getattr(response, "usage", None), asked, said)
        if not doubt:
            return tokens, self._parts.prices.paid(model, response, tokens)
        if doubt == IMPLAUSIBLE:
            logger.warning("the provider of %s reported more tokens than a call can use: estimating them", model)
        tokens = self._parts.providers.count(asked.texts, said)
        price = self._parts.prices.of(model, tokens["prompt"], tokens["completion"])
        return tokens, Price(amount=price.amount, source=f"{price.source}; {doubt}")

    def lost(
        self, request: dict[str, Any], meter: Meter, first: str, error: BaseException, *, asked: Asked, said: str = "",
        seconds: float, **more: Any,
    ) -> tuple[dict[str, int], Price] | None:  # fmt: skip
        """Tell of a call without an answer; return the tokens and the price that are taken for used nevertheless.

        Args:
            request: that it was made for.
            meter: of the request.
            first: the model that was called first.
            error: why there is no answer: a failure, a refusal of what would have come next, or a cancellation.
            asked: what the provider was given to read.
            said: what came of its answer.
            seconds: that it took.
            more: fields of its line in the log.
        """
        failed = error if isinstance(error, ProviderFailed) else meter.lost
        worked = bool(meter.calling or said)
        model = meter.model if worked else first
        tokens, price = _NOTHING, Price(amount=0.0, source=self._parts.prices.source(model))
        if worked:
            tokens, price = self.used(model, getattr(error, "answer", None), asked, said or getattr(error, "said", ""))
            self.paid(meter, tokens, price)
        if failed is not None:
            self.note(first, seconds, failed)
            meter.noted += 1
        known = error if isinstance(error, asyncio.CancelledError) else failed or error
        self.log(
            request, meter, model=model, tokens=tokens, price=price, seconds=seconds, status="error",
            error_type=getattr(known, "kind", "") or type(known).__name__,
            status_code=getattr(known, "status_code", None), attempts=meter.calls, **more,
        )  # fmt: skip
        return (tokens, price) if worked else None

    def note(self, model: str, seconds: float, error: ProviderFailed | None = None, failed_before: int = 0) -> None:
        """Tell how a provider is doing."""
        provider = self._parts.providers.provider_of(model)
        event = self._parts.health.note(provider, model, seconds, error, failed_before=failed_before)
        if event is not None:
            self._parts.events.health(event)

    def log(self, request: dict[str, Any], meter: Meter, *, trace_id: str = "", **more: Any) -> None:
        """Write a call into the log."""
        meter.log(partial(self.line, request, timestamp=codec.now(), trace_id=trace_id, **more))

    def line(
        self, request: dict[str, Any], *, model: str, price: Price, tokens: dict[str, int] = _NOTHING,
        seconds: float = 0.0, trace_id: str = "", timestamp: str = "", **more: Any,
    ) -> Line:  # fmt: skip
        """Return a call's line for the log."""
        self._serial += 1
        worker_id = self._parts.worker_id
        return operation_of(
            request, operation_id=f"{request['request_id'][:120]}.{worker_id}.{self._type[0]}{self._serial}",
            operation_type=self._type, timestamp=timestamp or codec.now(), worker_id=worker_id, trace_id=trace_id,
            model=model, provider=self._parts.providers.provider_of(model), tokens=tokens, cost=price.amount,
            currency=CURRENCY, price_source=price.source, latency_ms=seconds * 1e3, **more,
        )  # fmt: skip
