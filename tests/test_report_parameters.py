"""Which notebooks, which parameters, what is kept of them; and an executor that dies takes one notebook with it."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kit.errors import ReportError
from kit.lab.report import Failure, Mismatch, Options, Outcome, render, run_report
from kit.lab.report import notebooks as files
from kit.lab.report.figures import figures, inline_svg
from kit.lab.report.progress import Progress
from kit.lab.report.replay import picture_words

PARAMETERS = """\
n: int = 200  # messages
rate: float = 0.5  # per second
fast: bool = True
label: str = 'x'
anything = [1]"""
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def _parameters(source: str) -> Any:
    return new_code_cell(source, metadata={"tags": ["parameters"]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, cells in {
        "12_gateway": [
            new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            new_code_cell("n, rate, fast, label"),
        ],
        "31_benchmark_codec": [new_markdown_cell("# Codec"), new_code_cell("1")],
        "32_benchmark_nats": [_parameters("n: int = 5")],
    }.items():
        nbformat.write(new_notebook(cells=cells, metadata=KERNEL), tmp_path / f"{name}.ipynb")
    return tmp_path


@pytest.mark.parametrize(
    ("only", "found"),
    [
        ((), ["12_gateway", "31_benchmark_codec", "32_benchmark_nats"]),
        (("12",), ["12_gateway"]),
        (("benchmark", "12_gateway.ipynb"), ["12_gateway", "31_benchmark_codec", "32_benchmark_nats"]),
        (("3?_*",), ["31_benchmark_codec", "32_benchmark_nats"]),
    ],
)
def test_only_takes_parts_of_names_and_patterns(folder: Path, only: tuple[str, ...], found: list[str]) -> None:
    assert [path.stem for path in files.find(folder, only)] == found


def test_what_fits_nothing_is_refused_with_what_there_is(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no notebook fits 'zzz'; there are: 12_gateway, 31_benchmark_codec"):
        files.find(folder, ("12", "zzz"))
    with pytest.raises(ReportError, match="no folder"):
        files.find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="no notebooks in"):
        files.find(tmp_path / "empty")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(ReportError, match="is not a notebook"):
        files.read(tmp_path / "broken.ipynb")


def test_parameters_go_to_the_notebooks_that_declare_them(folder: Path) -> None:
    given = {"n": "1_000", "rate": "2", "fast": "false", "label": "5", "anything": "[1, 2]"}
    taken = files.parameters_for(files.find(folder), given)
    assert taken[folder / "12_gateway.ipynb"] == {
        "n": 1000,
        "rate": 2.0,
        "fast": False,
        "label": "5",
        "anything": [1, 2],
    }
    assert taken[folder / "31_benchmark_codec.ipynb"] == {}
    assert taken[folder / "32_benchmark_nats.ipynb"] == {"n": 1000}


def test_an_unknown_parameter_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(ReportError) as caught:
        files.parameters_for(files.find(folder), {"m": "1", "n": "1"})
    assert "unknown parameter m; known ones:" in str(caught.value)
    assert "12_gateway: n: int = 200  messages" in str(caught.value)
    assert "32_benchmark_nats: n: int = 5" in str(caught.value)
    with pytest.raises(ReportError, match="none: these notebooks have no cell tagged"):
        files.parameters_for([folder / "31_benchmark_codec.ipynb"], {"n": "1"})


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [("int", "7", 7), ("float", "1e3", 1000.0), ("bool", "True", True), ("str", "None", "None"),
     ("int | None", "None", None), ("int | None", "3", 3), ("None", "2.5", 2.5),
     ("None", "plain text", "plain text"), ("None", "False", False)],
)  # fmt: skip
def test_a_value_is_of_the_declared_type(kind: str, text: str, value: Any) -> None:
    assert files.typed("n", text, {"inferred_type_name": kind, "help": ""}) == value


@pytest.mark.parametrize(("kind", "text"), [("int", "1.5"), ("int", "many"), ("float", "x"), ("bool", "maybe")])
def test_a_value_of_another_type_is_refused(kind: str, text: str) -> None:
    with pytest.raises(ReportError, match=rf"parameter n={text}: {kind} expected \(messages\)"):
        files.typed("n", text, {"inferred_type_name": kind, "help": "messages"})


def test_benchmarks_run_alone(folder: Path) -> None:
    plain = new_notebook()
    assert files.runs_alone(plain, "31_benchmark_codec")
    assert not files.runs_alone(plain, "12_gateway")
    assert files.runs_alone(new_notebook(metadata={"kit": {"alone": True}}), "12_gateway")


def test_what_changes_with_every_run_is_not_committed(tmp_path: Path) -> None:
    injected = new_code_cell("n = 1", metadata={"tags": ["injected-parameters"]})
    output = new_output("stream", text=f"wrote {tmp_path}/reports/x.json and {tmp_path}-else\n")
    shown = new_output("display_data", data={"text/plain": "'x'"}, metadata={"needs": "light"})
    cell = new_code_cell("1", outputs=[output, shown], metadata={"papermill": {"duration": 1}, "tags": ["solution"]})
    executed = new_notebook(cells=[injected, cell], metadata={"papermill": {}, "kit": {"alone": True}})
    kept = files.for_commit(executed, tmp_path)
    assert len(kept.cells) == 1
    assert kept.cells[0].metadata == {"tags": ["solution"]}
    assert kept.cells[0].outputs[0].text == f"wrote ./reports/x.json and {tmp_path}-else\n"
    assert kept.cells[0].outputs[1].metadata == {}
    assert set(kept.metadata) == {"kernelspec", "language_info", "kit"}
    assert len(executed.cells) == 2, "the executed notebook itself is left as it was"


def test_a_title_and_a_question_are_found_without_their_markup() -> None:
    source = "# The *bus* and `codec`\n\nWhat is **said** on [it](x.md)?\nIs it?\n\nMore."
    assert files.headings(new_notebook(cells=[new_code_cell("1"), new_markdown_cell(source)])) == (
        "The bus and codec",
        "What is said on it? Is it?",
    )
    assert files.headings(new_notebook()) == ("", "")


# --- running ----------------------------------------------------------------------------------------------------


def test_given_parameters_are_run_shown_and_not_compared(folder: Path, tmp_path: Path) -> None:
    options = Options(folder=folder, output=tmp_path / "reports", only=("12",), parameters={"n": "7", "label": "a<b"})
    report = run_report(options, io.StringIO())
    (outcome,) = report.outcomes
    assert report.good
    assert outcome.verdict == "run with other parameters, not compared"
    page = outcome.html.read_text()
    assert "<code>n = 7</code>" in page
    assert "a&lt;b" in page
    assert "(7, 0.5, True, 'a&lt;b')" in page
    assert outcome.cells == 3


def test_an_executor_that_dies_takes_only_its_notebook_and_a_cell_has_its_time(tmp_path: Path) -> None:
    dying = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time; time.sleep(30)"
    for name, source in (("01_dies", dying), ("02_lives", "'alive'"), ("03_hangs", "import time; time.sleep(600)")):
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path / f"{name}.ipynb")
    options = Options(folder=tmp_path, output=tmp_path / "reports", jobs=1, timeout=2.0, check=False)
    report = run_report(options, io.StringIO())
    dies, lives, hangs = report.outcomes
    assert dies.failure is not None
    assert dies.failure.error == "ExecutorDied"
    assert "Failed in cell" in dies.html.read_text()
    assert lives.failure is None
    assert hangs.failure is not None
    assert hangs.failure.error == "CellTimeoutError"
    assert hangs.seconds < 300
    assert "01_dies, 03_hangs failed." in report.index.read_text()


# --- pieces -----------------------------------------------------------------------------------------------------


def test_the_words_of_a_picture_are_its_texts_without_numbers() -> None:
    texts = "<title>T</title><text x='1'>p95 1.25 ms</text><text>200</text><tspan>a &lt; b</tspan>"
    assert picture_words(f"<svg>{texts}<!-- kit 3 --></svg>").splitlines() == ["T", "a < b", "kit", "p95"]
    assert picture_words(["<svg><text>a", "</text></svg>"]) == "a"


def test_an_inlined_picture_scales_and_keeps_its_ids_to_itself() -> None:
    svg = '<?xml version="1.0"?><svg width="10" height="20"><script>x()</script><g id="a" clip-path="url(#c)"/></svg>'
    assert inline_svg(svg, "p-") == ('<svg class="paper" viewBox="0 0 10 20"><g id="p-a" clip-path="url(#p-c)"/></svg>')
    png = new_output("display_data", data={"image/png": "aGk=\n", "text/plain": "<Figure>"})
    (found,) = figures(new_notebook(cells=[new_code_cell("", outputs=[png])]))
    assert found == '<img class="paper" alt="&lt;Figure&gt;" src="data:image/png;base64,aGk=">'


def _outcome(**facts: Any) -> Outcome:
    path = Path("x.ipynb")
    return Outcome(name="x", source=path, executed=path, html=path, **facts)


def test_an_outcome_in_words() -> None:
    missed = [{"verdicts": [{"met": False, "goal": False}, {"met": True, "goal": False}]}]
    assert _outcome(comparison="same", records=missed).verdict == "matches its reference; 1 target(s) missed"
    assert not _outcome(comparison="same", records=missed).good
    short = [{"verdicts": [{"met": False, "goal": True}]}]
    assert _outcome(comparison="same", records=short).verdict == "matches its reference; 1 goal(s) not reached"
    assert _outcome(comparison="same", records=short).good
    row = {"met": False, "goal": False, "state": "undecided"}
    unsure = _outcome(comparison="same", records=[{"verdicts": [row]}])
    assert unsure.verdict == "matches its reference; 1 target(s) undecided"
    assert unsure.good
    row = {"met": False, "goal": True, "state": "undecided"}
    assert _outcome(comparison="same", records=[{"verdicts": [row]}]).verdict.endswith("; 1 goal(s) undecided")
    differs = _outcome(comparison="differs", mismatches=[Mismatch(cell=1, detail="")])
    assert differs.verdict == "1 cell(s) differ from the reference"
    assert Failure(error="E", message="m", cell=2).where == "in cell 3"
    assert Failure(error="E", message="m").where == "before the first cell"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_line_that_moves_and_a_log_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, log = _Terminal(), io.StringIO()
    for out in (terminal, log):
        progress = Progress(out, total=2)
        progress.started("x")
        progress.cell("x", 3, 12)
        monkeypatch.setattr(progress, "_spoke", time.monotonic() - 60)
        progress.tick()
        progress.finished(_outcome(seconds=1.5, cells=12))
    assert "\r" in terminal.getvalue()
    assert "x 4/12" in terminal.getvalue()
    assert "\r" not in log.getvalue()
    assert "0/2 done  x 4/12" in log.getvalue()


DECLARED = """\
url: str = "http://h/?a=b&c==d"  # where
owner: str | None = None  # whose
size: Optional[int] = None
span: Union[float, str] = 1.0
days: list[int] = [1, 2]  # which
limits: "dict[str, float]" = {
    "a": 1.0,  # inside
}  # how much
plain = "a # b"  # no comment
first = second = 3
if True:
    hidden: int = 1
