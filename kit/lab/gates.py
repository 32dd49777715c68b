"""The validation gates: what must hold before a change goes in, each with a verdict and its numbers.

    contracts    released schemas did not change, and stay compatible within a major, over every stored fixture
    catalogue    every message type has a schema and fixtures; names are unique; nothing is named twice
    imports      rooms import one way; only one room imports nats, one opentelemetry, one the validator
    report       the last `kit report`: every notebook ran and shows its committed outputs
    targets      no target that its notebooks recorded is missed
    baseline     no recorded ratio is worse than the committed baseline by more than its noise

Source: the integration story's validation gates 1 to 3; code review is for people.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kit.catalogue import MESSAGE_TYPES, METRICS, OPERATIONS, SPANS
from kit.errors import ConfigurationError
from kit.lab.baseline import FILE, changes
from kit.lab.project import project_root
from kit.lab.quantities import quantity
from kit.lab.targets import state_of, tally


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate's verdict.

    Attributes:
        state: ``skipped`` says in ``summary`` what is missing; it does not let a strict run pass.
        findings: what is wrong, a line each.
    """

    name: str
    state: Literal["passed", "failed", "skipped"]
    summary: str
    findings: tuple[str, ...] = ()


def run_gates(names: Sequence[str] = (), *, reports: Path) -> list[Gate]:
    """Run gates, all of them by default.

    Args:
        reports: folder of the last report.

    Raises:
        ConfigurationError: a gate that does not exist.
    """
    if unknown := set(names) - set(GATES):
        raise ConfigurationError(f"no gate {', '.join(sorted(unknown))}; there are {', '.join(GATES)}")
    return [GATES[name](reports) for name in names or GATES]


def _verdict(name: str, summary: str, findings: Iterable[str]) -> Gate:
    found = tuple(findings)
    state: Literal["passed", "failed"] = "failed" if found else "passed"
    return Gate(name=name, state=state, summary=summary if not found else f"{len(found)} finding(s)", findings=found)


def _contracts(_: Path) -> Gate:
    from kit import codec

    schemas = sum(len(codec.versions(message_type)) for message_type in codec.message_types())
    findings = [*codec.check_released(), *(str(found) for found in codec.check_compatibility())]
    return _verdict("contracts", f"{schemas} schemas of {len(codec.message_types())} message types", findings)


def _catalogue(_: Path) -> Gate:
    summary = f"{len(OPERATIONS)} operations, {len(SPANS)} spans, {len(METRICS)} metrics, {len(MESSAGE_TYPES)} types"
    return _verdict("catalogue", summary, _catalogue_findings())


def _catalogue_findings() -> Iterator[str]:
    from kit import codec

    for what, names in (
        ("subject", [row.prefix for row in OPERATIONS]),
        ("operation", [row.name for row in OPERATIONS]),
        ("span", [row.name for row in SPANS]),
        ("metric", [row.name for row in METRICS]),
    ):
        yield from (f"{what} {name} stands {count} times" for name, count in Counter(names).items() if count > 1)
    known = set(codec.message_types())
    yield from (f"message type {name} has no schema" for name in MESSAGE_TYPES if name not in known)
    yield from (f"schema {name} is in no row of the catalogue" for name in sorted(known - set(MESSAGE_TYPES)))
    fixtures = project_root() / "data" / "contracts"
    for name in sorted(known & set(MESSAGE_TYPES)):
        for version in codec.versions(name):
            for kind in ("valid", "invalid"):
                if not any((fixtures / name / version / kind).glob("*")):
                    yield f"{name} {version} has no {kind} fixture"


def _imports(_: Path) -> Gate:
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if tool is None:
        return Gate(name="imports", state="skipped", summary="import-linter is not installed: pip install 'kit[test]'")
    command = [tool, "--no-cache", "--config", str(project_root() / "pyproject.toml")]
    done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False, timeout=120.0)
    broken = [line.strip() for line in done.stdout.splitlines() if "BROKEN" in line or line.strip().startswith("- ")]
    kept = sum(line.rstrip().endswith("KEPT") for line in done.stdout.splitlines())
    if done.returncode and not broken:
        broken = (done.stdout + done.stderr).strip().splitlines()[-3:]
    return _verdict("imports", f"{kept} rules kept", broken)


def read_reports(reports: Path) -> list[dict[str, Any]]:
    """Return what the last report says of each notebook."""
    found = [json.loads(path.read_text()) for path in sorted(reports.glob("*.json"))]
    return [body for body in found if isinstance(body, dict) and "notebook" in body]


def _needs_report(name: str, judge: Callable[[list[dict[str, Any]]], Gate]) -> Callable[[Path], Gate]:
    def gate(reports: Path) -> Gate:
        bodies = read_reports(reports)
        if not bodies:
            return Gate(name=name, state="skipped", summary=f"no report in {reports}: run `kit report` first")
        return judge(bodies)

    return gate


def _report(bodies: list[dict[str, Any]]) -> Gate:
    stopped = [body for body in bodies if body["failure"] or body["comparison"] in ("differs", "no reference")]
    findings = [f"{body['notebook']}: {body['verdict']}" for body in stopped]
    return _verdict("report", f"{len(bodies)} notebooks ran, none differs", findings)


def _targets(bodies: list[dict[str, Any]]) -> Gate:
    rows = [row for body in bodies for record in body["records"] for row in record["verdicts"]]
    findings = [
        f"{row['name']}: {quantity(row['measured'], row['unit'])}, target {quantity(row['target'], row['unit'])}"
        for row in rows
        if state_of(row) == "missed" and not row.get("goal")
    ]
    return _verdict("targets", tally(rows), findings)


def _baseline(reports: Path) -> Gate:
    bodies = read_reports(reports)
    if not bodies or not (reports / FILE).is_file():
        missing = "no report" if not bodies else "no baseline"
        how = "`kit report`" if not bodies else "`kit gates --update-baseline`"
        return Gate(name="baseline", state="skipped", summary=f"{missing} in {reports}: {how} makes one")
    found = changes(bodies, reports)
    return _verdict("baseline", f"{len(found)} ratios, none worse", [str(row) for row in found if row.state == "worse"])


GATES: dict[str, Callable[[Path], Gate]] = {
    "contracts": _contracts,
    "catalogue": _catalogue,
    "imports": _imports,
    "report": _needs_report("report", _report),
    "targets": _needs_report("targets", _targets),
    "baseline": _baseline,
}
