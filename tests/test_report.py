"""The report runs notebooks once, compares those outputs, renders them, and says plainly what failed."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from kit.errors import ReportError
from kit.lab.report import Options, Outcome, run_report
from kit.lab.report.run import Report

STEADY = [
    "# The steady one\n\nDoes **the same** come out?\n\nMore.",
    "## First\n\n<details><summary>Solution</summary>\n\nhidden\n\n</details>\n\n[next](02_broken.ipynb#there)",
    ("n: int = 3  # messages\nname: str = 'acme'  # whose", ["parameters"]),
    "from kit.lab import Headline, charts, record\nfrom kit.lab.targets import Ratio, Target, Verdicts",
    "print('took 12.3 ms at 2025-01-01T10:00:00Z')\nlist(range(n)), name",
    "charts.bars({'kit': 1.0 + n}, title='Bars of the kit', unit='µs')",
    "record('numbers', {'n': n}, headlines=[Headline('recall@5', 0.91, beside='before 0.79')])\n"
    "ratio = Ratio(value=1.2, low=1.1, high=1.3)\n"
    "Verdicts([Target('queue', 10.0, unit='/s', better='higher').verdict(12.0, ratio=ratio)]).record()",
    ("'a solution'", ["solution"]),
]
BROKEN = ["# The broken one\n\nWhere does it stop?", "'before'", "raise ValueError('no <b>luck</b>')", "'after'"]


def _write(path: Path, cells: list[Any]) -> None:
    """Write a notebook: text with a # first is Markdown, a pair is code with its tags."""
    made = []
    for number, cell in enumerate(cells):
        source, tags = cell if isinstance(cell, tuple) else (cell, [])
        new = new_markdown_cell if source.startswith("#") else new_code_cell
        made.append(new(source, id=f"cell-{number}", metadata={"tags": tags} if tags else {}))
    nbformat.write(new_notebook(cells=made), path)


def _outputs(path: Path) -> str:
    return json.dumps([cell.get("outputs") for cell in nbformat.read(path, 4).cells])


