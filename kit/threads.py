"""Blocking calls, each on its own thread."""

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
    """Run a call on a new thread, in the current context, and pass its result or error to ``done`` on that thread.

    Hanging calls would exhaust a pool and keep the process alive.
    """

    def run() -> None:
        result, failed = None, None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            # These would mean something else to code that awaits a future.
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
    """Run a blocking call on a thread, as ``start_thread`` does, and return its result.

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
