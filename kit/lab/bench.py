"""Measuring on a noisy machine: interleaved rounds, checked answers, raw samples kept.

What a neighbour on the machine does to one contender it does to the other, if both run in the same breath. So the
contenders take turns, in an order shuffled anew each round; a round gives one ratio; the result is the median of
the rounds' ratios with a bootstrap interval. Percentiles come from the raw samples, and these go to a file, from
which every table and figure can be made again without measuring.

An interval knows the noise within its run: another run's median lies outside it more often than in 5 of 100, for what
is another then, where objects lie in memory and which neighbours there are, is the same for all rounds of one run. How
far runs differ is what ``kit.lab.baseline`` keeps.
"""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kit.errors import ConfigurationError, ReportError
from kit.lab.environment import conditions, environment
from kit.lab.project import reports_folder
from kit.lab.quantities import quantity
from kit.lab.targets import SPECIFICATION, Ratio, Target, Verdict, Verdicts

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SPECIFICATION", "Comparison", "Ratio", "Target", "Verdict", "Verdicts", "compare", "compare_async", "environment",
    "growth", "load", "median_interval",
]  # fmt: skip

GarbageCollection = Literal["between", "rounds", "on"]
ENOUGH = {50: 1, 95: 40, 99: 100}
"""Samples that a percentile takes: of fewer, it hangs on the largest one or two."""

Clock = Literal["wall", "cpu"]
Check = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What contenders took, in the same rounds.

    Attributes:
        samples: nanoseconds, float64 (rounds, samples), by contender; one sample is the mean over ``inner`` calls.
        operations: operations in one call, for a rate.
        baseline: the contender that the ratios are against.
    """

    name: str
    samples: dict[str, NDArray[np.float64]]
    baseline: str
    inner: int = 1
    operations: int = 1
    conditions: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def seconds(self, contender: str) -> NDArray[np.float64]:
        """Return a contender's raw samples, float64 (rounds × samples,), in seconds."""
        return np.ravel(self._samples(contender)) / 1e9

    def percentile(self, contender: str, percent: float = 50.0) -> float:
        """Return a percentile of a contender's raw samples, in seconds per call."""
        return float(np.percentile(self.seconds(contender), percent))

    def interval(self, contender: str) -> Ratio:
        """Return the median of the rounds' medians, in seconds per call, with its 95 % bootstrap interval."""
        return median_interval(np.median(self._samples(contender), axis=1) / 1e9)

    def rate(self, contender: str) -> float:
        """Return operations per second: from the median of the rounds' means, since a rate is about all of the time."""
        means = self._samples(contender).mean(axis=1) / 1e9
        return self.operations / float(np.median(means))

    def ratio(self, contender: str, to: str | None = None, percent: float = 50.0) -> Ratio:
        """Return the median of the rounds' ratios of time, with its 95 % bootstrap interval."""
        mine = np.percentile(self._samples(contender), percent, axis=1)
        theirs = np.percentile(self._samples(to or self.baseline), percent, axis=1)
        return median_interval(mine / theirs)

    def difference(self, contender: str, to: str | None = None, percent: float = 50.0) -> Ratio:
        """Return the median of the rounds' differences, in seconds per call, with its 95 % bootstrap interval."""
        mine = np.percentile(self._samples(contender), percent, axis=1)
        theirs = np.percentile(self._samples(to or self.baseline), percent, axis=1)
        return median_interval((mine - theirs) / 1e9)

    def table(self) -> pd.DataFrame:
        """Return percentiles with their units and ratios with their intervals, a row a contender.

        Percentiles are of samples. Where a sample is the mean of several calls, as the column ``samples`` says, they
        lie closer together than those of single calls. A percentile of fewer than ``ENOUGH`` samples is not shown.
        """
        import pandas as pd

        rows = {name: self._row(name) for name in self.samples}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(self.name.replace("_", " "))

    def _row(self, contender: str) -> dict[str, str]:
        ratio, number = self.ratio(contender), self._samples(contender).size
        known, row = self._percents(contender), {}
        for percent in (50, 95, 99):
            row[f"p{percent}"] = quantity(self.percentile(contender, percent) if percent in known else None, "s")
        if self.operations > 1:
            row["rate"] = quantity(self.rate(contender), "/s")
        row[f"ratio to {self.baseline}"] = str(ratio) if contender != self.baseline else "1"
        row["samples"] = f"{number} of {self.inner} calls" if self.inner > 1 else str(number)
        return row

    def save(self, folder: Path | None = None) -> Path:
        """Write the raw samples, the conditions and the environment as JSON, and return the file."""
        folder = folder or reports_folder() / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        samples = {name: values.round(1).tolist() for name, values in self.samples.items()}
        body = {**vars(self), "unit": "ns", "samples": samples}
        path.write_text(json.dumps(body))
        return path

    def summary(self) -> dict[str, Any]:
        """Return percentiles in seconds and ratios, as plain JSON for a record."""
        return {
            contender: {
                **{f"p{percent}_s": self.percentile(contender, percent) for percent in self._percents(contender)},
                "rate_per_s": self.rate(contender),
                "ratio": self.ratio(contender).plain(),
            }
            for contender in self.samples
        }

    def _percents(self, contender: str) -> tuple[int, ...]:
        """Which percentiles there are samples enough for."""
        return tuple(percent for percent, least in ENOUGH.items() if self._samples(contender).size >= least)

    def _samples(self, contender: str) -> NDArray[np.float64]:
        if contender not in self.samples:
            raise ConfigurationError(f"{self.name} has no contender {contender!r}, only {', '.join(self.samples)}")
        return self.samples[contender]