class Project:
    """A folder with notebooks, and its report."""

    def __init__(self, folder: Path) -> None:
        self.notebooks, self.reports = folder / "notebooks", folder / "reports"
        self.notebooks.mkdir()
        sanitize = Path(__file__).parent.parent / "notebooks" / "sanitize.cfg"
        (self.notebooks / "sanitize.cfg").write_text(sanitize.read_text())
        self.said = self.log = ""

    def run(self, **options: Any) -> Report:
        out = io.StringIO()
        try:
            return run_report(Options(folder=self.notebooks, output=self.reports, **options), out)
        finally:
            self.said = out.getvalue()

    def page(self, name: str) -> str:
        return (self.reports / f"{name}.html").read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two notebooks, one of which fails; references written, then compared once."""
    made = Project(tmp_path_factory.mktemp("project"))
    _write(made.notebooks / "01_steady.ipynb", STEADY)
    _write(made.notebooks / "02_broken.ipynb", BROKEN)
    made.run(update="differing")
    return made


@pytest.fixture(scope="module")
def compared(project: Project) -> Report:
    report = project.run()
    project.log = project.said
    return report


def test_an_update_writes_clean_outputs_back_and_leaves_a_failed_notebook_alone(project: Project) -> None:
    steady = nbformat.read(project.notebooks / "01_steady.ipynb", 4)
    assert dict(steady.metadata) == {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert {key for cell in steady.cells for key in cell.metadata} == {"tags"}
    assert [cell.id for cell in steady.cells] == [f"cell-{number}" for number in range(len(STEADY))]
    assert "12.3 ms" in _outputs(project.notebooks / "01_steady.ipynb")
    assert nbformat.read(project.notebooks / "02_broken.ipynb", 4).cells[1].execution_count is None


def test_the_second_run_matches_the_first(compared: Report) -> None:
    steady, broken = compared.outcomes
    assert (steady.comparison, steady.verdict, steady.good) == ("same", "matches its reference", True)
    assert steady.title == "The steady one"
    assert steady.question == "Does the same come out?"
    assert steady.cells == 6
    assert [record["name"] for record in steady.records] == ["numbers", "targets"]
    assert len(steady.figures) == 1
    assert broken.failure is not None
    assert not compared.good


def test_a_failure_names_its_cell_and_its_reason_everywhere(project: Project, compared: Report) -> None:
    failure = compared.outcomes[1].failure
    assert failure is not None
    assert (failure.where, failure.error, failure.message) == ("in cell [2]", "ValueError", "no <b>luck</b>")
    assert failure.cell == 2
    page = project.page("02_broken")
    assert "Failed in cell [2]" in page
    assert "no &lt;b&gt;luck" in page
    assert '<a href="#code-1">Go to the cell</a>' in page
    assert re.search(r'class="cell code[^"]*tag-kit-failed" id="code-1"', page)
    assert "papermill" not in page
    index = compared.index.read_text()
    assert "02_broken failed." in index
    assert "no &lt;b&gt;luck" in index
    body = json.loads((project.reports / "02_broken.json").read_text())
    assert body["failure"]["number"] == 2
    assert body["good"] is False


def test_a_page_has_its_contents_its_solutions_folded_and_links_to_pages(project: Project, compared: Report) -> None:
    page = project.page("01_steady")
    assert '<li><a href="#First">First</a></li>' in page
    assert '<details class="folded"><summary>Solution</summary>' in page
    assert re.search(r"<details><summary>Solution</summary>\s*<p>hidden</p>\s*</details>", page)
    assert 'href="02_broken.html#there"' in page
    assert 'aria-label="Bars of the kit"' in page
    assert "<b>0.910</b> recall@5 <i>before 0.79</i>" in page
    assert "1 of 1 target met" in page


def test_the_front_page_says_what_ran_with_its_numbers_and_pictures(compared: Report) -> None:
    index = compared.index.read_text()
    for expected in (
        "matches its reference", "The steady one", "Does the same come out?", "recall@5 · before 0.79", "0.910",
        "✓ met", "queue", "01_steady.html", 'aria-label="Bars of the kit"', "Timeline of 2 notebooks",
    ):  # fmt: skip
        assert expected in index, expected


def test_a_ratio_that_got_worse_than_the_baseline_is_no_good_report(project: Project, compared: Report) -> None:
    (change,) = compared.changes
    assert (change.name, change.state) == ("01_steady/queue", "new")
    baseline = project.reports / "baseline.json"
    baseline.write_text(json.dumps({"01_steady/queue": {"value": 0.7, "low": 0.65, "high": 0.75}}))
    try:
        again = project.run(only=("steady",), run=False, check=False)
    finally:
        baseline.unlink()
    assert [change.state for change in again.changes] == ["worse"]
    assert not again.good
    assert "ratio worse than its baseline: 01_steady/queue: 1.20 × [1.10, 1.30], baseline 0.700" in project.said
    index = again.index.read_text()
    assert "1 ratio worse than the baseline." in index
    assert "✗ worse" in index


def test_no_page_asks_for_anything_from_anywhere(project: Project, compared: Report) -> None:
    for path in project.reports.glob("*.html"):
        page = path.read_text()
        assert "default-src 'none'" in page
        assert not re.search(r"<script|<link|<iframe|@import|url\(\s*['\"]?(https?:)?//", page), path
        assert not re.search(r"<(?:img|source|video|audio)\b[^>]*\bsrc=\"(?!data:)", page), path


def test_ids_of_inlined_pictures_do_not_collide(compared: Report) -> None:
    found = re.findall(r'\bid="([^"]+)"', compared.index.read_text())
    assert len(found) == len(set(found))


def test_records_and_verdicts_are_kept_beside_the_page(project: Project, compared: Report) -> None:
    body = json.loads((project.reports / "01_steady.json").read_text())
    assert body["records"][0]["values"] == {"n": 3}
    assert body["records"][1]["verdicts"][0]["met"] is True
    assert body["environment"]["python"].startswith("CPython")


def test_a_log_has_a_line_a_notebook(project: Project, compared: Report) -> None:
    assert "  … 01_steady\n" in project.log
    assert re.search(r"✓ 01_steady +6 cells +[\d.]+ s  \[\d/2\]", project.log)
    assert re.search(r"✗ 02_broken .*failed in cell \[2\]\n +ValueError: no <b>luck</b>", project.log)
    assert "1 of 2 notebook(s) good" in project.log
    assert "\r" not in project.log


def test_it_is_rendered_again_without_running(project: Project, compared: Report) -> None:
    (project.reports / "01_steady.html").unlink()
    before = _outputs(project.reports / "executed" / "01_steady.ipynb")
    again = project.run(only=("steady",), run=False)
    assert again.good
    assert again.outcomes[0].seconds == compared.outcomes[0].seconds
    assert "The steady one" in project.page("01_steady")
    assert [outcome.name for outcome in again.earlier] == ["02_broken"]
    index = again.index.read_text()
    assert index.count("from an earlier run") == 1
    assert "failed in cell [2]" in index
    assert "Timeline of 1 notebooks" in index
    assert _outputs(project.reports / "executed" / "01_steady.ipynb") == before
    with pytest.raises(ReportError, match="02_broken was not executed yet"):
        run_report(
            Options(folder=project.notebooks, output=project.reports / "nowhere", only=("02",), run=False),
            io.StringIO(),
        )


# --- what differs -----------------------------------------------------------------------------------------------


def _value(cells: list[Any]) -> None:
    cells[2].outputs[1].data["text/plain"] = "([0, 1, 2], 'globex')"


def _volatile(cells: list[Any]) -> None:
    cells[2].outputs[0].text = "took 99 µs at 1999-12-31T23:59:59.123Z\n"
    bundle = cells[3].outputs[0].data
    moved = re.sub(r'd="[^"]*"', 'd="M 0 0"', bundle["image/svg+xml"])
    bundle["image/svg+xml"] = moved.replace("4.00 µs", "9.00 µs")
    cells[4].outputs[0].data["application/vnd.kit.record+json"]["values"] = {"n": 4}


def _words(cells: list[Any]) -> None:
    bundle = cells[3].outputs[0].data
    bundle["image/svg+xml"] = bundle["image/svg+xml"].replace(">kit<", ">other<")


def _missing(cells: list[Any]) -> None:
    cells[2].outputs = cells[2].outputs[:1]


def _stripped(cells: list[Any]) -> None:
    for cell in cells:
        cell.outputs, cell.execution_count = [], None


def _source(cells: list[Any]) -> None:
    cells[2].source = "print('else')"


@pytest.fixture(scope="module")
def spoiled(project: Project, compared: Report, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The executed notebook under several names, each with another reference: comparing needs no second execution."""
    made = Project(tmp_path_factory.mktemp("spoiled"))
    (made.reports / "executed").mkdir(parents=True)
    for change in (_value, _volatile, _words, _missing, _stripped, _source):
        name = change.__name__.removeprefix("_")
        for folder, suffix in (("notebooks", "ipynb"), ("reports/executed", "ipynb"), ("reports", "json")):
            original = project.notebooks.parent / folder / f"01_steady.{suffix}"
            (made.notebooks.parent / folder / f"{name}.{suffix}").write_bytes(original.read_bytes())
        notebook = nbformat.read(made.notebooks / f"{name}.ipynb", 4)
        change([cell for cell in notebook.cells if cell.cell_type == "code"])
        nbformat.write(notebook, made.notebooks / f"{name}.ipynb")
    return made


