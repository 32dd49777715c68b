"""The gates' evidence: the last report and the last complete run of the tests, and whether both are of this tree."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit.lab import environment

TESTS = "tests.json"
INTEGRATION = "tests/integration/"


def commit() -> str:
    """Return the checkout's commit, and whether files differ from it; empty outside a checkout."""
    return environment.commit()


def explain_stale(recorded: str, now: str) -> str:
    """Return why evidence recorded at a commit does not apply to the present tree; empty if it does."""
    if not recorded or not now:
        return "the commit is unknown: not a git checkout"
    for text, when in ((recorded, "was recorded with uncommitted changes"), (now, "the tree has uncommitted changes")):
        if "," in text:
            return f"stale: {when} ({text.partition(',')[0]})"
    return "" if recorded == now else f"stale: recorded at commit {recorded}, this is {now}"


def read_reports(reports: Path) -> list[dict[str, Any]]:
    """Return the last report's result for each notebook."""
    found = [json.loads(path.read_text()) for path in sorted(reports.glob("*.json"))]
    return [body for body in found if isinstance(body, dict) and "notebook" in body]


def read_tests(reports: Path) -> dict[str, Any] | None:
    """Return the results of the last complete run of the tests, or None if there was none."""
    path = reports / TESTS
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found


class Recorder:
    """A pytest plugin that writes the results of a complete run; a run of selected tests leaves that file alone.

    A run of the last failures updates it: a test that then passes is recorded as passed on the second try.
    """

    def __init__(self, reports: Path) -> None:
        self._file = reports / TESTS
        self._began = time.monotonic()
        self._outcomes: dict[str, str] = {}
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record the outcome of one phase of a test; the worst phase counts."""
        self._seconds[report.nodeid] += report.duration
        if report.when == "call" or report.outcome != "passed":
            previous = self._outcomes.get(report.nodeid)
            self._outcomes[report.nodeid] = "failed" if "failed" in (previous, report.outcome) else report.outcome

    def pytest_collectreport(self, report: Any) -> None:
        """Record a file that cannot be collected as failed."""
        if report.failed:
            self._outcomes[report.nodeid] = "failed"

    def pytest_sessionfinish(self, session: Any) -> None:
        """Write the file."""
        config = session.config
        if hasattr(config, "workerinput"):  # a pytest-xdist worker: the controller sees every result
            return
        if _narrowed(config) or session.shouldstop or session.shouldfail:
            return
        if config.getoption("lf", default=False):
            self._amend()
        else:
            self._write(getattr(config.pluginmanager.getplugin("_cov"), "cov_total", None))

    def _write(self, coverage: float | None) -> None:
        integration = sum(seconds for test, seconds in self._seconds.items() if test.startswith(INTEGRATION))
        body = {
            "commit": commit(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._began, 1),
            "integration_seconds": round(integration, 1),
            "coverage": coverage and round(coverage, 1),
            "second_try": [],
            "outcomes": dict(sorted(self._outcomes.items())),
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(body, indent=0) + "\n")

    def _amend(self) -> None:
        body = read_tests(self._file.parent)
        if body is None or body["commit"] != commit():
            return
        outcomes = body["outcomes"]
        again = [test for test, seen in self._outcomes.items() if seen == "passed" and outcomes.get(test) == "failed"]
        body["second_try"] = sorted({*body["second_try"], *again})
        body["outcomes"] = outcomes | dict.fromkeys(again, "passed")
        self._file.write_text(json.dumps(body, indent=0) + "\n")


def _narrowed(config: Any) -> bool:
    """Return whether a run leaves out tests of the suite."""
    root, chosen = Path(config.rootpath), config.args
    everything = {str(root / path) for path in config.getini("testpaths")}
    paths = {str((Path(config.invocation_params.dir) / argument).resolve()) for argument in chosen}
    options = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "collectonly")
    benchmark = config.getoption("benchmark_only", default=False)
    return paths != everything or benchmark or any(config.getoption(option) for option in options)


def test_functions(text: str) -> Iterator[str]:
    """Yield the names of the test functions that a Python file defines."""
    for line in text.splitlines():
        _, found, rest = line.partition("def test_")
        if found and line.lstrip().startswith(("def test_", "async def test_")):
            yield "test_" + rest.partition("(")[0]
