"""Embeddings of memories, asked of the gateway over the bus."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.catalogue import GATEWAY_EMBEDDINGS
from kit.components.agents.errors import MemoryRefused
from kit.errors import BusError, RemoteError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kit.nats.bus import Bus


async def embed(
    bus: Bus, texts: Sequence[str], *, model: str, input_type: str, agent_id: str, timeout: float = 10.0
) -> NDArray[np.float32]:
    """Return the embeddings of texts, float32 (n, dim), in their order.

    Raises:
        MemoryRefused: the gateway gave none.
    """
    data: dict[str, Any] = {
        "request_id": uuid.uuid4().hex, "texts": list(texts), "model": model, "tenant_id": bus.tenant_id,
        "timestamp": codec.now(), "input_type": input_type, "agent_id": agent_id, "component": "agents",
        "timeout": timeout,
    }  # fmt: skip
    try:
        answer = (await bus.request(GATEWAY_EMBEDDINGS, data, timeout=timeout)).data
    except RemoteError as error:
        raise MemoryRefused(f"no embedding: {error.error_type}", retryable=error.retryable) from error
    except BusError as error:
        raise MemoryRefused(f"no embedding: {type(error).__name__}", retryable=True) from error
    vectors = answer.get("embeddings")
    if vectors is None:
        raw = await bus.get_object(answer["claim"])
        vectors = np.frombuffer(raw, "<f4").reshape(-1, answer["dimension"])
    return np.asarray(vectors, np.float32)
