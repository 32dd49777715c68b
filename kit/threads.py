"""Calls that block, each on a thread of its own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

_T = TypeVar("_T")


def start_thread(
    call: Callable[[], _T], done: Callable[[Any, BaseException | None], None], *, name: str
) -> threading.Thread:
    """Run a call on a new thread, in the context of here, and tell ``done``, there, its result or its error.

    A pool would be used up by calls that hang, and would keep the process alive.
    """

    def run() -> None:
        result, failed = None, None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            # These mean something else to who waits for a future.
            odd = isinstance(error, StopIteration | GeneratorExit | asyncio.CancelledError)
            failed = RuntimeError(type(error).__name__) if odd else error
        done(result, failed)

    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(run), name=name, daemon=True)
    thread.start()
    return thread


async def on_own_thread(
    call: Callable[[], _T], *, name: str, given_up: Callable[[threading.Thread], None] | None = None
) -> _T:
    """Return what a call returns that blocks, on a thread as of ``start_thread``.

    Args:
        given_up: gets the thread when nobody waits any more.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[_T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(result)
        else:
            ended.set_exception(error)

    def done(result: Any, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    thread = start_thread(call, done, name=name)
    try:
        return await ended
    except asyncio.CancelledError:
        if given_up is not None:
            given_up(thread)
        raise
