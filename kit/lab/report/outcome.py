"""What became of one notebook."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kit.lab.targets import state_of

Comparison = Literal["same", "differs", "no reference", "other parameters", "not compared"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Where a notebook stopped, and why.

    Attributes:
        cell: index among all cells of the notebook, or None when it did not get that far.
        number: the execution count that its reader sees, ``[3]``.
    """

    error: str
    message: str
    cell: int | None = None
    number: int | None = None
    source: str = ""

    @property
    def where(self) -> str:
        """Return where it stopped, for a person: ``in cell [3]``."""
        if self.number is not None:
            return f"in cell [{self.number}]"
        return f"in cell {self.cell + 1}" if self.cell is not None else "before the first cell"


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A code cell whose output is not the committed one.

    Attributes:
        cell: index among the code cells, from 0, as nbval counts.
        detail: both outputs, as nbval shows them.
    """

    cell: int
    detail: str


@dataclass(kw_only=True)
class Outcome:
    """One notebook: how its run, its comparison and its numbers came out."""

    name: str
    source: Path
    executed: Path
    html: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    question: str = ""
    started: float = 0.0  # seconds after the report began
    seconds: float = 0.0
    cells: int = 0  # code cells that ran
    failure: Failure | None = None
    comparison: Comparison = "not compared"
    mismatches: list[Mismatch] = field(default_factory=list)
    updated: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """Return the targets of its records, met and missed."""
        return [verdict for record in self.records for verdict in record["verdicts"]]

    def missed(self, *, goals: bool = False) -> list[dict[str, Any]]:
        """Return the verdicts of the targets that are missed, or of the goals that are not reached."""
        return [row for row in self.verdicts if state_of(row) == "missed" and row["goal"] is goals]

    def undecided(self, *, goals: bool = False) -> list[dict[str, Any]]:
        """Return the verdicts on targets, or on goals, that the noise of the measurement leaves open."""
        return [row for row in self.verdicts if state_of(row) == "undecided" and row["goal"] is goals]

    @property
    def good(self) -> bool:
        """Return whether it ran to its end and shows what is committed; a missed target, unlike a goal, spoils it."""
        compared = self.updated or self.comparison not in ("differs", "no reference")
        return self.failure is None and compared and not self.missed()

    @property
    def verdict(self) -> str:
        """Return in a few words what became of it."""
        if self.failure is not None:
            return f"failed {self.failure.where}"
        if self.updated:
            return "reference updated"
        words = {
            "same": "matches its reference",
            "differs": f"{len(self.mismatches)} cell(s) differ from the reference",
            "no reference": "has no reference outputs",
            "other parameters": "run with other parameters, not compared",
            "not compared": "executed, not compared",
        }
        missed, short = len(self.missed()), len(self.missed(goals=True))
        undecided, unsure = len(self.undecided()), len(self.undecided(goals=True))
        parts = [words[self.comparison]]
        parts += [f"{missed} target(s) missed"] if missed else []
        parts += [f"{undecided} target(s) undecided"] if undecided else []
        parts += [f"{short} goal(s) not reached"] if short else []
        parts += [f"{unsure} goal(s) undecided"] if unsure else []
        return "; ".join(parts)
