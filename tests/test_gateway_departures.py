"""Who leaves is noticed, whatever is waited for; what a provider did until then is logged and paid."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from misbehaving_provider import MisbehavingProvider
from samples import sample
from test_gateway import until

from kit.catalogue import RAG_QUERIES
from kit.nats.bus import Bus
from kit.nats.message import Message

QUERY, RESULT = sample("rag_query"), sample("rag_result")


@pytest.fixture
async def provider() -> AsyncIterator[MisbehavingProvider]:
    async with MisbehavingProvider() as running:
        yield running


async def leave_after(seconds: float, stream: Any) -> None:
    """Read a stream for some seconds, and leave it."""
    try:
        async with asyncio.timeout(seconds):
            async for _ in stream:
                pass
    except TimeoutError:
        await stream.aclose()


# --- on the bus -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [0, 1])
async def test_a_handler_that_says_nothing_is_cancelled_soon_after_its_caller_left(bus: Bus, pieces: int) -> None:
    ended: list[float] = []

    async def stall(message: Message) -> dict[str, Any]:
        for number in range(pieces):
            await message.emit(sample("llm_chunk", index=number))
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(time.monotonic())
        return RESULT

    async with await bus.serve(RAG_QUERIES, stall) as worker:
        await leave_after(0.2, bus.stream(RAG_QUERIES, QUERY))
        left = time.monotonic()
        await until(lambda: ended and worker.in_flight == 0)
    assert ended[0] - left < 2.0


async def test_a_caller_who_stays_is_not_disturbed_while_its_handler_says_nothing(bus: Bus) -> None:
    async def slowly(message: Message) -> dict[str, Any]:
        await asyncio.sleep(2.2)
        await message.emit(sample("llm_chunk", index=0))
        return RESULT

    async with await bus.serve(RAG_QUERIES, slowly):
        got = [message.message_type async for message in bus.stream(RAG_QUERIES, QUERY)]
    assert got == ["llm_chunk", "rag_result"]
    assert not bus.connection._listeners, "somebody still asks after a caller"
