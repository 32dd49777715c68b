"""A call for a request, with its span: the provider, its retries and fallbacks, within the time of the request."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from kit import codec
from kit.catalogue import GATEWAY_PROVIDER_CALL
from kit.errors import CodecError, KitError
from kit.otel import Operation, semconv
from kit.otel.genai import gen_ai_attributes

from .books import Books
from .errors import ProviderFailed, as_data, unusable
from .flight import Emit
from .litellm_calls import Call
from .parameters import chat_parameters
from .parts import Parts
from .prices import CURRENCY, Price
from .relay import Relay
from .responses import BESIDE, BROKE_OFF, answer_of, said_in, wrap
from .till import Meter
from .usage import Asked, asked_of


class Caller:
    """Makes the calls of a gateway, and accounts for each, however it ends.

    A call that was given up, because its caller left or its time was up, is taken to have read its prompt and to have
    written what was seen of its answer: that is logged and paid, by an estimate of the tokens.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings, self._telemetry = parts.settings, parts.telemetry
        self._books = Books(parts, "completion")

    def meter(self, request: dict[str, Any]) -> Meter:
        """Open the account of a request."""
        return Meter(
            self._parts.till, request, limit=self._settings.rate_limit,
            estimate=lambda model: self._parts.prices.estimate(model, request),
            line=partial(self._books.line, request),
        )  # fmt: skip

    async def call(self, request: dict[str, Any], meter: Meter, emit: Emit | None) -> dict[str, Any]:
        """Return what the provider, or a fallback, answers; with ``emit`` piece by piece before it is whole.

        Raises:
            GatewayError: it was not let through, or failed.
        """
        call = self._call_of(request)
        try:
            await meter.enter(call.model)
            if emit is None:
                return await self._made(request, call, meter)
            call.parameters.update(stream=True, stream_options={"include_usage": True})
            relay = Relay(request, call.messages, emit, self._parts)
            try:
                answer = await self._made(request, call, meter, relay)
            except KitError as error:
                await relay.end(error=as_data(error))
                raise
            await relay.end(
                finish_reason=answer["finish_reason"], model=answer["model"], tokens=answer["tokens"],
                cost=answer["cost"], currency=CURRENCY,
            )  # fmt: skip
            return answer
        finally:
            await meter.settle()

    async def _made(
        self, request: dict[str, Any], call: Call, meter: Meter, relay: Relay | None = None
    ) -> dict[str, Any]:
        with self._span(request, call) as op:
            started = time.perf_counter()

            async def read(model: str, response: Any) -> tuple[Any, dict[str, Any]]:
                whole = response if relay is None else await relay.read(model, response)
                return whole, self._readable(request, model, whole, relay)

            def lost(error: BaseException) -> None:
                self._lost_call(request, call, meter, error, relay, time.perf_counter() - started, op)

            try:
                work = self._parts.providers.complete(call, meter, read, lost)
                response, answer = await meter.within(self.patience(request), work)
            except (KitError, asyncio.CancelledError) as error:
                lost(error)
                raise
            more: dict[str, Any] = {}
            if relay is not None:
                more = self._streamed(answer, relay, started, op)
            self._succeeded_call(request, call, meter, response, answer, time.perf_counter() - started, op, **more)
        return answer

    def _readable(self, request: dict[str, Any], model: str, response: Any, relay: Relay | None) -> dict[str, Any]:
        """Return an answer that can be sent to the caller.

        Raises:
            ProviderFailed: there is none; the call is paid for all the same.
        """
        said, failed = "", partial(unusable, model, answer=response)
        try:
            if not response.choices:
                raise failed("NoAnswer", retryable=False)
            said, answer = said_in(response), answer_of(response)
            whole = {**answer, "tokens": {"prompt": 0, "completion": 0, "total": 0}, "cost": 0.0, "model": model}
            size = len(codec.encode("llm_response", wrap(request, whole, seconds=0.0, cached=False)))
        except (CodecError, LookupError, AttributeError, TypeError, ValueError):
            error = failed("MalformedAnswer", retryable=True, said=said)
        else:
            if answer["finish_reason"] in BROKE_OFF:
                error = failed("AnswerCut", retryable=True, said=said)
            elif size + BESIDE > self._parts.max_payload():
                error = failed("AnswerTooLarge", retryable=False, said=said)
            else:
                return answer
        if relay is not None and relay.sent:
            error.final, error.retryable = True, False
        raise error

    def _streamed(self, answer: dict[str, Any], relay: Relay, started: float, op: Operation) -> dict[str, Any]:
        """Complete a streamed answer; return what the log says of it besides."""
        answer.update(streamed=True, chunks=relay.sent)
        if relay.first is None:
            return {"streamed": True}
        first = answer["time_to_first_token"] = relay.first - started
        op.set(semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first)
        return {"streamed": True, "time_to_first_token_ms": first * 1e3}

    def _call_of(self, request: dict[str, Any]) -> Call:
        """What to ask of the provider; a model that is down gives way to its fallback at once."""
        model = request["model"]
        fallbacks = tuple(request.get("fallbacks") or self._settings.fallbacks.get(model) or ())
        if fallbacks and self._parts.health.cooling(model):
            model, *rest = [*(name for name in fallbacks if not self._parts.health.cooling(name)), *fallbacks]
            fallbacks = tuple(name for name in rest if name != model)
        return Call(
            model=model,
            messages=request.get("messages") or [{"role": "user", "content": request["prompt"]}],
            parameters=chat_parameters(request),
            timeout=self._timeout(request),
            fallbacks=fallbacks,
        )

    def _timeout(self, request: dict[str, Any]) -> float:
        return min(float(request.get("timeout") or self._settings.timeout), self._settings.timeout)

    def patience(self, request: dict[str, Any]) -> float:
        """Return how many seconds an answer may take, with all retries."""
        return float(request.get("timeout") or self._settings.timeout * (1 + self._settings.retries))

    def _span(self, request: dict[str, Any], call: Call) -> Operation:
        provider = self._parts.providers.provider_of(call.model)
        attributes = gen_ai_attributes(
            "chat", model=call.model, provider=provider, parameters=request.get("parameters"),
            conversation_id=request.get("session_id"), input_messages=call.messages,
        )  # fmt: skip
        attributes[semconv.PROVIDER], attributes[semconv.MODEL] = provider, call.model
        return self._telemetry.operation(
            GATEWAY_PROVIDER_CALL, attributes, kind="client", labels={"provider": provider, "model": call.model}
        )

    def _succeeded_call(
        self, request: dict[str, Any], call: Call, meter: Meter, response: Any, answer: dict[str, Any], seconds: float,
        op: Operation, **more: Any,
    ) -> None:  # fmt: skip
        """Complete an answer with what it cost, and tell spans, metrics, the log and the health of it."""
        parts, model, attempts = self._parts, meter.model, meter.calls
        tokens, price = self._books.used(model, response, self._asked(request, call, model), said_in(response))
        answer.update(
            tokens=tokens, model=model, provider=parts.providers.provider_of(model), cost=price.amount,
            currency=CURRENCY, price_source=price.source, attempts=attempts,
        )  # fmt: skip
        if model != request["model"]:
            answer["requested_model"] = request["model"]
        if op.recording:
            op.span.set_attributes(self._answer_attributes(answer, price))
        self._books.paid(meter, tokens, price)
        self._books.note(model, seconds, failed_before=attempts - 1 - meter.noted if model == call.model else 0)
        if model != call.model:
            lost = ProviderFailed(call.model, kind="FellBack", status_code=None, retryable=True)
            self._books.note(call.model, seconds, lost)
        self._books.log(
            request, meter, model=model, tokens=tokens, price=price, seconds=seconds, trace_id=op.trace_id,
            status="success", attempts=attempts, requested_model=answer.get("requested_model"),
            finish_reason=answer["finish_reason"], **more,
        )  # fmt: skip

    def _lost_call(
        self, request: dict[str, Any], call: Call, meter: Meter, error: BaseException, relay: Relay | None,
        seconds: float, op: Operation,
    ) -> None:  # fmt: skip
        """Tell of a call without an answer."""
        asked = self._asked(request, call, meter.model or call.model)
        paid = self._books.lost(
            request, meter, call.model, error, asked=asked, said="" if relay is None else relay.said, seconds=seconds,
            trace_id=op.trace_id, streamed=None if relay is None else True,
            requested_model=request["model"] if call.model != request["model"] else None,
        )  # fmt: skip
        if paid is not None:
            op.update(_token_attributes(*paid))

    def _asked(self, request: dict[str, Any], call: Call, model: str) -> Asked:
        most = self._parts.prices.completion_bound(model, request)
        shaped = [call.parameters[name] for name in ("tools", "response_format") if call.parameters.get(name)]
        return asked_of(call.messages, shaped, most)

    def _answer_attributes(self, answer: dict[str, Any], price: Price) -> dict[str, Any]:
        tokens = answer["tokens"]
        said = [{"role": "assistant", "content": answer["response"], "tool_calls": answer.get("tool_calls")}]
        attributes = gen_ai_attributes(
            response_id=answer.get("provider_response_id"), response_model=answer["model"],
            finish_reasons=[answer["finish_reason"]], input_tokens=tokens["prompt"],
            output_tokens=tokens["completion"], cache_read_tokens=tokens.get("cached"),
            reasoning_tokens=tokens.get("reasoning"), cost_usd=price.amount, output_messages=said,
        )  # fmt: skip
        return {**attributes, **_token_attributes(tokens, price)}


def _token_attributes(tokens: dict[str, int], price: Price) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        semconv.TOKENS_PROMPT: tokens["prompt"],
        semconv.TOKENS_COMPLETION: tokens["completion"],
        semconv.TOKENS_TOTAL: tokens["total"],
    }
    if price.amount is not None:
        attributes[semconv.COST_USD] = price.amount
    return attributes
