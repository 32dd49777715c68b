"""Run a coroutine until it ends or somebody asks the process to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable


async def until_signalled(also: Callable[[], Awaitable[object]] | None = None) -> None:
    """Wait for SIGTERM or SIGINT, or for ``also`` to end; a second signal acts as it would without us.

    Raises:
        Exception: what ``also`` raised.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    waiting: set[asyncio.Future[object]] = {asyncio.ensure_future(asked.wait())}
    if also is not None:
        waiting.add(asyncio.ensure_future(also()))
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            future.result()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
