"""The specification and the kit stay together: what the document names is met, and what the matrix points to exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kit import codec
from kit.catalogue import METRICS, OPERATIONS, SPANS
from kit.errors import ConfigurationError
from kit.lab import traceability as spec
from kit.lab.gates import evidence
from kit.lab.project import project_root


def test_everything_that_the_specification_names_is_met_by_a_requirement() -> None:
    counts = {"subjects": 29, "spans": 28, "metrics": 35, "schemas": 9, "named schemas": 4}
    counts |= {"tests": 15, "benchmarks": 9}
    assert {kind: len(spec.find_names(kind)) for kind in counts} == counts
    assert set(spec.find_names("subjects")) <= {row.prefix for row in OPERATIONS}
    assert set(spec.find_names("spans")) <= {row.name for row in SPANS}
    assert set(spec.find_names("metrics")) <= {row.name for row in METRICS}
    met = {name for requirement in spec.requirements() for name in (*requirement.rows, *requirement.tests)}
    rows = {row.prefix: row.name for row in OPERATIONS}
    for kind in counts:
        assert {rows.get(name, name) for name in spec.find_names(kind)} <= met, kind


def test_everything_that_the_matrix_points_to_exists() -> None:
    found = spec.requirements()
    assert [requirement.number for requirement in found] == list(range(1, 98))
    gone = {requirement.number: missing for requirement in found if (missing := spec.find_missing(requirement))}
    assert not gone


def test_a_requirement_that_points_to_nothing_is_missing() -> None:
    lost = spec.Requirement(number=1, group="", text="", tests=("test_of_nothing",), notebooks=("99_nowhere",))
    assert spec.state(lost) == "✗ missing: test test_of_nothing, notebook 99_nowhere"
    partly = spec.Requirement(number=1, group="", text="", state="partly", note="half of it")
    assert spec.state(partly) == "◐ partly: half of it"


def test_every_module_of_the_specification_has_its_place() -> None:
    gone = [place for place in spec.modules().values() if not (project_root() / place).exists()]
    assert not gone
    text = spec.document()
    for module in spec.modules():
        assert module.rstrip("/").rpartition("/")[2] in text


def test_every_field_of_the_specifications_schemas_is_in_ours() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```", spec.document(), flags=re.MULTILINE | re.DOTALL)
    examples = [json.loads(block) for block in blocks]
    assert len(examples) == 9
    for example in examples:
        name = example["message_type"]
        for version in codec.versions(name):
            assert set(example["data"]) <= set(codec.schema(name, version)["properties"]), f"{name} {version}"


def test_the_specifications_commands_are_translated() -> None:
    commands = spec.commands()
    for command in re.findall(r"^(?:pytest|git checkout) .*$", spec.document(), flags=re.MULTILINE):
        assert command in commands, command
    readme = (project_root() / "README.md").read_text()
    for ours in commands.values():
        assert ours in readme, ours
        for word in shlex.split(ours)[1:]:
            assert not word.startswith("tests/") or list(project_root().glob(word.rstrip("/"))), ours


@pytest.mark.parametrize(
    ("command", "test"),
    [
        ("pytest src/tests/integration_tests/test_*_integration.py -v", "test_nats_agent_messaging"),
        ("pytest src/tests/benchmarks/ --benchmark-json=benchmark_results.json", "benchmark_agent_messaging_latency"),
    ],
)
def test_a_translated_command_starts(tmp_path: Path, command: str, test: str) -> None:
    ours = spec.commands()[command].replace("reports/", f"{tmp_path}/")
    words = [part for word in shlex.split(ours)[1:] for part in _expanded(word)]
    run = [sys.executable, "-m", "pytest", *words, "--collect-only", "-q", "-n", "0"]
    done = subprocess.run(run, cwd=project_root(), capture_output=True, text=True, check=False, timeout=240)
    assert test in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


def _expanded(word: str) -> list[str]:
    paths = [str(path) for path in project_root().glob(word)] if "*" in word else []
    return sorted(paths) or [word]


def test_every_success_criterion_is_judged_by_what_exists() -> None:
    found = spec.criteria()
    assert len(found) == 19
    assert [one.group for one in found].count("Functional") == 6
    assert [(one.text, gone) for one in found if (gone := spec.find_missing(one))] == []
    assert all(one.checks or one.tests or one.rows for one in found)
    assert {entry["text"] for entry in spec._data()["criterion"]} == {one.text for one in found}
    assert len(spec.as_criteria()) == 19


def test_every_example_of_the_specification_is_shown_beside_ours() -> None:
    notebook = json.loads((project_root() / "notebooks" / "04_specification.ipynb").read_text())
    source = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    shown = {spec.example(title) for title in re.findall(r'^await compare\("([^"]+)"', source, flags=re.MULTILINE)}
    examples = re.findall(r"^```python\n(.*?)^```", spec.document(), flags=re.MULTILINE | re.DOTALL)
    assert len(examples) == 16
    assert [code for code in examples if code not in shown] == []


async def test_an_example_is_shown_beside_what_runs_here() -> None:
    async def answer() -> int:
        return 42

    found = await spec.compare("**3. Agent Memory Updates**", answer)
    assert "async def update_memory(self, memory_item: MemoryItem):" in found.theirs
    assert "return 42" in found.ours
    assert (found.title, found.result) == ("3. Agent Memory Updates", 42)
    assert "<code>42</code>" in found._repr_html_()
    with pytest.raises(ConfigurationError, match="no example 0 below 'nowhere'"):
        spec.example("nowhere")


def test_the_last_verdict_comes_from_evidence_of_this_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "commit", lambda: "0123456789")
    one = spec.Requirement(number=1, group="", text="", tests=("test_it",), checks=("lint",))
    judge = lambda: spec.last_verdicts(tmp_path)(one)  # noqa: E731
    assert judge() == "not measured"
    outcomes = {"tests/a.py::test_it[1]": "passed", "tests/a.py::test_it[2]": "passed"}
    tests = {"commit": "0123456789", "outcomes": outcomes, "seconds": 1.0, "integration_seconds": 1.0}
    tests |= {"coverage": None, "second_try": []}
    (tmp_path / evidence.TESTS).write_text(json.dumps(tests))
    assert judge() == "not measured"
    gates = {
        "commit": "0123456789",
        "gates": [{"gate": "review", "title": "", "checks": [{"name": "lint", "state": "passed"}]}],
    }
    (tmp_path / "gates.json").write_text(json.dumps(gates))
    assert judge() == "passed"
    outcomes["tests/a.py::test_it[1]"] = "failed"
    (tmp_path / evidence.TESTS).write_text(json.dumps(tests))
    assert judge() == "failed: test_it"
    outcomes.update(dict.fromkeys(outcomes, "skipped"))
    (tmp_path / evidence.TESTS).write_text(json.dumps(tests))
    assert judge() == "skipped: test_it"
    (tmp_path / evidence.TESTS).write_text(json.dumps(tests | {"commit": "fedcba9876"}))
    assert judge() == "not measured"


def test_the_page_has_every_requirement(tmp_path: Path) -> None:
    page = spec.write_page(tmp_path).read_text()
    assert "of 97 requirements are alive" in page
    assert page.count("<tr") >= 98 + 20
    assert page.count("– not measured") >= 17
