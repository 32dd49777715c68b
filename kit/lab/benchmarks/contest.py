"""Contenders that do the same work, each with the check of its answer, and peers that may not be installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kit.lab.bench import Comparison, compare

if TYPE_CHECKING:
    import pandas as pd

KIT, BY_HAND = "kit.codec", "by hand"
"""The kit's own contender, and what one would write without it, by their names in tables."""

NOT_INSTALLED = "not installed"
_COLLECTED = {
    "between": "collected before each turn, off within it", "rounds": "collected before each round, off within it",
    "on": "on",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to do the work.

    Attributes:
        call: does it once.
        check: says whether an answer is right; it sees every sample's.
        contract: whether this way refuses data that break the contract.
    """

    call: Callable[[], Any]
    check: Callable[[Any], bool]
    contract: bool = True


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Contenders by name; the first is what the others are compared with.

    Attributes:
        peers: which of them are libraries that one would use instead of the kit.
        absent: peers that are not installed: their rows say so.
        inner: calls in one sample, where one call is too short for the clock.
    """

    name: str
    contenders: Mapping[str, Contender]
    peers: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    inner: int = 1

    def run(self, *, rounds: int, samples: int, baseline: str | None = None) -> Comparison:
        """Measure all contenders in interleaved rounds.

        Raises:
            ReportError: an answer is wrong.
        """
        return compare(
            {name: contender.call for name, contender in self.contenders.items()},
            check={name: contender.check for name, contender in self.contenders.items()},
            name=self.name,
            rounds=rounds,
            samples=samples,
            inner=self.inner,
            baseline=baseline,
        )

    def table(self, result: Comparison) -> pd.DataFrame:
        """Return the measurement, whether each contender checks the contract, and a row for each absent peer."""
        table = result.table()
        table["contract"] = ["checked" if self.contenders[name].contract else "–" for name in table.index]
        return with_absent(table, self.absent)

    def fastest_peer(self, result: Comparison) -> str:
        """Return the fastest of the peers that check a contract."""
        return min((name for name in self.peers if self.contenders[name].contract), key=result.percentile)


def with_absent(table: pd.DataFrame, absent: Sequence[str]) -> pd.DataFrame:
    """Return a table with a row for each peer that is not installed, which says so."""
    for name in absent:
        table.loc[name] = [NOT_INSTALLED, *["–"] * (table.shape[1] - 1)]
    return table


def stated(result: Comparison) -> dict[str, str]:
    """Return what disturbs a timing from inside, and what was done about it, in words."""
    said = result.conditions
    return {
        "garbage collector": _COLLECTED[said["gc"]] if said["gc_enabled"] else "off",
        "logging": f"level {said['logging_level']}",
        "profiler, debugger": "on" if said["tracing"] else "none",
        "assertions": "off" if said["optimised"] else "on",
    }


def installed(name: str) -> Any:
    """Return a peer's module, or None: peers are an optional extra, ``pip install kit[peers]``."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None