"""


def test_parameters_are_read_as_python_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "91_x.ipynb"
    nbformat.write(new_notebook(cells=[_parameters(DECLARED)], metadata=KERNEL), path)
    found = {
        name: (one["inferred_type_name"], one["default"], one["help"]) for name, one in files.declared(path).items()
    }
    assert list(found) == ["url", "owner", "size", "span", "days", "limits", "plain", "first"]
    assert found["url"] == ("str", '"http://h/?a=b&c==d"', "where")
    assert found["owner"] == ("str | None", "None", "whose")
    assert (found["limits"][0], found["limits"][2]) == ("dict[str, float]", "how much")
    assert found["plain"] == ("None", '"a # b"', "no comment")
    given = {"url": "x=y", "owner": "None", "size": "3", "span": "2.5", "days": "[1, null]", "limits": '{"a": null}'}
    assert files.parameters_for([path], given) == {
        path: {"url": "x=y", "owner": None, "size": 3, "span": 2.5, "days": [1, None], "limits": {"a": None}}
    }
    nbformat.write(new_notebook(cells=[_parameters("n = = 1")], metadata=KERNEL), path)
    with pytest.raises(ReportError, match="parameters"):
        files.declared(path)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("float", "nan"), ("float", "-inf"), ("float", "1e999"), ("float | None", "inf"), ("list", "[NaN]"),
        ("dict", '{"a": Infinity}'), ("None", "NaN"), ("None", "[1e999]"), ("list", "1"), ("list", "a, b"),
        ("dict[str, int]", "[1]"), ("Optional[int]", "x"), ("Union[int, float]", "x"), ("list", "[" * 100_000),
    ],
)  # fmt: skip
def test_what_no_report_could_hold_is_refused_before_anything_runs(kind: str, text: str) -> None:
    with pytest.raises(ReportError, match="expected"):
        files.typed("n", text, {"inferred_type_name": kind, "help": ""})


@pytest.mark.parametrize(
    ("source", "inlined"),
    [
        ("in.png", True), ("below/in.png", True), ("./below/../in.png", True), ("in%2Epng", True),
        ("../secret.png", False), ("below/../../secret.png", False), ("%2e%2e/secret.png", False),
        ("&#46;./secret.png", False), ("link.png", False), ("linked/secret.png", False), ("notes.txt", False),
        ("{folder}/../secret.png", False), ("https://example.org/x.png", False), ("//example.org/x.png", False),
        ("file:///etc/hostname", False), ("nowhere.png", False), ("x" * 5000, False), ("a&#0;b.png", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("quote", ['"', "'"])
def test_only_pictures_of_the_notebooks_folder_come_into_its_page(
    tmp_path: Path, source: str, inlined: bool, quote: str
) -> None:
    inside = tmp_path / "inside"
    (inside / "below").mkdir(parents=True)
    for path in (inside / "in.png", inside / "below" / "in.png", inside / "notes.txt", tmp_path / "secret.png"):
        path.write_bytes(b"hi")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "linked").symlink_to(tmp_path)
    named = source.replace("{folder}", str(inside))
    page = render._embedded(f"<p><img alt='x' src={quote}{named}{quote} srcset='{named} 2x'></p>", inside)
    assert ("base64,aGk=" in page) is inlined
    assert page.count("src=") == 1
    assert 'src="data:' in page
