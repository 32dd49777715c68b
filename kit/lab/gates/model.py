"""A gate, its checks and their verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kit.lab.gates import evidence
from kit.lab.gates.changes import Change, changed_since

State = Literal["passed", "failed", "not measured", "undecided", "for people"]

SIGNS: dict[State, str] = {"passed": "✓", "failed": "✗", "not measured": "–", "undecided": "?", "for people": "☐"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """The verdict of one check.

    Attributes:
        state: ``not measured`` if there is no evidence, or only another commit's.
        findings: what is wrong, or what people should review, one line each.
        remedy: what to do about the findings.
    """

    name: str
    state: State
    summary: str
    findings: tuple[str, ...] = ()
    remedy: str = ""

    def lines(self, most: int = 20) -> Iterable[str]:
        """Yield at most ``most`` findings, and the remedy."""
        yield from self.findings[:most]
        if len(self.findings) > most:
            yield f"… and {len(self.findings) - most} more"
        if self.remedy and self.state in ("failed", "not measured"):
            yield f"→ {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One of the specification's four gates; its state is that of its worst check."""

    name: str
    title: str
    checks: tuple[Check, ...]

    @property
    def state(self) -> State:
        """Return the worst state of the checks; checks for people do not count."""
        found = {check.state for check in self.checks}
        worst: tuple[State, ...] = ("failed", "not measured", "undecided", "passed", "for people")
        return next(state for state in worst if state in found)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "gate": self.name,
            "title": self.title,
            "state": self.state,
            "checks": [vars(check) | {"findings": list(check.findings)} for check in self.checks],
        }


@dataclass(frozen=True)
class Context:
    """What checks read.

    Attributes:
        reports: folder of the last report.
        base: a commit, branch or tag to compare with; empty for the merge base with ``main``.
    """

    reports: Path
    base: str = ""
    commit: str = field(default_factory=lambda: evidence.commit())

    @cached_property
    def change(self) -> Change:
        """What the commits since the base and the working tree change."""
        return changed_since(self.base)

    @cached_property
    def bodies(self) -> list[dict[str, Any]]:
        """The last report's result for each notebook."""
        return evidence.read_reports(self.reports)

    @cached_property
    def tests(self) -> dict[str, Any] | None:
        """The results of the last complete run of the tests."""
        return evidence.read_tests(self.reports)

    def explain_stale(self, recorded: str) -> str:
        """Return why evidence does not apply to the present tree; empty if it does."""
        return evidence.explain_stale(recorded, self.commit)


Judge = Callable[[Context], Check]


def judge(name: str, summary: str, findings: Iterable[str], remedy: str) -> Check:
    """Return a check that fails if there are findings."""
    found = tuple(findings)
    if not found:
        return Check(name=name, state="passed", summary=summary)
    noun = "finding" if len(found) == 1 else "findings"
    return Check(name=name, state="failed", summary=f"{len(found)} {noun}", findings=found, remedy=remedy)


def unseen(name: str, summary: str, remedy: str, findings: Iterable[str] = ()) -> Check:
    """Return a check without evidence."""
    return Check(name=name, state="not measured", summary=summary, findings=tuple(findings), remedy=remedy)
