"""A stand-in for the gateway, for tests of what asks it: embeddings by hashed words, answers by the first passage."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from kit import codec
from kit.catalogue import GATEWAY_EMBEDDINGS, GATEWAY_REQUESTS, RAG_EMBEDDINGS
from kit.components.rag.instructions import REFUSAL
from kit.components.rag.text import sentences, stems
from kit.errors import ConfigurationError

DIMENSION = 64


def embed(texts: list[str]) -> np.ndarray[Any, Any]:
    """Return unit vectors in which texts with the same words lie close together, float32 (n, 64)."""
    vectors = np.zeros((len(texts), DIMENSION), np.float32)
    for row, text in enumerate(texts):
        for word in stems(text):
            digest = hashlib.sha256(word.encode()).digest()
            vectors[row, digest[0] % DIMENSION] += 1 if digest[1] % 2 else -1
    vectors[np.abs(vectors).sum(axis=1) == 0, 0] = 1.0
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def quote_first(messages: list[dict[str, Any]]) -> str:
    """Quote the first sentence of the first passage, where it shares a word with the question."""
    body, question = messages[-1]["content"].rsplit("\n\nQuestion: ", 1)
    passage = re.split(r"\n\n\[2\]", body)[0].split("\n", 1)[1]
    return f"{sentences(passage)[0]} [1]" if stems(question) & stems(passage) else REFUSAL


class StandIn:
    """Answers in the gateway's place.

    Attributes:
        requests: every request that came, in order.
        say: writes the answer to a conversation.
        fail: is raised instead of embedding, while it is not None; refuse: a text that is never embedded.
        claims: whether embeddings go by claim check.
    """

    def __init__(self, bus: Any) -> None:
        self.bus = bus
        self.requests: list[dict[str, Any]] = []
        self.say: Callable[[list[dict[str, Any]]], str] = quote_first
        self.fail: Exception | None = None
        self.refuse: str | None = None
        self.model = "stand-in"
        self.claims = False
        self.delay = 0.0
        self.workers: list[Any] = []

    async def __aenter__(self) -> StandIn:
        self.workers = [
            await self.bus.serve(GATEWAY_EMBEDDINGS, self.embeddings),
            await self.bus.work(RAG_EMBEDDINGS, self.embeddings, concurrency=2),
            await self.bus.work(GATEWAY_REQUESTS, self.answer, concurrency=4),
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.gather(*(worker.stop(5.0) for worker in self.workers))

    async def embeddings(self, message: Any) -> dict[str, Any]:
        data = message.data
        self.requests.append(data | {"operation": message.operation.name})
        await asyncio.sleep(self.delay)
        if self.fail is not None:
            raise self.fail
        if self.refuse in data["texts"]:
            raise ConfigurationError("a text is refused")
        vectors = embed(data["texts"])
        carried: dict[str, Any] = {"embeddings": vectors}
        if self.claims:
            carried = {"claim": await self.bus.put_object(f"v{len(self.requests)}", vectors.tobytes())}
        return {
            "request_id": data["request_id"], "model": data["model"], "dimension": DIMENSION, "count": len(vectors),
            "timestamp": codec.now(), "tokens": {"prompt": 7, "completion": 0, "total": 7}, "cost": 0.001,
            "currency": "USD", **carried,
        }  # fmt: skip

    async def answer(self, message: Any) -> dict[str, Any]:
        data = message.data
        self.requests.append(data | {"operation": message.operation.name})
        return {
            "request_id": data["request_id"], "response": self.say(data["messages"]), "model": self.model,
            "tokens": {"prompt": 20, "completion": 5, "total": 25}, "cost": 0.002, "currency": "USD",
            "timestamp": codec.now(),
        }  # fmt: skip