def load(path: Path | str) -> Comparison:
    """Read what ``Comparison.save`` wrote.

    Raises:
        ReportError: the file holds something else.
    """
    body = json.loads(Path(path).read_text())
    if not isinstance(body, dict) or body.pop("unit", None) != "ns":
        raise ReportError(f"{path} holds no samples of a comparison")
    samples = {name: np.asarray(values, dtype=np.float64) for name, values in body.pop("samples").items()}
    return Comparison(samples=samples, **body)


def growth(
    results: Iterable[Comparison], scale: float = 1.0
) -> tuple[dict[str, list[float]], dict[str, tuple[list[float], list[float]]]]:
    """Return curves over comparisons of the same contenders, as ``charts.curves`` takes them: medians and their bands.

    Args:
        scale: of the unit that is shown, e.g. 1e6 for µs.
    """
    steps = list(results)
    found = {name: [step.interval(name) for step in steps] for name in steps[0].samples}
    series = {name: [scale * each.value for each in line] for name, line in found.items()}
    bands = {name: ([scale * e.low for e in line], [scale * e.high for e in line]) for name, line in found.items()}
    return series, bands


def median_interval(values: NDArray[np.float64], *, seed: int = 0, resamples: int = 2000) -> Ratio:
    """Return the median of some rounds' values with its 95 % percentile-bootstrap interval."""
    drawn = np.random.default_rng(seed).choice(values, size=(resamples, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return Ratio(value=float(np.median(values)), low=float(low), high=float(high))


def compare(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    name: str,
    check: Check | Mapping[str, Check],
    rounds: int = 30,
    samples: int = 50,
    inner: int = 1,
    operations: int = 1,
    warmup: int = 2,
    baseline: str | None = None,
    garbage: GarbageCollection = "between",
    seed: int = 0,
) -> Comparison:
    """Measure functions against each other in interleaved rounds.

    Args:
        contenders: functions without arguments, by name.
        check: takes an answer, and must not return False; one for all, or one a contender. It sees the answer of
            every sample, outside the timed stretch.
        samples: samples that a contender takes in one round.
        inner: calls per sample; more than one where a call takes less than the clock can tell (5 µs).
        warmup: rounds that are run and thrown away.
        baseline: what the others are compared with; the first by default.
        garbage: ``between``: collected before each contender's turn and switched off during it; ``rounds``: collected
            before each round, and switched off during it; ``on``: left alone.

    Raises:
        ReportError: an answer that its check refuses.
        ConfigurationError: no contender, or a baseline that is none.
    """
    plan = _Plan(contenders, name=name, check=check, baseline=baseline, seed=seed, shape=(rounds, samples))
    with _frozen(garbage):
        for turn, order in plan.turns(warmup, rounds):
            with _collected(garbage == "rounds"):
                for contender in order:
                    with _collected(garbage == "between"):
                        plan.keep(turn, contender, _time(plan, contender, samples, inner))
    return plan.result(inner=inner, operations=operations, garbage=garbage, warmup=warmup)


async def compare_async(
    contenders: Mapping[str, Callable[[], Awaitable[Any]]],
    *,
    name: str,
    check: Check | Mapping[str, Check],
    rounds: int = 20,
    samples: int = 50,
    inner: int = 1,
    operations: int = 1,
    warmup: int = 2,
    baseline: str | None = None,
    garbage: GarbageCollection = "between",
    clock: Clock = "wall",
    before: Callable[[], Awaitable[None]] | None = None,
    seed: int = 0,
) -> Comparison:
    """Measure coroutine functions against each other in interleaved rounds, as ``compare`` does functions.

    A contender that keeps many operations in flight gathers them itself, and says how many by ``operations``.

    Args:
        inner: calls per sample, one after the other; the check sees the last one's answer.
        clock: ``cpu`` takes the time for which this process ran, all its threads, instead of the time that passed:
            it leaves out what waits, and most of what the neighbours do.
        before: is awaited before each sample, outside the timed stretch.

    Raises:
        ReportError: an answer that its check refuses.
        ConfigurationError: no contender, or a baseline that is none.
    """
    plan = _Plan(contenders, name=name, check=check, baseline=baseline, seed=seed, shape=(rounds, samples))
    with _frozen(garbage):
        for turn, order in plan.turns(warmup, rounds):
            with _collected(garbage == "rounds"):
                for contender in order:
                    with _collected(garbage == "between"):
                        plan.keep(turn, contender, await _time_async(plan, contender, samples, inner, clock, before))
    return plan.result(inner=inner, operations=operations, garbage=garbage, warmup=warmup, clock=clock)


class _Plan:
    """Whose turn it is, and what each turn took."""

    def __init__(
        self,
        contenders: Mapping[str, Callable[[], Any]],
        *,
        name: str,
        check: Check | Mapping[str, Check],
        baseline: str | None,
        seed: int,
        shape: tuple[int, int],
    ) -> None:
        if not contenders:
            raise ConfigurationError(f"{name}: nothing to compare")
        self.name, self.contenders, self.shape = name, dict(contenders), shape
        self.baseline = baseline if baseline is not None else next(iter(contenders))
        if self.baseline not in contenders:
            raise ConfigurationError(f"{name}: baseline {self.baseline!r} is not among {', '.join(contenders)}")
        self._checks = check if isinstance(check, Mapping) else dict.fromkeys(contenders, check)
        if missing := set(contenders) - set(self._checks):
            raise ConfigurationError(f"{name}: no check for {', '.join(sorted(missing))}")
        self._order = random.Random(seed)
        self._taken = {contender: np.zeros(shape, dtype=np.float64) for contender in contenders}

    def turns(self, warmup: int, rounds: int) -> Iterator[tuple[int, list[str]]]:
        """Yield each round's number and the order of its contenders; the rounds of the warm-up are negative."""
        for turn in range(-warmup, rounds):
            names = list(self.contenders)
            self._order.shuffle(names)
            yield turn, names

    def verify(self, contender: str, answer: Any) -> None:
        if self._checks[contender](answer) is False:
            raise ReportError(f"{self.name}: {contender} gave a wrong answer: {answer!r:.200}")

    def keep(self, turn: int, contender: str, taken: list[float]) -> None:
        if turn >= 0:
            self._taken[contender][turn] = taken

    def result(
        self, *, inner: int, operations: int, garbage: GarbageCollection, warmup: int, clock: Clock = "wall"
    ) -> Comparison:
        rounds, samples = self.shape
        stated = {**conditions(), "gc": garbage, "rounds": rounds, "samples": samples, "warmup_rounds": warmup}
        stated["clock"] = clock
        return Comparison(
            name=self.name,
            samples=self._taken,
            baseline=self.baseline,
            inner=inner,
            operations=operations,
            conditions=stated,
            environment=environment(),
        )


def _time(plan: _Plan, contender: str, samples: int, inner: int) -> list[float]:
    function, clock, again = plan.contenders[contender], time.perf_counter_ns, range(inner - 1)
    taken: list[float] = []
    for _ in range(samples):
        start = clock()
        for _ in again:
            function()
        answer = function()
        taken.append((clock() - start) / inner)
        plan.verify(contender, answer)
    return taken


async def _time_async(
    plan: _Plan, contender: str, samples: int, inner: int, kind: Clock, before: Callable[[], Awaitable[None]] | None
) -> list[float]:
    function, again = plan.contenders[contender], range(inner - 1)
    clock = time.process_time_ns if kind == "cpu" else time.perf_counter_ns
    taken: list[float] = []
    for _ in range(samples):
        if before is not None:
            await before()
        start = clock()
        for _ in again:
            await function()
        answer = await function()
        taken.append((clock() - start) / inner)
        plan.verify(contender, answer)
    return taken


@contextmanager
def _frozen(policy: GarbageCollection) -> Iterator[None]:
    """Keep what is there before the measurement out of every collection during it: a kernel full of libraries makes
    one collection cost more than a round."""
    if policy == "on":
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _collected(wanted: bool) -> Iterator[None]:
    """Collect garbage before the block, and keep the collector out of it."""
    if not wanted or not gc.isenabled():
        yield
        return
    gc.collect()
    gc.freeze()  # what is kept from round to round, as a recorder's spans, is looked through once
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
