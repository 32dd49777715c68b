"""Streams: a provider's pieces passed on as they come, and put together for the record."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from .errors import ProviderFailed
from .litellm_calls import Call, Outcome, Providers, close_stream
from .prices import CURRENCY
from .responses import piece_of

Emit: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
_KNOWN_PIECE = 40  # characters of a remembered answer that is streamed


class Relay:
    """Passes a provider's stream on, and puts the whole of it together."""

    def __init__(self, request: dict[str, Any], emit: Emit, providers: Providers) -> None:
        self._request, self._emit, self._providers = request, emit, providers
        self.sent = 0
        self.first: float | None = None

    async def run(self, call: Call) -> Outcome:
        """Relay the stream to its end.

        Raises:
            ProviderFailed: it broke off; retryable only while nothing was sent.
        """
        outcome: Outcome = await self._providers.complete(call)
        stream, chunks = outcome.response, []
        try:
            async for chunk in stream:
                chunks.append(chunk)
                piece = piece_of(chunk)
                if piece:
                    self.first = self.first or time.perf_counter()
                    await self._send(piece)
        except self._providers.errors as error:
            failed = self._providers.failure(call.model, error)
            failed.retryable = failed.retryable and not self.sent
            raise failed from None
        finally:
            await close_stream(stream)
        whole = self._providers.litellm.stream_chunk_builder(chunks, messages=list(call.messages))
        if whole is None or not whole.choices[0].finish_reason:
            raise ProviderFailed(call.model, kind="StreamCut", status_code=None, retryable=not self.sent)
        whole.usage = _usage_of(chunks) or whole.usage
        return Outcome(response=whole, model=outcome.model, attempts=outcome.attempts)

    async def end(self, **last: Any) -> None:
        """Send the last piece."""
        await self._send({"final": True, **last})

    async def _send(self, piece: dict[str, Any]) -> None:
        await self._emit({"request_id": self._request["request_id"], "index": self.sent, **piece})
        self.sent += 1


def _usage_of(chunks: list[Any]) -> Any:
    return next((chunk.usage for chunk in reversed(chunks) if getattr(chunk, "usage", None)), None)


async def emit_known(request: dict[str, Any], answer: dict[str, Any], emit: Emit) -> None:
    """Stream an answer that is known already."""
    text = answer.get("response") or ""
    pieces: list[dict[str, Any]] = [
        {"text": text[begin : begin + _KNOWN_PIECE]} for begin in range(0, len(text), _KNOWN_PIECE)
    ]
    if answer.get("tool_calls"):
        pieces.append({"tool_calls": answer["tool_calls"]})
    pieces.append(
        {
            "final": True, "finish_reason": answer["finish_reason"], "model": answer["model"],
            "tokens": answer["tokens"], "cost": 0.0, "currency": CURRENCY,
        }
    )  # fmt: skip
    for index, piece in enumerate(pieces):
        await emit({"request_id": request["request_id"], "index": index, "cached": True, **piece})
