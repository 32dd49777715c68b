"""Waiting that ends: for an answer, for an event, for work that may never finish."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from nats.aio.msg import Msg

from kit.errors import DeadlineExceeded

_log = logging.getLogger("kit.nats")


def settle(answered: asyncio.Future[Msg], message: Msg) -> None:
    """Hand an answer to the one who waits for it; a second may come in the same read."""
    if not answered.done():
        answered.set_result(message)


def expire(answered: asyncio.Future[Msg], subject: str, seconds: float) -> None:
    """Fail a wait whose time is over: a timer costs a request less than a block with a timeout."""
    if not answered.done():
        answered.set_exception(DeadlineExceeded(subject, seconds=seconds))


@asynccontextmanager
async def deadline(seconds: float, what: str) -> AsyncIterator[None]:
    """Give everything inside the block ``seconds`` in total.

    Raises:
        DeadlineExceeded: it was not done by then.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise DeadlineExceeded(what, seconds=seconds) from None


async def within(seconds: float | None, *events: asyncio.Event) -> bool:
    """Wait for one of the events; tell whether it came in time."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return bool(done)


async def bounded(work: Awaitable[object], seconds: float) -> None:
    """Give the work some seconds, and leave it when they are over: the socket is dropped next."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        task.cancel()
    elif not task.cancelled() and (error := task.exception()) is not None:
        _log.info("closing: %r", error)
