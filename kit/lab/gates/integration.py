"""Gate 1, integration tests: all pass, in time, with enough coverage, and none was removed."""

from __future__ import annotations

from collections import Counter

from kit.lab.gates.changes import tests_at, tests_now
from kit.lab.gates.model import Check, Context, judge, unseen
from kit.lab.project import project_root

COVERAGE = 80.0  # per cent. Source: the specification, "Test coverage > 80 %"
SECONDS = 300.0  # of the integration tests together. Source: the specification, "< 5 minutes for full suite"

_RUN = "run the whole suite: pytest --cov=kit"


def tests(context: Context) -> Check:
    """Judge whether every test passed in the last complete run."""
    seen, name = context.tests, "tests"
    if seen is None:
        return unseen(name, "not measured: no complete run of the tests", _RUN)
    if reason := context.explain_stale(seen["commit"]):
        return unseen(name, reason, _RUN)
    counts = Counter(seen["outcomes"].values())
    summary = ", ".join(f"{counts[state]} {state}" for state in ("passed", "skipped") if counts[state])
    again = [f"passed only on the second try: {test}" for test in seen["second_try"]]
    failed = [test for test, state in seen["outcomes"].items() if state == "failed"]
    if failed:
        return judge(name, "", failed, "fix the test or the code; pytest --last-failed runs it again")
    ran = {test.partition("[")[0].rpartition("::")[2] for test in seen["outcomes"]}
    suite = {name for name, paths in tests_now().items() if any("/test_" in path for path in paths)}
    if missing := sorted(suite - ran):
        return unseen(name, f"not measured: {len(missing)} tests did not run", _RUN, missing)
    return Check(name=name, state="passed", summary=summary, findings=tuple(again))


def coverage(context: Context) -> Check:
    """Judge how much of ``kit/`` the tests cover."""
    seen, name = context.tests, "coverage"
    if seen is None or seen["coverage"] is None:
        return unseen(name, "not measured: the tests ran without --cov=kit", _RUN)
    if reason := context.explain_stale(seen["commit"]):
        return unseen(name, reason, _RUN)
    measured = f"{seen['coverage']:.1f} % of kit/"
    findings = [f"the tests cover {measured}, the limit is {COVERAGE:.0f} %"]
    low = seen["coverage"] <= COVERAGE
    remedy = "test what the change adds: pytest --cov=kit --cov-report=term-missing:skip-covered lists the lines"
    return judge(name, f"{measured} (limit {COVERAGE:.0f} %)", findings if low else (), remedy)


def duration(context: Context) -> Check:
    """Judge how long the integration tests take."""
    seen, name = context.tests, "duration"
    if seen is None or not seen["integration_seconds"]:
        return unseen(name, "not measured: no complete run of the tests", _RUN)
    if reason := context.explain_stale(seen["commit"]):
        return unseen(name, reason, _RUN)
    took = seen["integration_seconds"]
    summary = f"integration tests {took:.0f} s (limit {SECONDS:.0f} s); the whole suite {seen['seconds']:.0f} s"
    findings = [f"the integration tests take {took:.0f} s, the limit is {SECONDS:.0f} s"] if took >= SECONDS else ()
    return judge(name, summary, findings, "pytest tests/integration --durations=10 lists the slowest")


def removed_tests(context: Context) -> Check:
    """Judge whether every test of the base still exists, or is named as removed in the change log."""
    name, base = "removed-tests", context.change.base
    if not base:
        return unseen(name, "not measured: no base to compare with", "run it in a git checkout with its history")
    before, now = tests_at(base), tests_now()
    log = project_root() / "CHANGELOG.md"
    told = log.read_text() if log.is_file() else ""
    findings = [
        f"{test} ran in {', '.join(before[test])} at {base}, and is missing or skipped now"
        for test in sorted(before)
        if len(now.get(test, ())) < len(before[test]) and f"`{test}`" not in told
    ]
    remedy = "restore it, or name it in CHANGELOG.md under Removed, with the reason: - `test_name`: …"
    summary = f"each of {sum(map(len, before.values()))} tests at {base} is there, or named as removed"
    return judge(name, summary, findings, remedy)


def report(context: Context) -> Check:
    """Judge whether every committed notebook ran and matches its committed outputs."""
    name, remedy = "report", "kit report runs every notebook"
    expected = {path.stem for path in (project_root() / "notebooks").glob("*.ipynb")}
    bodies = {body["notebook"]: body for body in context.bodies if body["notebook"] in expected}
    for body in bodies.values():
        if reason := context.explain_stale(body["environment"]["commit"]):
            return unseen(name, f"{body['notebook']} is {reason}", remedy)
    broken = {
        key: body["verdict"]
        for key, body in bodies.items()
        if body["failure"] or body["comparison"] in ("differs", "no reference")
    }
    if broken:
        findings = [f"{notebook}: {verdict}" for notebook, verdict in broken.items()]
        return judge(name, "", findings, "read its page; kit report --update writes outputs that changed on purpose")
    missing = sorted(expected - bodies.keys())
    if missing or not expected:
        summary = f"not measured: {len(missing)} of {len(expected)} notebooks"
        return unseen(name, summary, remedy, missing if len(missing) < len(expected) else ())
    for body in bodies.values():
        if body["comparison"] != "same":
            return unseen(name, f"{body['notebook']}: {body['verdict']}", remedy)
    return judge(name, f"{len(bodies)} notebooks ran and match their committed outputs", (), remedy)
