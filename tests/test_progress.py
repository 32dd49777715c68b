"""Weekly progress is read from a history: what stood at the end of each week, and what of it was new."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from kit.catalogue import METRICS, OPERATIONS, SPANS
from kit.errors import ConfigurationError
from kit.lab import progress
from kit.lab.cli import main
from kit.lab.gates import changes, evidence
from kit.lab.project import project_root

CATALOGUE = """
class Operation:
    served: bool = False

A = Operation(name="A", served=True)
B = Operation(name="B")
SPAN = _span("a.b")
COUNT = _count("a.c")
"""


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with three commits in two weeks, a week without any between them."""
    monkeypatch.setattr(changes, "project_root", lambda: tmp_path)

    def commit(day: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        when = {"GIT_AUTHOR_DATE": f"{day}T12:00:00", "GIT_COMMITTER_DATE": f"{day}T12:00:00"}
        for arguments in (["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
            subprocess.run(["git", *arguments], cwd=tmp_path, check=True, env={**os.environ, **when})

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    commit("2026-03-05", {"kit/catalogue.py": CATALOGUE, "tests/test_a.py": "def test_one(): pass\n"})
    commit(
        "2026-03-08", {"schemas/note/1.0.json": "{}", "tests/test_a.py": "def test_one(): pass\ndef test_two(): ..."}
    )
    verdicts = [{"name": "fast", "met": True, "goal": False}, {"name": "faster", "met": False, "goal": False}]
    verdicts.append({"name": "fastest", "met": True, "goal": True})
    data = {"application/vnd.kit.record+json": {"name": "t", "verdicts": verdicts}}
    notebook = {"cells": [{"cell_type": "code", "source": [], "outputs": [{"data": data}]}]}
    served = CATALOGUE.replace('name="B"', 'name="B", served=True')
    commit("2026-03-16", {"kit/catalogue.py": served, "notebooks/01.ipynb": json.dumps(notebook)})
    return tmp_path


def test_weeks_show_what_stood_and_what_was_new(history: Path) -> None:
    first, third = progress.read_weeks()
    assert (first.number, first.commits, str(first.monday)) == (1, 2, "2026-03-02")
    assert (third.number, third.commits, str(third.monday)) == (3, 1, "2026-03-16")
    assert first.alive["operations"] == {"A"}
    assert first.alive["tests"] == {"test_one", "test_two"}
    assert first.alive["message types"] == {"note"}
    assert (third.alive["operations"], third.new["operations"]) == ({"A", "B"}, {"B"})
    assert (third.new["notebooks"], third.new["targets met"], third.new["tests"]) == ({"01"}, {"fast"}, frozenset())
    assert [week.number for week in progress.read_weeks(until=2)] == [1]


def test_coverage_is_what_was_recorded(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = history / "reports"
    reports.mkdir()
    with pytest.raises(ConfigurationError, match="no coverage to record"):
        progress.record(reports)
    outcomes = {"a": "passed", "b": "skipped"}
    seen = {"commit": "0123456789", "coverage": 91.5, "outcomes": outcomes, "second_try": []}
    (reports / "tests.json").write_text(json.dumps(seen | {"seconds": 1.0, "integration_seconds": 1.0}))
    for now in ("fedcba9876", "0123456789, with changes"):
        monkeypatch.setattr(evidence, "commit", lambda now=now: now)
        with pytest.raises(ConfigurationError, match="the last run is stale"):
            progress.record(reports)
    monkeypatch.setattr(evidence, "commit", lambda: "0123456789")
    assert progress.record(reports) == "week 3: coverage 91.5 %, 1 tests passed"
    table = progress.as_table(progress.read_weeks(reports=reports))
    assert list(table["coverage"]) == ["not recorded", "91.5 %"]
    assert table.loc["week 3", "operations"] == "2 (+1)"


def test_the_page_names_what_is_new(history: Path) -> None:
    reports = history / "reports"
    reports.mkdir()
    page = progress.write_page(progress.read_weeks(), reports).read_text()
    assert "Week 3, from 16 March 2026" in page
    assert "<code>test_two</code>" in page
    assert "<svg" in page


def test_without_a_history_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "project_root", lambda: tmp_path)
    assert main(["progress", "--reports", str(tmp_path)]) == 2


def test_the_rows_of_the_catalogue_are_counted_as_the_catalogue_counts_them() -> None:
    rows = progress.catalogue_rows((project_root() / "kit" / "catalogue.py").read_text())
    assert {kind: len(names) for kind, names in rows.items()} == {
        "operations": len(OPERATIONS), "spans": len(SPANS), "metrics": len(METRICS),
    }  # fmt: skip
