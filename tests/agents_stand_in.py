"""A stand-in for the gateway, for tests of agents: a model that says what a test wants, embeddings by hashed words."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import numpy as np

from kit import codec
from kit.catalogue import GATEWAY_EMBEDDINGS, GATEWAY_REQUESTS
from kit.errors import ComponentError

DIMENSION = 64
Said: TypeAlias = str | list[dict[str, Any]]
TOKENS = {"prompt": 3, "completion": 2, "total": 5}


class Broken(ComponentError):
    """What the stand-in fails with."""

    retryable = False


def call(name: str, arguments: str, call_id: str = "call_1") -> dict[str, Any]:
    """A tool call as a model makes it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def echo(request: dict[str, Any]) -> str | list[dict[str, Any]]:
    """Say what the last message says."""
    return f"You said: {request['messages'][-1]['content']}"


def embed(text: str) -> np.ndarray[Any, Any]:
    """A unit vector in which texts with the same words lie close together, float32 (64,)."""
    vector = np.full(DIMENSION, 1e-3, np.float32)
    for word in re.findall(r"\w{3,}", text.lower()):
        vector[hashlib.sha256(word.encode()).digest()[0] % DIMENSION] += 1
    return vector / np.linalg.norm(vector)


class StandIn:
    """Answers in the gateway's place.

    Attributes:
        say: writes the answer to a request: text, or tool calls; it may take its time.
        refuse: texts that it gives no embedding of.
        requests: every request that came; embedded: every text.
    """

    def __init__(self, bus: Any, say: Callable[[dict[str, Any]], Said | Awaitable[Said]] = echo) -> None:
        self.bus, self.say = bus, say
        self.requests: list[dict[str, Any]] = []
        self.embedded: list[str] = []
        self.refuse: set[str] = set()
        self.workers: list[Any] = []

    async def __aenter__(self) -> StandIn:
        self.workers = [
            await self.bus.work(GATEWAY_REQUESTS, self._answer, concurrency=16),
            await self.bus.serve(GATEWAY_EMBEDDINGS, self._embed),
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for worker in self.workers:
            await worker.stop()

    async def _answer(self, message: Any) -> dict[str, Any]:
        request = message.data
        self.requests.append(request)
        said = self.say(request)
        if inspect.isawaitable(said):
            said = await said
        answer: dict[str, Any] = {
            "request_id": request["request_id"], "response": None, "tokens": TOKENS, "cost": 0.001,
            "model": request["model"], "timestamp": codec.now(), "finish_reason": "stop",
        }  # fmt: skip
        if isinstance(said, str):
            for index, word in enumerate(re.findall(r"\S+\s*", said)):
                await message.emit({"request_id": request["request_id"], "index": index, "text": word})
            return answer | {"response": said}
        pieces = [{**one, "index": index} for index, one in enumerate(said)]
        await message.emit({"request_id": request["request_id"], "index": 0, "tool_calls": pieces})
        return answer | {"tool_calls": said, "finish_reason": "tool_calls"}

    async def _embed(self, message: Any) -> dict[str, Any]:
        texts = message.data["texts"]
        if self.refuse & set(texts):
            raise Broken("no embedding of that")
        self.embedded += texts
        return {
            "request_id": message.data["request_id"], "model": message.data["model"], "dimension": DIMENSION,
            "embeddings": np.stack([embed(text) for text in texts]), "timestamp": codec.now(),
        }  # fmt: skip
