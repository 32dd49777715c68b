"""Streams: a provider's pieces passed on as they come, and put together for the record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kit import codec
from kit.errors import CodecError

from .errors import ProviderFailed, unusable
from .flight import Emit
from .litellm_calls import close_stream
from .parts import Parts
from .prices import CURRENCY
from .responses import BESIDE, BROKE_OFF, piece_of

_KNOWN_PIECE = 40  # characters of a remembered answer that is streamed


class Relay:
    """Passes a provider's stream on, and puts the whole of it together.

    Attributes:
        sent: how many pieces were passed on; first: when the first one was.
    """

    def __init__(self, request: dict[str, Any], messages: Sequence[dict[str, Any]], emit: Emit, parts: Parts) -> None:
        self._request, self._emit, self._parts, self._providers = request, emit, parts, parts.providers
        self._messages = list(messages)
        self._chunks: list[Any] = []
        self.sent = 0
        self.first: float | None = None

    async def read(self, model: str, stream: Any) -> Any:
        """Relay a stream to its end, and return the whole as LiteLLM's response.

        Raises:
            GatewayError: it broke off; retryable only while nothing was sent.
        """
        self._chunks = []
        try:
            async for chunk in stream:
                self._chunks.append(chunk)
                piece = piece_of(chunk)
                if piece:
                    self.first = self.first or time.perf_counter()
                    await self._send(self._sendable(model, piece))
            whole = self._providers.litellm.stream_chunk_builder(self._chunks, messages=self._messages)
        except ProviderFailed as failed:
            raise self._broken(failed) from None
        except self._providers.errors as error:
            raise self._broken(self._providers.failure(model, error)) from None
        finally:
            await close_stream(stream)
        # LiteLLM ends a stream that broke off with "stop", and counts itself what nobody reported.
        finish = getattr(stream, "received_finish_reason", None)
        if whole is None or not finish or finish in BROKE_OFF:
            raise self._broken(unusable(model, "StreamCut", retryable=True))
        whole.choices[0].provider_specific_fields = {"native_finish_reason": finish}
        reports = [getattr(chunk, "usage", None) for chunk in getattr(stream, "chunks", ())]
        whole.usage = next((usage for usage in reversed(reports) if usage), None)
        return whole

    def _sendable(self, model: str, piece: dict[str, Any]) -> dict[str, Any]:
        """Return a piece, checked before it is sent, because other readers may share the stream.

        Raises:
            ProviderFailed: it breaks its contract, or is too large for a message.
        """
        try:
            size = len(codec.encode("llm_chunk", {"request_id": self._request["request_id"], "index": 0, **piece}))
        except CodecError:
            raise unusable(model, "MalformedAnswer", retryable=True) from None
        if size + BESIDE > self._parts.max_payload():
            raise unusable(model, "AnswerTooLarge", retryable=False)
        return piece

    def _broken(self, failed: ProviderFailed) -> ProviderFailed:
        """Return the failure of a stream; it is not retryable once something was sent."""
        failed.worked = failed.worked or bool(self._chunks)
        failed.final, failed.retryable = failed.final or self.sent > 0, failed.retryable and not self.sent
        return failed

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
