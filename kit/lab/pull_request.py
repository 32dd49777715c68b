"""The description of a pull request after the specification's template, with boxes ticked from measurements.

A box whose check failed or was not measured stays open and says why. Boxes that only people can tick stay open.

Source: the integration story, "PR Workflow", steps 4 and 7, and its checklist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from kit.lab.gates import Check, Gate, run_gates
from kit.lab.gates.changes import Change, changed_since, git
from kit.lab.gates.evidence import read_reports
from kit.lab.gates.review import GUIDES
from kit.lab.quantities import quantity
from kit.lab.targets import bound_text, state_of

CORES = {"kit/nats/": "NATS", "kit/otel/": "OTEL", "kit/codec/": "CODEC", "schemas/": "CODEC"}
"""The part of the core that a path belongs to."""

COMPONENTS = {
    "kit/components/agents/": "Agent Framework", "kit/components/gateway/": "LiteLLM Gateway",
    "kit/components/rag/": "RAG", "kit/components/llmops/": "LLMOps", "kit/components/mlops/": "MLOps",
    "kit/components/prompts/": "Prompt Management", "kit/components/document_qa": "Document Q&A",
}  # fmt: skip
"""The component that a path belongs to, by the specification's names."""

_GUIDES = tuple(f"notebooks/{guide}.ipynb" for guide in GUIDES.values())
_BENCHMARKS = ("tests/benchmarks/", "notebooks/3")
_ACRONYMS = {"nats", "otel", "codec", "rag", "qa"}
_BRANCH = re.compile(r"(?:feature/)?(?P<topic>[a-z0-9-]{1,80}?)(?:-week-(?P<week>\d{1,3}))?")


@dataclass(frozen=True, kw_only=True)
class PullRequest:
    """A pull request: what it changes, and what the gates say about it."""

    change: Change
    gates: Sequence[Gate]
    reports: Path
    commits: Sequence[str]
    branch: str
    week: int
    topic: str = ""
    closes: str = ""

    @property
    def title(self) -> str:
        """Return the title: ``[Integration] NATS Integration - Week 2: Agent Messaging``."""
        return f"[Integration] {self._core} Integration - Week {self.week}: {self.topic or self._topic}"

    @property
    def _core(self) -> str:
        found = dict.fromkeys(core for prefix, core in CORES.items() if self.change.touches(prefix))
        return ", ".join(found or [word for word in self._words if word in CORES.values()]) or "Component"

    @property
    def _components(self) -> str:
        return ", ".join(name for prefix, name in COMPONENTS.items() if self.change.touches(prefix))

    @property
    def _topic(self) -> str:
        """Return what the branch names besides the core, else the components that change, else the first change."""
        if any(word not in CORES.values() for word in self._words):
            return " ".join(self._words)
        return (self._words and self._components) or (self.commits[0] if self.commits else "no change")

    @property
    def _words(self) -> list[str]:
        """Return the words of the branch's name."""
        named = _BRANCH.fullmatch(self.branch)
        if not named or self.branch in ("main", "HEAD"):
            return []
        words = named["topic"].replace("-integration", "").split("-")
        return [word.upper() if word in _ACRONYMS else word.title() for word in words]

    @property
    def checks(self) -> dict[str, Check]:
        """Return the checks of all gates by name."""
        return {check.name: check for gate in self.gates for check in gate.checks}

    def description(self) -> str:
        """Return the description as Markdown."""
        parts = [
            f"## Integration: {self._core} with {self._components or 'all components'}",
            _section("Changes", [*self._changes(), *self._measured()]),
            _section("Tests", [
                self._box("Integration tests passing", "tests", "duration"),
                self._box("Performance benchmarks meeting targets", "targets"),
                self._box("No regressions in existing functionality", "removed-tests", "report", "baseline"),
            ]),
            _section("Documentation", [
                self._box("Integration guide updated", "guides", changed=_GUIDES),
                self._box("API documentation updated", "docstrings"),
            ]),
            _section("Validation", [
                f"- Integration tests: {_mark(self.checks['tests'])}",
                f"- Performance benchmarks: {_mark(self.checks['targets'])}{self._slowest()}",
                f"- Code coverage: {_mark(self.checks['coverage'])}",
                f"- API contract: {_mark(*self._of('api'))}",
            ]),
            _section("Related", [
                f"- Closes #{self.closes or '[issue-number]'}",
                f"- Related to Core SDK: {self._base()}",
            ]),
            self.checklist(),
        ]  # fmt: skip
        return "\n\n".join(parts) + "\n"

    def checklist(self) -> str:
        """Return the specification's checklist."""
        parts = [
            "## PR Checklist",
            _section("Code", [
                self._box("Integration code follows SDK patterns", "lint", "types", "imports"),
                "- [ ] Error handling is comprehensive (for the reviewers)",
                self._box("Code is well-documented", "docstrings", "links"),
                self._box("No breaking changes to existing APIs", "contracts", "released", "catalogue"),
            ]),
            _section("Tests", [
                self._box("Integration tests added and passing", "tests", changed=["tests/"]),
                self._box("Performance benchmarks added and meeting targets", "targets", changed=_BENCHMARKS),
                self._box("Test coverage > 80%", "coverage"),
                self._box("No regressions in existing tests", "removed-tests", "tests"),
            ]),
            _section("Documentation", [
                self._box("Integration guide updated", "guides", changed=_GUIDES),
                self._box("API documentation updated", "docstrings"),
                self._box("Code examples provided", "report", changed=["notebooks/"]),
                self._box("Performance results documented", "report", "targets"),
            ]),
            _section("Validation", [
                self._marked("Integration tests", "tests"),
                self._marked("Performance benchmarks", "targets"),
                self._marked("Code coverage", "coverage"),
                "- [ ] Code review: by the other team",
            ]),
        ]  # fmt: skip
        return "\n\n".join(parts)

    def _box(self, text: str, *names: str, changed: Sequence[str] = ()) -> str:
        """Return a box, ticked if all checks passed and, if ``changed`` is given, a path that begins so changed."""
        open_checks = [self.checks[name] for name in names if self.checks[name].state != "passed"]
        if open_checks:
            return f"- [ ] {text} ({'; '.join(f'{check.name}: {_reason(check)}' for check in open_checks)})"
        if changed and not self.change.touches(*changed):
            return f"- [ ] {text} (none changed)"
        return f"- [x] {text}"

    def _marked(self, text: str, name: str) -> str:
        check = self.checks[name]
        return f"- [{'x' if check.state == 'passed' else ' '}] {text}: {_mark(check)}"

    def _of(self, gate: str) -> tuple[Check, ...]:
        return next(found.checks for found in self.gates if found.name == gate)

    def _changes(self) -> Iterator[str]:
        yield from (f"- {subject}" for subject in self.commits or ["nothing is committed yet"])

    def _measured(self) -> Iterator[str]:
        if self.change.touches("tests/"):
            yield f"- Changed tests (coverage: {self.checks['coverage'].summary})"
        if self.change.touches(*_BENCHMARKS):
            yield f"- Changed performance benchmarks ({self.checks['targets'].summary})"

    def _slowest(self) -> str:
        """Return the met target that is closest to its bound, with its measurement."""
        rows = [row for body in read_reports(self.reports) for record in body["records"] for row in record["verdicts"]]
        judged = [row for row in rows if not row.get("goal") and state_of(row) == "met" and row["target"]]
        if self.checks["targets"].state not in ("passed", "undecided") or not judged:
            return ""
        row = max(judged, key=lambda row: row["measured"] / row["target"] if row.get("better") != "higher" else 0)
        return f" (closest: {row['name']} {quantity(row['measured'], row['unit'])}, target {bound_text(row)})"

    def _base(self) -> str:
        return f"kit at {self.change.base}" if self.change.base else "[core-sdk-version]"


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"### {title}", *lines])


