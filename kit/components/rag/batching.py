"""Many small pieces of work done together: what comes in while one batch is under way makes the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from kit.nats.faults import is_retryable

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Collects items of concurrent callers and handles them in batches, one batch at a time.

    A batch begins as soon as the one before is done, so a lone item waits for nobody, and under load batches grow by
    themselves. One that fails for good is halved until only the items that it fails for are left. One that may succeed
    later fails for all in it, and as many items as it had then go alone: their jobs are tried again, and one of them
    may be what it fails for.

    Args:
        handle: gets the items, returns a result for each, in their order.
        most: weight of a batch at most; a heavier item makes a batch of its own.
        weigh: weight of an item; 1 each when None.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        most: int,
        weigh: Callable[[Item], int] | None = None,
    ) -> None:
        self._handle, self._most = handle, most
        self._weigh = weigh or (lambda _: 1)
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None
        self._alone = 0  # items to handle by themselves

    async def add(self, item: Item) -> Result:
        """Hand in an item and wait for its result."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            # Created here, so that the batch's spans are children of the first item's.
            self._running = asyncio.get_running_loop().create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)  # whoever is ready in this turn of the loop comes along
            while self._waiting:
                await self._run_batch(self._take())
        finally:
            self._running = None

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        weight = count = 0
        for item, _ in self._waiting:
            weight += self._weigh(item)
            if count and (weight > self._most or self._alone):
                break
            count += 1
        self._alone = max(self._alone - 1, 0)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return [(item, future) for item, future in batch if not future.done()]  # its caller may have been cancelled

    async def _run_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        try:
            results = await self._handle([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - handed to everyone who waits, raised there
            if len(batch) > 1 and not is_retryable(error):
                half = len(batch) // 2
                await self._run_batch(batch[:half])
                await self._run_batch(batch[half:])
                return
            self._alone = len(batch) if len(batch) > 1 else self._alone
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
