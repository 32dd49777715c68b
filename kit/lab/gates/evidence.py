"""The gates' evidence: the last report and the last complete run of the tests, and whether both are of this tree."""

from __future__ import annotations

import ast
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


_NUMBER, _NOTHING = (int, float), type(None)
_RATIO = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_VERDICT = {
    "name": str, "measured": _NUMBER, "target": _NUMBER, "unit": str, "better": str, "met": bool,
    "ratio": (_RATIO, _NOTHING),
}  # fmt: skip
_REPORT = {
    "notebook": str, "good": bool, "failure": (dict, _NOTHING), "comparison": str, "verdict": str, "parameters": dict,
    "environment": {"commit": str, "cpu": str, "cores": int, "python": str}, "records": [{"verdicts": [_VERDICT]}],
}  # fmt: skip
_RUN = {
    "commit": str, "seconds": _NUMBER, "integration_seconds": _NUMBER, "coverage": (*_NUMBER, _NOTHING),
    "second_try": list, "outcomes": dict,
}  # fmt: skip


def read_json(path: Path, shape: Any = dict) -> Any:
    """Return what a file holds, or None where it is not there, or not what the kit writes: nothing was measured then.

    Args:
        shape: a type, or a tuple of shapes, one of which fits; a dict has at least these keys, a list only such items.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if _fits(found, shape) else None


def _fits(found: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(found, dict) and all(key in found and _fits(found[key], shape[key]) for key in shape)
    if isinstance(shape, list):
        return isinstance(found, list) and all(_fits(item, shape[0]) for item in found)
    if isinstance(shape, tuple):
        return any(_fits(found, one) for one in shape)
    return isinstance(found, shape)


def read_reports(reports: Path) -> list[dict[str, Any]]:
    """Return the last report's result for each notebook."""
    found = [read_json(path, _REPORT) for path in sorted(reports.glob("*.json"))]
    return [body for body in found if body is not None]


def read_tests(reports: Path) -> dict[str, Any] | None:
    """Return the results of the last complete run of the tests, or None if there was none."""
    found: dict[str, Any] | None = read_json(reports / TESTS, _RUN)
    return found


class Recorder:
    """A pytest plugin that writes the results of a complete run; a run of selected tests leaves that file alone.

    A run of the last failures updates it: a test that then passes is recorded as passed on the second try.
    """

    def __init__(self, reports: Path) -> None:
        self._file = reports / TESTS
        self._began = time.monotonic()
        self._outcomes: dict[str, str] = {}
        self._broken = False
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
            self._broken = True
            self._outcomes[report.nodeid] = "failed"

    def pytest_sessionfinish(self, session: Any, exitstatus: int) -> None:
        """Write the file, unless the run was interrupted."""
        config = session.config
        if hasattr(config, "workerinput"):  # a pytest-xdist worker: the controller sees every result
            return
        if _narrowed(config) or session.shouldstop or session.shouldfail or (exitstatus > 1 and not self._broken):
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
    """Yield the names of the test functions that a Python file defines, but for those that are marked to be skipped."""
    try:
        yield from _running(ast.parse(text))
    except (SyntaxError, ValueError):  # it has no tests then: they cannot run
        return


def _running(scope: ast.Module | ast.ClassDef) -> Iterator[str]:
    marks = [node.value for node in scope.body if isinstance(node, ast.Assign) and _target(node) == "pytestmark"]
    if any(map(_skips, marks)):
        return
    for node in scope.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _skips(node.value):
            return  # pytest.skip(…, allow_module_level=True)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if any(map(_skips, node.decorator_list)):
                continue
            if isinstance(node, ast.ClassDef):
                yield from _running(node)
            elif node.name.startswith("test_") and not _skips_first(node):
                yield node.name


def _target(node: ast.Assign) -> str:
    return getattr(node.targets[0], "id", "")


def _skips(node: ast.expr) -> bool:
    """Return whether an expression is a mark that always skips a test or expects it to fail, or a list with one."""
    if isinstance(node, ast.List | ast.Tuple):
        return any(map(_skips, node.elts))
    function = node.func if isinstance(node, ast.Call) else node
    name = getattr(function, "attr", getattr(function, "id", ""))
    conditions = node.args[:1] if isinstance(node, ast.Call) and name != "skip" else []
    always = all(isinstance(one, ast.Constant) and one.value for one in conditions)
    return name in ("skip", "skipif", "xfail") and always


def _skips_first(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a test leaves before it does anything: its first statement skips it, or is expected to fail."""
    first = next((one for one in node.body if not isinstance(getattr(one, "value", None), ast.Constant)), None)
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Call) and _skips(first.value)