@pytest.fixture(scope="module")
def judged(spoiled: Project) -> dict[str, Outcome]:
    report = spoiled.run(run=False)
    assert not report.good
    return {outcome.name: outcome for outcome in report.outcomes}


def test_another_value_differs_and_the_page_shows_both(spoiled: Project, judged: dict[str, Outcome]) -> None:
    outcome = judged["value"]
    assert outcome.comparison == "differs"
    assert [mismatch.cell for mismatch in outcome.mismatches] == [2]
    assert "globex" in outcome.mismatches[0].detail
    page = spoiled.page("value")
    assert "1 cell(s) differ" in page
    assert "'globex'" in page
    assert re.search(r'tag-kit-differs" id="code-2"', page)
    assert "≠ value: 1 cell(s) differ" in spoiled.said
    assert "differ from the reference" in (spoiled.reports / "index.html").read_text()


def test_times_timestamps_and_pictures_strokes_do_not_differ(judged: dict[str, Outcome]) -> None:
    assert judged["volatile"].comparison == "same", judged["volatile"].mismatches


def test_the_words_of_a_picture_are_compared(judged: dict[str, Outcome]) -> None:
    assert [mismatch.cell for mismatch in judged["words"].mismatches] == [3]


def test_an_output_that_is_missing_differs(judged: dict[str, Outcome]) -> None:
    assert judged["missing"].comparison == "differs"


def test_a_stripped_reference_is_none_rather_than_equal_to_everything(
    spoiled: Project, judged: dict[str, Outcome]
) -> None:
    assert judged["stripped"].comparison == "no reference"
    assert not judged["stripped"].good
    assert "✗ stripped: no reference outputs; `kit report --update` writes them" in spoiled.said


def test_a_changed_source_is_not_compared_with_an_old_execution(judged: dict[str, Outcome]) -> None:
    assert "execute the notebook again" in judged["source"].mismatches[0].detail


def test_without_check_nothing_is_compared(spoiled: Project, judged: dict[str, Outcome]) -> None:
    report = spoiled.run(only=("value",), run=False, check=False)
    assert report.outcomes[0].verdict == "executed, not compared"
    assert report.good


def test_an_update_replaces_what_differs_and_nothing_else(spoiled: Project, judged: dict[str, Outcome]) -> None:
    before = (spoiled.notebooks / "volatile.ipynb").read_bytes()
    report = spoiled.run(only=("value", "stripped", "volatile"), run=False, update="differing")
    assert report.good
    assert {outcome.name: outcome.updated for outcome in report.outcomes} == {
        "value": True,
        "stripped": True,
        "volatile": False,
    }
    assert (spoiled.notebooks / "volatile.ipynb").read_bytes() == before
    assert "globex" not in _outputs(spoiled.notebooks / "value.ipynb")
    assert _outputs(spoiled.notebooks / "stripped.ipynb") == _outputs(spoiled.notebooks / "value.ipynb")


def test_plain_nbval_agrees(project: Project, compared: Report) -> None:
    """`pytest --nbval` on the same notebooks, with the conftest that they bring, finds nothing either."""
    conftest = Path(__file__).parent.parent / "notebooks" / "conftest.py"
    (project.notebooks / "conftest.py").write_text(conftest.read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--nbval"]
    command += ["--rootdir", str(project.notebooks), "--nbval-current-env"]
    done = subprocess.run(
        [*command, str(project.notebooks / "01_steady.ipynb")], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "6 passed" in done.stdout
