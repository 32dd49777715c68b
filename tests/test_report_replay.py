"""nbval's comparison against outputs that are there already: its markers, its sanitising, and no kernel."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from kit.lab.report import execute
from kit.lab.report.replay import ReplayKernel

pytest_plugins = ["pytester"]


def _cell(source: str, *outputs: Any, count: int = 1, tags: list[str] | None = None) -> Any:
    metadata = {"tags": tags} if tags else {}
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata=metadata)


def _text(text: str) -> Any:
    return new_output("stream", text=text)


def _error() -> Any:
    return new_output("error", ename="ValueError", evalue="no luck", traceback=["ValueError: no luck"])


@pytest.fixture
def compare(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compare committed cells with executed ones; return what each cell's comparison said."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def compared(committed: list[Any], executed: list[Any], sanitize: str = "") -> dict[int, dict[str, Any]]:
        folder = pytester.path
        (folder / "executed").mkdir()
        nbformat.write(new_notebook(cells=committed), folder / "x.ipynb")
        nbformat.write(new_notebook(cells=executed), folder / "executed" / "x.ipynb")
        (folder / "sanitize.cfg").write_text(sanitize)
        options = ["-p", "nbval.plugin", "-p", "kit.lab.report.replay", "-p", "no:cacheprovider", "x.ipynb"]
        options += ["--kit-executed=executed", "--kit-results=results.json", "--nbval-sanitize-with=sanitize.cfg"]
        pytester.inline_run(*options)
        cells = json.loads((folder / "results.json").read_text())
        assert all(cell["notebook"] == "x" for cell in cells)
        return {cell["cell"]: cell for cell in cells}

    return compared


def test_each_cell_is_compared_by_itself(compare: Any) -> None:
    committed = [_cell("1", _text("a\n")), _cell("2", _text("b\n")), _cell("3", _text("c\n"))]
    executed = [_cell("1", _text("a\n")), _cell("2", _text("other\n")), _cell("3", _text("c\n"))]
    found = compare(committed, executed)
    assert [found[cell]["outcome"] for cell in range(3)] == ["passed", "failed", "passed"]
    assert "other" in found[1]["detail"]
    assert "Cell outputs differ" in found[1]["detail"]


def test_injected_parameters_do_not_shift_the_cells(compare: Any) -> None:
    executed = [_cell("n = 2", tags=["injected-parameters"]), _cell("1", _text("a\n"))]
    assert compare([_cell("1", _text("a\n"))], executed)[0]["outcome"] == "passed"


def test_markers_and_sanitising_are_nbvals_own(compare: Any) -> None:
    committed = [
        _cell("1", _text("a\n"), tags=["nbval-ignore-output"]),
        _cell("2", _text("b\n"), tags=["nbval-skip"]),
        _cell("3", _text("took 3 ms\n")),
    ]
    executed = [_cell("1", _text("x\n")), _cell("2", _text("y\n")), _cell("3", _text("took 5 ms\n"))]
    found = compare(committed, executed, r"regex: \d+ ms" + "\nreplace: TIME\n")
    assert [found[cell]["outcome"] for cell in range(3)] == ["passed", "skipped", "passed"]


def test_an_error_that_was_not_expected_fails(compare: Any) -> None:
    committed = [_cell("1 / 0", _error()), _cell("2", _error(), tags=["raises-exception"])]
    found = compare(committed, committed)
    assert found[0]["outcome"] == "failed"
    assert "Cell execution caused an exception" in found[0]["detail"]
    assert found[1]["outcome"] == "passed"


def test_outputs_and_pictures_of_a_cell_are_compared_by_kind(compare: Any) -> None:
    def shown(words: str, stroke: str) -> Any:
        svg = f'<svg><path d="{stroke}"/><text>{words}</text></svg>'
        return new_output("display_data", data={"image/svg+xml": svg, "text/plain": "Chart: x"})

    committed = [_cell("1", shown("recall", "M 0 0")), _cell("2", shown("recall", "M 0 0"))]
    executed = [_cell("1", shown("recall", "M 9 9")), _cell("2", shown("precision", "M 0 0"))]
    found = compare(committed, executed)
    assert [found[cell]["outcome"] for cell in range(2)] == ["passed", "failed"]


def test_the_kernel_answers_only_for_the_source_it_ran() -> None:
    kernel = ReplayKernel([_cell("1", _text("a"))])
    assert kernel.is_alive()
    assert kernel.execute_cell_input("1") == "cell-0"
    assert kernel.get_message("iopub")["content"] == {"name": "stdout", "text": "a"}
    kernel.await_reply("cell-0")
    kernel.await_idle("cell-0")
    with pytest.raises(RuntimeError, match="execute the notebook again"):
        kernel.execute_cell_input("2")
    kernel.stop()


# --- the executing process, in this one -------------------------------------------------------------------------


def test_jobs_go_in_and_events_come_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat.write(new_notebook(cells=[new_code_cell("1"), new_code_cell("1 / 0")]), tmp_path / "in.ipynb")
    job = {"input": str(tmp_path / "in.ipynb"), "output": str(tmp_path / "out.ipynb"), "parameters": {}}
    job |= {"timeout": 60, "cwd": str(tmp_path), "kernel": "python3"}
    broken = {**job, "input": str(tmp_path / "nowhere.ipynb")}
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{json.dumps(job)}\n{json.dumps(broken)}\n"))
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(execute, "_channel", lambda: events.append)
    assert execute.main() == 0
    assert [event["event"] for event in events] == ["ready", "cell", "cell", "done", "done"]
    failure = events[3]["failure"]
    assert (failure["error"], failure["message"], failure["cell"]) == ("ZeroDivisionError", "division by zero", 1)
    assert events[4]["failure"]["error"] == "FileNotFoundError"
    assert events[4]["failure"]["cell"] is None
