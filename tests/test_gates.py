"""The gates: a check passes only on evidence from this tree, and each failure says how to fix it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kit.errors import ConfigurationError
from kit.lab import environment
from kit.lab.cli import main
from kit.lab.gates import CHECKS, Context, api, changes, evidence, integration, review, run_gates
from kit.lab.gates.api import catalogue
from kit.lab.project import project_root
from kit.lab.targets import OVERALL, SPECIFICATION, SPECIFIED, State

COMMIT = "0123456789"
MACHINE = {"cpu": "a processor", "cores": 2, "python": "CPython 3.11.7"}


@pytest.fixture(autouse=True)
def _clean_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "commit", lambda: COMMIT)


def verdicts(state: State = "met") -> list[dict[str, Any]]:
    """Return a row a target of the specification: met by half, or missed by double."""
    rows = []
    for name in SPECIFIED:
        target = next(one for one in (*SPECIFICATION, OVERALL) if one.name == name.partition(":")[0])
        good = (state == "met") == (target.better == "lower")
        rows.append(target.verdict(target.bound * (0.5 if good else 2)).plain() | {"name": name})
    return rows


def write_report(folder: Path, commit: str = COMMIT, **changes: dict[str, Any]) -> None:
    """Write what a whole report leaves: every notebook as committed, every target met; ``changes`` by notebook."""
    names = [path.stem for path in (project_root() / "notebooks").glob("*.ipynb")]
    rows = verdicts()
    for name in names:
        body = {
            "notebook": name, "good": True, "failure": None, "comparison": "same", "verdict": "", "parameters": {},
            "environment": {"commit": commit, **MACHINE},
            "records": [{"verdicts": rows}] if name.startswith("33") else [],
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(body | changes.get(name, {})))


def write_tests(folder: Path, **changes: Any) -> None:
    body = {
        "commit": COMMIT, "seconds": 200.0, "integration_seconds": 100.0, "coverage": 96.0, "second_try": [],
        "outcomes": outcomes() | changes.pop("outcomes", {}),
    }  # fmt: skip
    (folder / "tests.json").write_text(json.dumps(body | changes))


@cache
def outcomes() -> dict[str, str]:
    """Return an outcome for each test of the project."""
    return {f"{path}::{name}": "passed" for name, paths in changes.tests_now().items() for path in paths}


def check(name: str, folder: Path) -> Any:
    return CHECKS[name](Context(folder))


# --- what was not seen does not pass ----------------------------------------------------------------------------


def test_nothing_measured_is_not_passed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["tests", "coverage", "duration", "report", "targets", "baseline"]
    assert main(["gates", *names, "--reports", str(tmp_path)]) == 3
    assert capsys.readouterr().out.count("not measured") >= len(names)
    assert main(["gates", *names, "--reports", str(tmp_path), "--strict"]) == 1


def test_a_report_of_some_notebooks_measures_no_target(tmp_path: Path) -> None:
    write_report(tmp_path)
    for path in tmp_path.glob("*.json"):
        if not path.name.startswith("00"):
            path.unlink()
    targets, report = check("targets", tmp_path), check("report", tmp_path)
    assert (targets.state, targets.summary) == (
        "not measured",
        f"not measured: {len(SPECIFIED)} of {len(SPECIFIED)}",
    )
    assert report.state == "not measured"
    assert "01_codec" in report.findings


def test_a_missing_target_is_named(tmp_path: Path) -> None:
    write_report(tmp_path)
    path = tmp_path / "33_benchmark_otel.json"
    body = json.loads(path.read_text())
    body["records"][0]["verdicts"].pop()
    path.write_text(json.dumps(body))
    found = check("targets", tmp_path)
    assert (found.state, found.summary, found.findings) == (
        "not measured",
        f"not measured: 1 of {len(SPECIFIED)}",
        (SPECIFIED[-1],),
    )


@pytest.mark.parametrize(
    ("recorded", "now", "reason"),
    [
        ("fedcba9876", COMMIT, "stale: recorded at commit fedcba9876, this is 0123456789"),
        (f"{COMMIT}, with changes", COMMIT, "stale: was recorded with uncommitted changes"),
        (COMMIT, f"{COMMIT}, with changes", "stale: the tree has uncommitted changes"),
        ("", COMMIT, "the commit is unknown"),
        (COMMIT, "", "the commit is unknown"),
    ],
)
def test_stale_evidence_is_named_and_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str, now: str, reason: str
) -> None:
    write_report(tmp_path, recorded)
    write_tests(tmp_path, commit=recorded)
    monkeypatch.setattr(evidence, "commit", lambda: now)
    for name in ("report", "targets", "tests", "coverage", "duration"):
        found = CHECKS[name](Context(tmp_path, commit=now))
        assert found.state == "not measured", name
        assert reason in found.summary


def test_notebooks_with_other_parameters_measure_nothing(tmp_path: Path) -> None:
    write_report(tmp_path, **{"33_benchmark_otel": {"parameters": {"rounds": 1}, "comparison": "other parameters"}})
    assert check("targets", tmp_path).state == "not measured"
    assert check("report", tmp_path).state == "not measured"


def test_whole_evidence_of_this_commit_passes(tmp_path: Path) -> None:
    write_report(tmp_path)
    write_tests(tmp_path)
    for name in ("report", "targets", "tests", "coverage", "duration"):
        assert check(name, tmp_path).state == "passed", name


# --- what fails says how to mend it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "finding"),
    [
        ("tests", {"outcomes": {"tests/test_a.py::test_b": "failed"}}, "tests/test_a.py::test_b"),
        ("coverage", {"coverage": 79.9}, "the tests cover 79.9 % of kit/, the limit is 80 %"),
        ("duration", {"integration_seconds": 301.0}, "the integration tests take 301 s, the limit is 300 s"),
    ],
)
def test_a_run_that_falls_short_fails(tmp_path: Path, name: str, changes: dict[str, Any], finding: str) -> None:
    write_tests(tmp_path, **changes)
    found = check(name, tmp_path)
    assert (found.state, found.findings) == ("failed", (finding,))
    assert found.remedy


def test_a_test_that_passed_at_the_second_try_only_is_named(tmp_path: Path) -> None:
    write_tests(tmp_path, second_try=["tests/test_a.py::test_a"])
    found = check("tests", tmp_path)
    assert (found.state, found.findings) == ("passed", ("passed only on the second try: tests/test_a.py::test_a",))


def test_an_undecided_target_is_neither_passed_nor_failed_and_a_missed_goal_stops_nothing(tmp_path: Path) -> None:
    write_report(tmp_path)
    path = tmp_path / "33_benchmark_otel.json"
    body = json.loads(path.read_text())
    rows = body["records"][0]["verdicts"]
    rows[-1] |= {"state": "undecided", "met": False}
    rows.append(rows[0] | {"name": "a goal", "state": "missed", "met": False, "goal": True})
    path.write_text(json.dumps(body))
    found = check("targets", tmp_path)
    assert (found.state, found.findings) == ("undecided", (f"undecided: {SPECIFIED[-1]}",))
    assert main(["gates", "targets", "--reports", str(tmp_path), "--strict"]) == 0


def test_a_notebook_that_differs_fails_the_report(tmp_path: Path) -> None:
    write_report(tmp_path, **{"00_tour": {"comparison": "differs", "verdict": "1 cell(s) differ from the reference"}})
    found = check("report", tmp_path)
    assert (found.state, found.findings) == ("failed", ("00_tour: 1 cell(s) differ from the reference",))


def test_the_gates_of_the_project_itself_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gates", "contracts", "catalogue", "imports", "links"]) == 0, capsys.readouterr().out


def test_the_catalogue_check_names_what_breaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kit.catalogue import OPERATIONS
    from kit.lab.gates import api

    monkeypatch.setattr(api, "OPERATIONS", (*OPERATIONS, OPERATIONS[0]))
    monkeypatch.setattr(api, "MESSAGE_TYPES", (*api.MESSAGE_TYPES[1:], "smoke_signal"))
    found = catalogue(Context(tmp_path))
    assert found.state == "failed"
    assert "operation AGENT_MESSAGE occurs 2 times" in found.findings
    assert "message type smoke_signal has no schema" in found.findings
    assert "schema agent_message is in no row of the catalogue" in found.findings


def test_a_tool_that_is_not_installed_measures_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kit.lab.gates.api.shutil.which", lambda *_, **__: None)
    for name in ("imports", "lint", "types", "docstrings"):
        assert check(name, tmp_path).state == "not measured", name


# --- the table, JSON, JUnit, the pages --------------------------------------------------------------------------


def test_gates_are_told_as_json_and_junit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(tmp_path)
    junit = tmp_path / "gates.xml"
    options = ["--reports", str(tmp_path), "--json", "--junit", str(junit)]
    assert main(["gates", "report", "coverage", "checklist", *options]) == 3
    gates = json.loads(capsys.readouterr().out)
    states = {row["name"]: row["state"] for gate in gates for row in gate["checks"]}
    assert states == {"report": "passed", "coverage": "not measured", "checklist": "for people"}
    suites = ElementTree.parse(junit).getroot()
    assert {case.get("name"): [child.tag for child in case] for case in suites.iter("testcase")} == {
        "coverage": ["skipped"], "report": [], "checklist": ["skipped"],
    }  # fmt: skip


def test_the_page_and_the_front_page_show_the_gates(tmp_path: Path) -> None:
    from kit.lab.gates import render

    front = tmp_path / "index.html"
    front.write_text(f"<h2>Gates</h2>{render.as_section(tmp_path)}<h2>Numbers</h2>")
    assert "Not judged yet" in front.read_text()
    gates = run_gates(["integration", "checklist"], reports=tmp_path)
    page = render.write(gates, tmp_path).read_text()
    assert "not measured: no complete run of the tests" in page
    assert "→ run the whole suite" in page
    assert "Integration tests" in front.read_text()
    assert front.read_text().endswith("<h2>Numbers</h2>")
    render.write(gates, tmp_path)  # once more: it replaces, and does not pile up
    assert front.read_text().count("gates.html#integration") == 1


def test_an_unknown_gate_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gates", "nope", "--reports", str(tmp_path)]) == 2
    assert "unknown gate nope: there are integration, performance, api, review" in capsys.readouterr().err


# --- the recorder of test runs ----------------------------------------------------------------------------------


@pytest.fixture
def suite(tmp_path: Path) -> Any:
    """A small project whose test runs are recorded; returns how to run pytest in it and what it left."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["tests"]\naddopts = "-q"\n')
    (tmp_path / "conftest.py").write_text(
        "from pathlib import Path\nfrom kit.lab.gates.evidence import Recorder\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(Recorder(Path('reports')), 'recorder')\n"
    )
    (tmp_path / "tests" / "test_it.py").write_text(
        "from pathlib import Path\ndef test_good(): pass\ndef test_bad(): assert Path('mended').exists()\n"
    )

    def run(*arguments: str) -> Any:
        command = [sys.executable, "-m", "pytest", "-p", "xdist", *arguments]
        only = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # importing every other plugin takes seconds
        subprocess.run(command, cwd=tmp_path, check=False, env=only)
        file = tmp_path / "reports" / "tests.json"
        return json.loads(file.read_text()) if file.is_file() else None

    return tmp_path, run


