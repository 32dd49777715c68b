"""Embeddings over the bus: a request for few texts, jobs for many, and the texts of small documents together."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.catalogue import GATEWAY_EMBEDDINGS, RAG_EMBEDDINGS
from kit.components.rag.batching import Batcher
from kit.components.rag.errors import ModelFailed
from kit.errors import BusError, DeadlineExceeded, JobDead, NoResponders, RemoteError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kit.nats.bus import Bus

logger = logging.getLogger(__name__)

BATCH = 128  # texts in one message
BULK = 512  # texts of one document from which on they go as jobs
_AT_ONCE = 4  # bulk jobs of one document
_REQUEST_SECONDS = 30.0
_BULK_SECONDS = 300.0
_GATEWAY_SECONDS = 60.0  # for a gateway to come that is started later than this worker; in each attempt of a job
_PAUSE = (0.2, 2.0)  # s; first and longest, before it is asked for again
_PASSING = (NoResponders, DeadlineExceeded)


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """Texts and their embeddings.

    Attributes:
        vectors: float32 (n, dim), in the texts' order.
        tokens: read by the model; cost: in ``currency``, None when no price is known.
    """

    vectors: NDArray[np.float32]
    tokens: int = 0
    cost: float | None = None
    currency: str = "USD"


class Embedder:
    """Asks the gateway for embeddings.

    Args:
        bus: of the tenant.
        model: of the embeddings.
    """

    def __init__(self, bus: Bus, model: str) -> None:
        self._bus, self.model = bus, model
        self._batcher: Batcher[Sequence[str], Embedded] = Batcher(self._together, most=BATCH, weigh=len)

    async def query(self, text: str, *, model: str | None = None, timeout: float = 10.0) -> Embedded:
        """Return the embedding of a question, float32 (1, dim).

        Raises:
            ModelFailed: the gateway gave none.
        """
        return await self._request([text], model or self.model, "query", timeout)

    async def documents(
        self, texts: Sequence[str], progress: Callable[[float], Awaitable[None]] | None = None
    ) -> Embedded:
        """Return the embeddings of a document's texts; those of other documents that wait go along.

        Args:
            texts: many of them go as jobs of their own.
            progress: is awaited with the part that is done, after each of those jobs.

        Raises:
            ModelFailed: the gateway gave none.
        """
        if len(texts) < BULK:
            return await self._batcher.add(texts)
        gate, done = asyncio.Semaphore(_AT_ONCE), 0

        async def slice_of(begin: int) -> Embedded:
            nonlocal done
            async with gate:
                embedded = await self._bulk(list(texts[begin : begin + BATCH]))
            done += len(embedded.vectors)
            if progress is not None:
                await progress(done / len(texts))
            return embedded

        return _joined(await asyncio.gather(*(slice_of(begin) for begin in range(0, len(texts), BATCH))))

    async def _together(self, documents: Sequence[Sequence[str]]) -> list[Embedded]:
        texts = [text for document in documents for text in document]
        slices = [await self._waiting(texts[begin : begin + BATCH]) for begin in range(0, len(texts), BATCH)]
        whole = _joined(slices)
        parts, begin = [], 0
        for document in documents:
            share = len(document) / max(len(texts), 1)
            parts.append(
                Embedded(
                    vectors=whole.vectors[begin : begin + len(document)],
                    tokens=round(whole.tokens * share),
                    cost=None if whole.cost is None else whole.cost * share,
                    currency=whole.currency,
                )
            )
            begin += len(document)
        return parts

    async def _waiting(self, texts: list[str]) -> Embedded:
        """Ask for a batch of documents' embeddings; where there is no gateway yet, wait for one."""
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + _GATEWAY_SECONDS, _PAUSE[0]
        while True:
            try:
                return await self._request(texts, self.model, "document", _REQUEST_SECONDS)
            except ModelFailed as error:
                if error.error_type != NoResponders.__name__ or loop.time() + pause > end:
                    raise
                if pause == _PAUSE[0]:
                    logger.warning("documents wait for a gateway that embeds them: %s", error.detail)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE[1])

    async def _request(self, texts: list[str], model: str, input_type: str, timeout: float) -> Embedded:
        data = self._data(texts, model, input_type) | {"timeout": timeout}
        try:
            answer = await self._bus.request(GATEWAY_EMBEDDINGS, data, timeout=timeout)
        except RemoteError as error:
            raise _failed(model, error.error_type, error.detail, error.retryable) from error
        except BusError as error:
            raise _failed(model, type(error).__name__, str(error), isinstance(error, _PASSING)) from error
        return await self._read(answer.data, model, len(texts))

    async def _bulk(self, texts: list[str]) -> Embedded:
        try:
            answer = await self._bus.run(
                RAG_EMBEDDINGS, self._data(texts, self.model, "document"), timeout=_BULK_SECONDS
            )
        except JobDead as error:
            raise _failed(self.model, error.error_type, error.detail, False) from error
        except BusError as error:
            raise _failed(self.model, type(error).__name__, str(error), isinstance(error, _PASSING)) from error
        return await self._read(answer.data, self.model, len(texts))

    def _data(self, texts: list[str], model: str, input_type: str) -> dict[str, Any]:
        return {
            "request_id": uuid.uuid4().hex, "texts": texts, "model": model, "tenant_id": self._bus.tenant_id,
            "timestamp": codec.now(), "input_type": input_type, "component": "rag",
        }  # fmt: skip

    async def _read(self, answer: dict[str, Any], model: str, count: int) -> Embedded:
        if answer.get("status") == "error" or "error" in answer:
            error = answer.get("error", {})
            raise _failed(model, error.get("type", "error"), error.get("message", ""), error.get("retryable", True))
        vectors = answer.get("embeddings")
        if vectors is None:
            raw = await self._bus.get_object(answer["claim"])
            vectors = np.frombuffer(raw, "<f4").astype(np.float32, copy=False).reshape(-1, answer["dimension"])
        if vectors.shape != (count, answer["dimension"]):
            raise _failed(model, "MissingEmbeddings", f"{len(vectors)} embeddings came for {count} texts", True)
        return Embedded(
            vectors=vectors, tokens=answer.get("tokens", {}).get("total", 0), cost=answer.get("cost"),
            currency=answer.get("currency", "USD"),
        )  # fmt: skip


def _failed(model: str, error_type: str, detail: str, retryable: bool) -> ModelFailed:
    return ModelFailed("embed", model, error_type=error_type, detail=detail, retryable=retryable)


def _joined(parts: Sequence[Embedded]) -> Embedded:
    costs = [part.cost for part in parts if part.cost is not None]
    return Embedded(
        vectors=np.concatenate([part.vectors for part in parts]),
        tokens=sum(part.tokens for part in parts),
        cost=sum(costs) if costs else None,
        currency=parts[0].currency,
    )
