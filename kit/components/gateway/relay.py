"""Streams: a provider's pieces passed on as they come, and put together for the record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .errors import ProviderFailed
from .flight import Emit
from .litellm_calls import Call, Providers, close_stream
from .prices import CURRENCY
from .responses import piece_of

if TYPE_CHECKING:
    from .till import Meter

_KNOWN_PIECE = 40  # characters of a remembered answer that is streamed


class Relay:
    """Passes a provider's stream on, and puts the whole of it together.

    Attributes:
        sent: how many pieces were passed on; first: when the first one was.
    """

    def __init__(self, request: dict[str, Any], emit: Emit, providers: Providers) -> None:
        self._request, self._emit, self._providers = request, emit, providers
        self._chunks: list[Any] = []
        self.sent = 0
        self.first: float | None = None

    async def run(self, call: Call, meter: Meter) -> Any:
        """Relay the stream to its end, and return the whole as LiteLLM's response.

        Raises:
            GatewayError: it broke off; retryable only while nothing was sent.
        """
        stream = await self._providers.complete(call, meter)
        try:
            async for chunk in stream:
                self._chunks.append(chunk)
                piece = piece_of(chunk)
                if piece:
                    self.first = self.first or time.perf_counter()
                    await self._send(piece)
        except self._providers.errors as error:
            failed = self._providers.failure(call.model, error)
            meter.failed(failed)
            if meter.refused is not None:
                raise meter.refused from None
            failed.retryable = failed.retryable and not self.sent
            raise failed from None
        finally:
            await close_stream(stream)
        whole = self._providers.litellm.stream_chunk_builder(self._chunks, messages=list(call.messages))
        if whole is None or not whole.choices[0].finish_reason:
            meter.failed(cut := ProviderFailed(call.model, kind="StreamCut", status_code=None, retryable=not self.sent))
            raise cut
        whole.usage = _usage_of(self._chunks) or whole.usage
        return whole

    @property
    def said(self) -> str:
        """What came until now: text, reasoning and tool calls."""
        pieces = [piece_of(chunk) for chunk in self._chunks]
        calls = [call["function"] for piece in pieces for call in piece.get("tool_calls", ())]
        spoken = [piece.get(name) or "" for piece in pieces for name in ("reasoning_content", "text")]
        return "".join([*spoken, *(f"{call['name'] or ''}{call['arguments'] or ''}" for call in calls)])

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