@pytest.mark.parametrize("arguments", [("-k", "good"), ("tests/test_it.py::test_good",), ("--collect-only",), ("-x",)])
def test_a_run_of_chosen_tests_records_nothing(suite: Any, arguments: tuple[str, ...]) -> None:
    assert suite[1](*arguments) is None


@pytest.mark.parametrize("arguments", [(), ("tests",), ("-n", "2"), ("-v",)])
def test_a_whole_run_records_each_outcome(suite: Any, arguments: tuple[str, ...]) -> None:
    found = suite[1](*arguments)
    assert found["outcomes"] == {"tests/test_it.py::test_bad": "failed", "tests/test_it.py::test_good": "passed"}
    assert (found["second_try"], found["coverage"]) == ([], None)


def test_a_second_try_is_recorded_as_one(suite: Any) -> None:
    folder, run = suite
    run()
    (folder / "mended").touch()
    found = run("--last-failed")
    assert found["outcomes"]["tests/test_it.py::test_bad"] == "passed"
    assert found["second_try"] == ["tests/test_it.py::test_bad"]


def test_a_file_that_cannot_be_imported_is_recorded_as_failed(suite: Any) -> None:
    folder, run = suite
    (folder / "tests" / "test_broken.py").write_text("import nowhere\n")
    assert run()["outcomes"]["tests/test_broken.py"] == "failed"


