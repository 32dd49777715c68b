"""Several scores become one ranking, whatever their scales; batches grow under load and lose nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from kit.components.rag import Ranking
from kit.components.rag.batching import Batcher
from kit.components.rag.ranking import centred_cosine, cosine, fuse, reciprocal_ranks, standardised
from kit.errors import ConfigurationError


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_standard_scores_keep_how_much_better_something_is() -> None:
    scores = {"vector": floats(0.9, 0.5, 0.1), "text": floats(10, 11, 0)}
    assert np.argmax(fuse(scores, Ranking(lead=0, grams=0))) == 0
    assert np.allclose(standardised(floats(1, 1, 1)), 0)
    assert abs(float(standardised(floats(1, 2, 3)).mean())) < 1e-6


def test_a_weight_of_nothing_leaves_a_signal_out() -> None:
    scores = {"vector": floats(1, 0), "text": floats(0, 1)}
    assert np.argmax(fuse(scores, Ranking(vector=0))) == 1
    assert np.argmax(fuse(scores, Ranking(text=0))) == 0


def test_reciprocal_ranks_count_only_what_was_found() -> None:
    assert np.allclose(reciprocal_ranks(floats(5, 0, 9)), [1 / 62, 0, 1 / 61])
    assert np.argmax(fuse({"text": floats(1, 2)}, Ranking(fusion="reciprocal"))) == 1


def test_cosines_do_not_stumble_over_nothing() -> None:
    vectors = np.array([[1, 0], [0, 0], [0, 2]], np.float32)
    assert np.allclose(cosine(vectors, floats(3, 0)), [1, 0, 0])
    assert np.argmax(centred_cosine(np.array([[9, 1], [9, 0]], np.float32), floats(9, 2))) == 0


@pytest.mark.parametrize("wrong", [{"vector": -1}, {"vector": 0, "text": 0, "lead": 0, "grams": 0}, {"candidates": 0}])
def test_weights_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Ranking(**wrong)  # type: ignore[arg-type]


async def test_what_comes_during_a_batch_makes_the_next() -> None:
    batches: list[list[int]] = []
    gate = asyncio.Event()

    async def handle(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        await gate.wait()
        return [item * 2 for item in items]

    batcher = Batcher(handle, most=3)
    first = asyncio.create_task(batcher.add(1))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(batcher.add(n)) for n in range(2, 7)]
    await asyncio.sleep(0.01)
    gate.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10, 12]
    assert batches == [[1], [2, 3, 4], [5, 6]]


async def test_a_batch_that_fails_fails_for_all_in_it_and_for_nobody_else() -> None:
    async def handle(items: Sequence[str]) -> list[str]:
        if "bad" in items:
            raise ValueError("no")
        return list(items)

    batcher = Batcher(handle, most=10, weigh=len)
    results = await asyncio.gather(batcher.add("bad"), batcher.add("good"), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert await batcher.add("much too long for one batch") == "much too long for one batch"


async def test_a_caller_that_leaves_is_left_out() -> None:
    seen: list[int] = []

    async def handle(items: Sequence[int]) -> list[int]:
        seen.extend(items)
        await asyncio.sleep(0.02)
        return list(items)

    batcher = Batcher(handle, most=10)
    first = asyncio.create_task(batcher.add(1))
    await asyncio.sleep(0.005)
    leaving = asyncio.create_task(batcher.add(2))
    staying = asyncio.create_task(batcher.add(3))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await first == 1
    assert await staying == 3
    assert seen == [1, 3]


class Refused(ValueError):
    retryable = False


@pytest.mark.parametrize("bad", [{0}, {6}, {3, 4}, {0, 5, 9}, set(range(10))])
async def test_an_item_that_fails_for_good_takes_none_along(bad: set[int]) -> None:
    async def handle(items: Sequence[int]) -> list[int]:
        if found := bad & set(items):
            raise Refused(found)
        return [item * 10 for item in items]

    batcher = Batcher(handle, most=10)
    results = await asyncio.gather(*(batcher.add(item) for item in range(10)), return_exceptions=True)
    assert [isinstance(result, Refused) for result in results] == [item in bad for item in range(10)]
    assert [result for result in results if not isinstance(result, Refused)] == [
        item * 10 for item in range(10) if item not in bad
    ]


async def test_an_item_that_fails_as_if_it_would_pass_takes_none_along_twice() -> None:
    batches: list[list[int]] = []

    async def handle(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        if 3 in items:
            raise OSError("try later")
        return list(items)

    batcher = Batcher(handle, most=10)
    first = await asyncio.gather(*(batcher.add(item) for item in range(6)), return_exceptions=True)
    assert all(isinstance(result, OSError) for result in first)
    again = await asyncio.gather(*(batcher.add(item) for item in range(6)), return_exceptions=True)
    assert [isinstance(result, OSError) for result in again] == [item == 3 for item in range(6)]
    batches.clear()
    await asyncio.gather(*(batcher.add(item) for item in (7, 8)))
    assert batches == [[7, 8]]