def _mark(*checks: Check) -> str:
    """Return ✅ and what was measured if all checks passed, else the first open check."""
    for check in checks:
        if check.state == "failed":
            return f"❌ {_reason(check)}"
        if check.state != "passed":
            return f"⬜ {_reason(check)}"
    return f"✅ Pass ({'; '.join(check.summary for check in checks)})"


def _reason(check: Check) -> str:
    return f"failed, {check.summary}" if check.state == "failed" else check.summary


def describe(
    reports: Path, *, base: str = "", week: int = 0, topic: str = "", closes: str = "", judge: bool = True
) -> PullRequest:
    """Return the pull request that the current branch would make.

    Args:
        reports: folder of the last report.
        base: the target branch or commit; empty for the merge base with ``main``.
        week: the project's week; 0 for the week in the branch's name, else the weeks since the first commit.
        topic: the title's topic; empty for the topic in the branch's name.
        closes: number of the issue that it closes.
        judge: whether to run the gates; without them there is only a title.
    """
    change = changed_since(base)
    branch = git("rev-parse", "--abbrev-ref", "HEAD")
    subjects = git("log", "--no-merges", "--reverse", "--format=%s", f"{change.base}..HEAD") if change.base else ""
    named = _BRANCH.fullmatch(branch)
    return PullRequest(
        change=change, gates=run_gates(reports=reports, base=base) if judge else (), reports=reports,
        commits=subjects.splitlines(), branch=branch, topic=topic, closes=closes,
        week=week or (int(named["week"]) if named and named["week"] else week_of_project()),
    )  # fmt: skip


def week_of_project(today: date | None = None) -> int:
    """Return the project's week of a day, from 1; weeks begin on Monday, and week 1 has the first commit."""
    dates = git("log", "--format=%cs").splitlines()
    if not dates:
        return 1
    first, last = date.fromisoformat(min(dates)), today or date.fromisoformat(max(dates))
    return (last.toordinal() - 1) // 7 - (first.toordinal() - 1) // 7 + 1