# --- a pull request that breaks one of each kind ----------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a history of its own: a branch with nothing in it yet, off main."""
    root, folder = project_root(), tmp_path_factory.mktemp("clone") / "project"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)
    if not (folder / "kit/lab/gates").is_dir():
        pytest.fail("the gates are not in the copy")
    _git(folder, "init", "-q", "-b", "main")
    _commit(folder, "Begin")
    _git(folder, "checkout", "-q", "-b", "feature/one-change")
    return folder


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _commit(folder: Path, message: str) -> str:
    _git(folder, "add", "-A")
    _git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return _git(folder, "rev-parse", "--short=10", "HEAD")


@pytest.fixture
def change(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How to make a change in the copy, which the gates judge; it is undone afterwards."""
    for module in (api, changes, environment, integration, review):
        monkeypatch.setattr(module, "project_root", lambda: clone)
    monkeypatch.setattr(evidence, "commit", environment.commit)
    monkeypatch.setenv("PYTHONPATH", str(clone))
    monkeypatch.delenv("KIT_BASE", raising=False)
    head = _git(clone, "rev-parse", "HEAD")
    yield lambda message="Change one thing": _commit(clone, message)
    _git(clone, "reset", "-q", "--hard", head)
    _git(clone, "clean", "-fdq")
    shutil.rmtree(clone / "reports", ignore_errors=True)
    _git(clone, "checkout", "-q", "--", "reports")


def test_a_missed_target_is_refused(clone: Path, change: Any) -> None:
    write_report(clone / "reports", commit := change())
    assert check("targets", clone / "reports").state == "passed"
    write_report(
        clone / "reports", commit, **{"33_benchmark_otel": {"records": [{"verdicts": verdicts("missed")[:1]}]}}
    )
    found = check("targets", clone / "reports")
    assert found.state == "failed"
    assert found.findings == ("agent messaging latency: 20.0 ms, target 10.0 ms",)
    assert "never loosened" in found.remedy


def test_an_edited_released_schema_is_refused_even_if_its_ledger_is_edited_too(clone: Path, change: Any) -> None:
    path = clone / "schemas" / "agent_message" / "1.0.json"
    path.write_text(path.read_text().replace('"maxLength": 200', '"maxLength": 300') + "\n")
    script = (
        "from kit import codec; from pathlib import Path; import json\n"
        "ledger = Path('schemas/released.json'); old = json.loads(ledger.read_text())\n"
        "del old['agent_message/1.0.json']; ledger.write_text(json.dumps(old)); codec.release()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=clone, env={"PYTHONPATH": str(clone)}, check=True)
    change()
    found = check("released", clone / "reports")
    assert found.state == "failed"
    assert "schemas/agent_message/1.0.json was released at" in found.findings[0]
    assert "add a new version" in found.remedy


def test_a_forbidden_import_is_refused(clone: Path, change: Any) -> None:
    path = clone / "kit" / "components" / "rag" / "text.py"
    path.write_text(path.read_text() + "\nimport nats  # noqa\n")
    change()
    found = check("imports", clone / "reports")
    assert found.state == "failed"
    assert "Only kit.nats imports nats BROKEN" in found.findings
    assert "a lower package" in found.remedy


def test_a_test_taken_out_is_refused_unless_the_change_log_says_why(clone: Path, change: Any) -> None:
    path = clone / "tests" / "integration" / "test_nats_integration.py"
    path.write_text(path.read_text().replace("def test_nats_rag_queue", "def rag_queue"))
    change()
    found = check("removed-tests", clone / "reports")
    assert found.state == "failed"
    assert found.findings[0].startswith("test_nats_rag_queue ran in tests/integration/")
    log = clone / "CHANGELOG.md"
    log.write_text((log.read_text() if log.is_file() else "") + "\n### Removed\n\n- `test_nats_rag_queue`: no queue\n")
    change()
    assert check("removed-tests", clone / "reports").state == "passed"


def test_a_guide_not_touched_is_refused_unless_a_commit_says_why(clone: Path, change: Any) -> None:
    path = clone / "kit" / "nats" / "store.py"
    path.write_text(path.read_text() + "\n# changed\n")
    change()
    found = check("guides", clone / "reports")
    assert found.state == "failed"
    assert "its guide notebooks/02_nats.ipynb did not" in found.findings[0]
    change("Say why\n\nGuide-unchanged: nats, a comment only")
    assert check("guides", clone / "reports").state == "passed"


def test_coverage_below_the_limit_is_refused(clone: Path, change: Any) -> None:
    write_tests(clone / "reports", commit=change(), coverage=71.4)
    found = check("coverage", clone / "reports")
    assert found.state == "failed"
    assert "term-missing" in found.remedy


SKIPS = {
    "a mark": ("async def test_nats_rag_queue", "@pytest.mark.skip\nasync def test_nats_rag_queue"),
    "a mark with a reason": (
        "async def test_nats_rag_queue", "@pytest.mark.skip(reason='')\nasync def test_nats_rag_queue",
    ),
    "a condition that always holds": (
        "async def test_nats_rag_queue", "@pytest.mark.skipif(True)\nasync def test_nats_rag_queue",
    ),
    "an expected failure": ("async def test_nats_rag_queue", "@pytest.mark.xfail\nasync def test_nats_rag_queue"),
    "the whole file": ("import pytest\n", "import pytest\npytestmark = [pytest.mark.skip]\n"),
    "the whole file, at its import": ("import pytest\n", "import pytest\npytest.skip('', allow_module_level=True)\n"),
    "another name": ("def test_nats_rag_queue", "def test_nats_rag_queues"),
    "no name": ("async def test_nats_rag_queue", "async def _rag_queue"),
    "a file that cannot be read": ("import pytest\n", "import pytest(\n"),
}  # fmt: skip


@pytest.mark.parametrize("how", SKIPS)
def test_a_test_that_no_longer_runs_counts_as_taken_out(clone: Path, change: Any, how: str) -> None:
    path = clone / "tests" / "integration" / "test_nats_integration.py"
    before, after = SKIPS[how]
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    found = check("removed-tests", clone / "reports")
    assert found.state == "failed"
    assert any(line.startswith("test_nats_rag_queue ran in") for line in found.findings)


def test_one_of_two_tests_of_a_name_is_missed(clone: Path, change: Any) -> None:
    twice = next(paths for paths in changes.tests_now().values() if len(paths) > 1)
    (clone / twice[0]).unlink()
    assert any(twice[1] in line for line in check("removed-tests", clone / "reports").findings)


@pytest.mark.parametrize("path", ["schemas/agent_message/1.0.json", "data/contracts/agent_message/1.0"])
def test_a_contract_that_is_taken_out_is_refused(clone: Path, change: Any, path: str) -> None:
    one = clone / path if path.endswith(".json") else next((clone / path / "valid").iterdir())
    one.unlink()
    found = check("released", clone / "reports")
    assert found.state == "failed"
    assert found.findings[0].startswith(str(one.relative_to(clone)))
    assert found.findings[0].endswith("is missing now")
    assert found.remedy.startswith("git checkout ")


def test_a_guide_that_is_deleted_or_a_file_that_moves_away_is_no_renewal(clone: Path, change: Any) -> None:
    (clone / "kit/nats/store.py").rename(clone / "kit/otel/store.py")
    (clone / "notebooks/02_nats.ipynb").unlink()
    change()
    findings = check("guides", clone / "reports").findings
    assert [line.partition(" ")[0] for line in findings] == ["kit/nats/", "kit/otel/"]


@pytest.mark.parametrize("base", ["main", ""])
def test_a_branch_without_commits_changes_what_is_not_committed_yet(clone: Path, change: Any, base: str) -> None:
    assert changes.changed_since(base).files == frozenset()
    (clone / "kit" / "münze.py").write_text("")
    assert changes.changed_since(base).files == {"kit/münze.py"}
    assert environment.commit().endswith(", with changes")


def test_a_base_that_is_not_there_says_how_to_fetch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for how in ({"base": "nowhere"}, {}):
        monkeypatch.setenv("KIT_BASE", "nowhere")
        with pytest.raises(ConfigurationError, match="git fetch origin nowhere"):
            changes.changed_since(**how)


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", "3", "{}", '{"notebook": 3}', '{"commit": "0123456789"}', "\udcff"]
)
def test_evidence_that_cannot_be_read_measures_nothing(tmp_path: Path, body: str) -> None:
    write_report(tmp_path)
    for name in ("tests.json", "33_benchmark_otel.json", "gates.json", "progress.json", "other.json"):
        (tmp_path / name).write_bytes(body.encode(errors="surrogateescape"))
    for name in ("tests", "coverage", "duration", "report", "targets"):
        found = check(name, tmp_path)
        assert (found.state, bool(found.remedy)) == ("not measured", True), name
    from kit.lab import progress, traceability
    from kit.lab.gates import render

    assert "Not judged yet" in render.as_section(tmp_path)
    assert traceability.last_verdicts(tmp_path)(traceability.requirements()[66]) == "not measured"
    assert progress.read_recorded(tmp_path) == {}


@pytest.mark.parametrize(
    ("notebook", "key", "value"),
    [
        (0, "environment", {}),
        (0, "records", None),
        (0, "records", [{}]),
        (0, "environment", {"commit": COMMIT}),
        (1, "ratio", {"value": 1.0}),
        (1, "measured", "fast"),
        (1, "name", None),
    ],
)
def test_a_report_that_lacks_something_measures_nothing(tmp_path: Path, notebook: int, key: str, value: Any) -> None:
    row = verdicts()[0] | {key: value}
    write_report(tmp_path, **{"33_benchmark_otel": {"records": [{"verdicts": [row]}]} if notebook else {key: value}})
    assert check("report", tmp_path).findings == ("33_benchmark_otel",)
    assert check("targets", tmp_path).state == "not measured"


def test_a_baseline_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for body in ("{", "[]", '{"a": 1}', '{"a": {"runs": [{}]}}'):
        (tmp_path / "baseline.json").write_text(body)
        found = check("baseline", tmp_path)
        assert (found.state, found.findings[0].endswith("git checkout reports/baseline.json restores it")) == (
            "failed",
            True,
        )


def test_a_stale_report_holds_no_ratio_and_misses_no_target(tmp_path: Path) -> None:
    (tmp_path / "baseline.json").write_text("{}")
    write_report(tmp_path, "fedcba9876", **{"33_benchmark_otel": {"records": [{"verdicts": verdicts("missed")}]}})
    for name in ("baseline", "targets"):
        assert "stale: recorded at commit fedcba9876" in check(name, tmp_path).summary, name


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"target": 1.0}, "judged by 1.00 s, the specification's target is 10.0 ms"),
        ({"measured": 0.02}, "agent messaging latency: 20.0 ms, target 10.0 ms"),
        ({"better": "higher"}, "agent messaging latency: 5.00 ms, target 10.0 ms"),
    ],
)
def test_a_loosened_target_or_a_verdict_that_its_number_denies_is_refused(
    tmp_path: Path, changed: dict[str, Any], finding: str
) -> None:
    rows = verdicts()
    rows[0] |= changed
    write_report(tmp_path, **{"33_benchmark_otel": {"records": [{"verdicts": rows}]}})
    found = check("targets", tmp_path)
    assert found.state == "failed"
    assert any(finding in line for line in found.findings)


def test_no_notebooks_are_no_report(clone: Path, change: Any) -> None:
    for path in (clone / "notebooks").glob("*.ipynb"):
        path.unlink()
    assert check("report", clone / "reports").state == "not measured"


def test_tests_that_did_not_run_are_named(tmp_path: Path) -> None:
    write_tests(tmp_path)
    body = json.loads((tmp_path / "tests.json").read_text())
    lost = "tests/test_gates.py::test_tests_that_did_not_run_are_named"
    del body["outcomes"][lost]
    (tmp_path / "tests.json").write_text(json.dumps(body))
    found = check("tests", tmp_path)
    assert (found.state, found.findings) == ("not measured", (lost.partition("::")[2],))


def test_files_that_the_whole_suite_leaves_out_need_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tests(tmp_path)
    apart = {"test_a_drill": ["tests/drills_short.py"]}
    monkeypatch.setattr(integration, "tests_now", lambda: changes.tests_now() | apart)
    assert check("tests", tmp_path).state == "passed"


@pytest.mark.parametrize(
    "link",
    [
        "[a](nowhere.md)", '[a](nowhere.md "title")', "[a](<nowhere.md>)", "![a](nowhere.png)", "[a](#no-heading)",
        "[a](CONTRIBUTING.md#no-heading)", '<img src="nowhere.png">', "<a href='nowhere.md'>a</a>", "[a]: nowhere.md",
        "[`a`](nowhere.md)",
    ],
)  # fmt: skip
def test_a_link_without_a_target_is_refused(clone: Path, change: Any, link: str) -> None:
    assert check("links", clone / "reports").state == "passed"
    path = clone / "README.md"
    path.write_text(f"{path.read_text()}\n{link}\n\n```\n{link}\n```\n")
    found = check("links", clone / "reports")
    assert (found.state, len(found.findings)) == ("failed", 1)
    assert found.findings[0].startswith("README.md: ")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("notebooks/02_nats.ipynb", "links"),
        ("schemas/agent_message/1.0.json", "contracts"),
        ("schemas/released.json", "contracts"),
    ],
)
@pytest.mark.parametrize("text", ["", "{", "[[", "\x00"])
def test_a_file_that_is_damaged_is_named_by_the_check_that_reads_it(
    clone: Path, change: Any, path: str, name: str, text: str
) -> None:
    (clone / path).write_text(text)
    (gate,) = run_gates([name], reports=clone / "reports")
    assert gate.checks[0].state == "failed"
    assert gate.checks[0].findings[0].startswith(path)
    assert "restore" in gate.checks[0].remedy


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    where = ["--reports", str(tmp_path), "--junit", str(tmp_path / "file" / "gates.xml")]
    assert main(["gates", "tests", *where]) == 2
    assert capsys.readouterr().err.startswith("kit gates: ")
