"""A pytest plugin: nbval's own comparison, against outputs that are there already instead of a kernel's.

    pytest -p nbval.plugin -p kit.lab.report.replay --kit-executed FOLDER --kit-results FILE notebook.ipynb …

For every committed notebook the executed one of the same name answers cell by cell, so that nbval's collection,
its markers and tags, its sanitising and its comparison are those of ``pytest --nbval``, and nothing runs twice.

A picture is compared by its words (title, labels, legend, without numbers): its strokes are the measurement.
Records are not compared: they are numbers for the gates, which know how noisy each of them is.
"""

from __future__ import annotations

import html
import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from kit.lab.records import MIME as RECORD
from kit.lab.report.notebooks import without_machinery

SVG = "image/svg+xml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add where the executed notebooks are, and where the results go."""
    group = parser.getgroup("kit", "comparison of executed notebooks")
    group.addoption("--kit-executed", help="folder with the executed notebooks, by the same file names")
    group.addoption("--kit-results", help="file that the results are written to, as JSON")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a notebook for replay."""
    if file_path.suffix != ".ipynb" or parent.config.option.kit_executed is None:
        return None
    collector: pytest.Collector = ReplayFile.from_parent(parent, path=file_path)
    return collector


def pytest_configure(config: pytest.Config) -> None:
    """Gather what each cell's comparison says."""
    if config.option.kit_results:
        config.pluginmanager.register(_Results(Path(config.option.kit_results)), "kit-results")


class ReplayKernel:
    """Looks like nbval's kernel, and gives back what a cell has put out already."""

    def __init__(self, cells: Iterable[Mapping[str, Any]]) -> None:
        self._cells = [cell for cell in cells if cell["cell_type"] == "code"]
        self._messages: deque[dict[str, Any]] = deque()
        self.at = 0  # which code cell is asked for next

    def execute_cell_input(self, source: str, allow_stdin: bool | None = None) -> str:
        """Line up a cell's outputs as the messages of a kernel, and return the id they answer to."""
        cell = self._cells[self.at] if self.at < len(self._cells) else None
        if cell is None or cell["source"] != source:
            raise RuntimeError(f"the executed notebook has another cell {self.at}: execute the notebook again")
        message_id = f"cell-{self.at}"
        contents = [*map(_as_message, cell["outputs"]), ("status", {"execution_state": "idle"})]
        self._messages = deque(
            {"msg_type": kind, "content": content, "parent_header": {"msg_id": message_id}}
            for kind, content in contents
        )
        return message_id

    def get_message(self, stream: str, timeout: float | None = None) -> dict[str, Any]:
        """Return the next message."""
        return self._messages.popleft()

    def await_reply(self, message_id: str, timeout: float | None = None) -> None:
        """Return at once: it ran long ago."""

    def await_idle(self, message_id: str, timeout: float | None = None) -> None:
        """Return at once."""
        self._messages.clear()

    def is_alive(self) -> bool:
        """Return that it answers."""
        return True

    def stop(self) -> None:
        """Do nothing: there is no process."""


def _as_message(output: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    content = {key: value for key, value in output.items() if key != "output_type"}
    return output["output_type"], content


class ReplayFile(IPyNbFile):  # type: ignore[misc]
    """A committed notebook, its kernel replaced by its execution."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skip_compare: tuple[str, ...] = (*self.skip_compare, RECORD)

    def setup(self) -> None:
        """Load the executed notebook instead of starting a kernel."""
        executed = Path(self.config.option.kit_executed) / self.path.name
        self.kernel = ReplayKernel(without_machinery(nbformat.read(executed, as_version=4)).cells)
        self.setup_sanitize_files()

    def collect(self) -> Iterable[ReplayCell]:
        """Yield nbval's cells, made to compare pictures by their words."""
        for item in super().collect():
            yield ReplayCell.from_parent(
                self, name=item.name, cell_num=item.cell_num, cell=item.cell, options=item.options
            )


class ReplayCell(IPyNbCell):  # type: ignore[misc]
    """One code cell."""

    def runtest(self) -> None:
        """Compare this cell, wherever the ones before it ended."""
        self.parent.kernel.at = self.cell_num
        super().runtest()

    def compare_outputs(self, test: Any, ref: Any, skip_compare: Any = None) -> bool:
        """Compare as nbval does, each picture reduced to its words."""
        same: bool = super().compare_outputs(_worded(test), _worded(ref), skip_compare)
        return same


def _worded(outputs: Iterable[Any]) -> list[Any]:
    """Return outputs with each SVG replaced by its words, and each table without its second form."""
    worded = []
    for output in outputs:
        data = output.get("data", {})
        if SVG in data:
            output = nbformat.from_dict({**output, "data": {**data, SVG: picture_words(data[SVG])}})
        elif "text/html" in data:
            # A table's text is the same table, wrapped where its numbers happen to end.
            output = nbformat.from_dict({**output, "data": {k: v for k, v in data.items() if k != "text/plain"}})
        worded.append(output)
    return worded


def picture_words(svg: str | list[str]) -> str:
    """Return the words of an SVG picture, sorted, one a line; numbers and their units are left out.

    Matplotlib writes a text as ``<text>``, or as paths below a comment that holds it.
    """
    picture = svg if isinstance(svg, str) else "".join(svg)
    texts = re.findall(r"<(?:text|tspan|title)\b[^<>]*>([^<]+)<", picture)
    texts += re.findall(r"<!--((?:(?!-->|<!--).)*+)-->", picture, re.S)
    words = {_without_numbers(html.unescape(text)) for text in texts}
    # The ticks of a logarithmic axis are formulas, not words.
    return "\n".join(sorted(word for word in words if word and "\\mathdefault" not in word))


def _without_numbers(text: str) -> str:
    text = re.sub(r"(?<!\w)[−-]?\d[\d,.]*(e[+−-]?\d+)?\s*(ns|µs|ms|s|%|×|/s|[KM]?B|[km])?(?![^\W\d_])", "", text)
    return " ".join(text.split())


class _Results:
    """Writes what each cell's comparison said."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            where, _, cell = report.nodeid.rpartition("::Cell ")
            outcome = {"notebook": Path(where).stem, "cell": int(cell), "outcome": report.outcome}
            self._cells.append({**outcome, "detail": report.longreprtext if report.failed else ""})

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(self._cells))
