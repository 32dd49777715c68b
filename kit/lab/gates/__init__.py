"""The specification's four validation gates, each a list of checks; a check passes only on evidence.

    integration  tests, coverage, duration, removed-tests, report
    performance  targets, baseline
    api          contracts, released, catalogue, imports
    review       lint, types, docstrings, links, guides, checklist

The evidence is measured elsewhere: ``kit report`` and a complete run of ``pytest`` write their results, and the commit,
into ``reports/``. Evidence of another commit, or of a tree with uncommitted changes, is stale. A check whose evidence
is stale or missing is "not measured".

Source: the integration story, "Validation Gates".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kit.errors import ConfigurationError, KitError
from kit.lab.gates import api, integration, performance, review
from kit.lab.gates.evidence import read_reports
from kit.lab.gates.model import SIGNS, Check, Context, Gate, Judge, State, judge, unseen

__all__ = [
    "CHECKS",
    "GATES",
    "SIGNS",
    "Check",
    "Context",
    "Gate",
    "State",
    "read_reports",
    "run_gates",
    "unmeasured_gates",
]

GATES: dict[str, tuple[str, dict[str, Judge]]] = {
    "integration": (
        "Integration tests",
        {
            "tests": integration.tests, "coverage": integration.coverage, "duration": integration.duration,
            "removed-tests": integration.removed_tests, "report": integration.report,
        },
    ),
    "performance": ("Performance", {"targets": performance.targets, "baseline": performance.baseline}),
    "api": (
        "API contract",
        {
            "contracts": api.contracts, "released": api.released, "catalogue": api.catalogue, "imports": api.imports,
        },
    ),
    "review": (
        "Code review",
        {
            "lint": review.lint, "types": review.types, "docstrings": review.docstrings, "links": review.links,
            "guides": review.guides, "checklist": review.checklist,
        },
    ),
}  # fmt: skip
"""Gates by name: their titles, and their checks by name, in the order in which they are shown."""

CHECKS: dict[str, Judge] = {name: check for _, checks in GATES.values() for name, check in checks.items()}


def run_gates(names: Sequence[str] = (), *, reports: Path, base: str = "") -> list[Gate]:
    """Run gates, or single checks of them; everything by default.

    Args:
        names: gates and checks.
        reports: folder of the last report.
        base: the branch or commit to compare with; empty for the merge base with ``main``.

    Raises:
        ConfigurationError: a gate or check that does not exist.
    """
    if unknown := set(names) - set(GATES) - set(CHECKS):
        raise ConfigurationError(
            f"unknown gate {', '.join(sorted(unknown))}: there are {', '.join(GATES)}, and checks {', '.join(CHECKS)}"
        )
    context = Context(reports, base)
    found = []
    for gate, (title, checks) in GATES.items():
        chosen = [name for name in checks if not names or gate in names or name in names]
        if chosen:
            found.append(Gate(name=gate, title=title, checks=tuple(_run(name, context) for name in chosen)))
    return found


def _run(name: str, context: Context) -> Check:
    try:
        return CHECKS[name](context)
    except ConfigurationError:
        raise
    except (KitError, ValueError) as error:  # a file that a check reads is not what it should be
        return judge(name, "", [str(error)], "git status and git diff show which file it is; git checkout restores it")


def unmeasured_gates() -> list[Gate]:
    """Return all gates with every check not measured."""
    return [
        Gate(name=gate, title=title, checks=tuple(unseen(name, "not measured", "") for name in checks))
        for gate, (title, checks) in GATES.items()
    ]
