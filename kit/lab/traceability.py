"""From the specification to the kit: its examples, the names in its tables, and the matrix of its requirements.

``data/specification`` has the document, unchanged. The names come from its own tables and examples;
``requirements.toml`` next to it says what meets each requirement. So the matrix is always current, and a test fails if
nothing meets something that the document names, or if the matrix points to something that is gone.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from inspect import getsource
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kit.catalogue import METRICS, OPERATIONS, SPANS
from kit.errors import ConfigurationError
from kit.lab.gates import CHECKS, render
from kit.lab.gates.changes import tests_now
from kit.lab.gates.evidence import commit, explain_stale, read_json, read_reports, read_tests, test_functions
from kit.lab.project import project_root
from kit.lab.targets import SPECIFICATION, SPECIFIED, state_of

if TYPE_CHECKING:
    import pandas as pd

PAGE = "traceability.html"

State = Literal["alive", "partly", "missing"]

_PATTERNS = {
    "subjects": r"\b(ai(?:\.[a-z-]{1,30}){2,4})\.\{",
    "spans": r'(?:start_span|start_trace)\("([a-z._-]{1,60})"|^\| [\w -]{1,40} \| `([a-z._-]{1,60})` \|',
    "metrics": r'(?:increment_counter|record_histogram)\(\s{0,40}"([a-z._-]{1,60})"',
    "schemas": r'^  "message_type": "([a-z_]{1,40})"',
    "tests": r"\b(test_[a-z_]{1,60})\(\)",
    "benchmarks": r"\b(benchmark_[a-z_]{1,60})\(\)",
}
"""Patterns for what the document names, by kind; one group of each matches the name."""

_RENAMED = {
    "document_qa_query": "use_case.document_qa",  # the document's second name for the root of the use case
}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A requirement, and what meets it.

    Attributes:
        rows: constants and names in the catalogue; tests, checks, notebooks, files: the evidence.
        state: as judged by people; ``note`` says what is missing.
    """

    number: int
    group: str
    text: str
    rows: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    notebooks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    state: State = "alive"
    note: str = ""


def folder() -> Path:
    """Return the specification's folder.

    Raises:
        ConfigurationError: not in the project.
    """
    found = project_root() / "data" / "specification"
    if not found.is_dir():
        raise ConfigurationError(f"no specification in {found}: the project has it, the installed package does not")
    return found


@cache
def document() -> str:
    """Return the text of the specification."""
    return (folder() / "integration_story.md").read_text()


def find_names(kind: str) -> tuple[str, ...]:
    """Return the document's names of a kind (``subjects``, ``spans``, …), in order, each once."""
    if kind == "named schemas":
        known = dict.fromkeys(re.findall(r"`([a-z_]{3,40})`", _summary()))
        return tuple(name for name in known if name not in find_names("schemas"))
    if kind == "targets":
        return SPECIFIED
    found = re.finditer(_PATTERNS[kind], document(), flags=re.MULTILINE)
    names = [next(filter(None, match.groups())) for match in found]
    if kind == "metrics":
        names += _metrics_of_tables()
    if kind == "spans":
        names += re.findall(r"`([a-z]{1,20}(?:\.[a-z-]{1,20}){1,3})`", _summary())
    return tuple(dict.fromkeys(_RENAMED.get(name, name) for name in names))


def _summary() -> str:
    """Return the document's integration summary table."""
    return document().partition("### Integration Summary Table")[2].partition("\n---")[0]


def _metrics_of_tables() -> Iterator[str]:
    """Yield the metrics in the last column of each table of tracing points."""
    for line in document().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and cells[1].startswith("`") and "." in cells[3]:
            yield from (name.strip() for name in cells[3].split(","))


def example(title: str, *, number: int = 0) -> str:
    """Return a code example of the document: block ``number`` below the line that begins with ``title``.

    Raises:
        ConfigurationError: there is no such example.
    """
    _, found, below = document().partition(f"\n{title}")
    blocks = re.findall(r"^```python\n(.*?)^```", below, flags=re.MULTILINE | re.DOTALL)
    if not found or number >= len(blocks):
        raise ConfigurationError(f"the specification has no example {number} below {title!r}")
    return str(blocks[number])


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """An example of the specification, the kit's code for it, and the result of running that code."""

    title: str
    theirs: str
    ours: str
    result: Any

    def __repr__(self) -> str:
        lines = f"{len(self.theirs.splitlines())} lines there, {len(self.ours.splitlines())} here"
        return f"{self.title}: {lines}\n{self.result}"

    def _repr_html_(self) -> str:
        column = "flex:1 1 20rem;min-width:0;overflow-x:auto;max-height:24rem;font-size:0.8em;white-space:pre"
        columns = "".join(
            f"<figure style='flex:1 1 20rem;min-width:0;margin:0'><figcaption><b>{head}</b></figcaption>"
            f"<pre tabindex='0' style='{column}'>{escape(code)}</pre></figure>"
            for head, code in ((f"The specification: {escape(self.title)}", self.theirs), ("The kit", self.ours))
        )
        grid = f"<div style='display:flex;flex-wrap:wrap;gap:0.5rem 1.5rem'>{columns}</div>"
        return f"{grid}<p>Executed: <code>{escape(str(self.result))}</code></p>"


async def compare(
    title: str, function: Callable[..., Awaitable[Any]], *arguments: Any, number: int = 0, name: str = ""
) -> SideBySide:
    """Run the kit's code for an example of the document, and return both side by side.

    Args:
        title: text of the line above the example.
        function: a coroutine function; its source is shown, and it is called with ``arguments``.
        number: which example below that line, from 0.
        name: a title for the example, if the line is not one.
    """
    theirs, ours = example(title, number=number), getsource(function)
    result = await function(*arguments)
    return SideBySide(title=name or title.strip("*# "), theirs=theirs, ours=ours, result=result)


def _data() -> dict[str, Any]:
    return tomllib.loads((folder() / "requirements.toml").read_text())


def modules() -> dict[str, str]:
    """Return the document's modules, each with its counterpart here."""
    return dict(_data()["modules"])


def commands() -> dict[str, str]:
    """Return the document's commands, each with its counterpart here."""
    return dict(_data()["commands"])


def requirements() -> list[Requirement]:
    """Return the requirements by number; one that covers several names becomes one for each name."""
    found: list[Requirement] = []
    for entry in _data()["requirement"]:
        kind = entry.pop("expand", "")
        rows = entry.pop("rows", ())
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        one = Requirement(**fields, rows=find_names(rows) if isinstance(rows, str) else tuple(rows))
        found += [_expanded(one, kind, place, name) for place, name in enumerate(find_names(kind))] if kind else [one]
    return found


def criteria() -> list[Requirement]:
    """Return the document's success criteria in its order, each with what judges it."""
    judged = {entry["text"]: entry for entry in _data()["criterion"]}
    _, _, section = document().partition("\n## Success Criteria\n")
    found: list[Requirement] = []
    group = ""
    for line in section.partition("\n## ")[0].splitlines():
        if line.startswith("#### "):
            group = line.removeprefix("#### ").removesuffix(" Criteria")
        elif line.startswith("- ✅ "):
            entry = judged.get(text := line.removeprefix("- ✅ "), {"text": text, "files": ("nothing judges it",)})
            fields: dict[str, Any] = {key: value if key == "text" else tuple(value) for key, value in entry.items()}
            found.append(Requirement(number=len(found) + 1, group=group, **fields))
    return found


def _expanded(one: Requirement, kind: str, place: int, name: str) -> Requirement:
    named_one = replace(one, number=one.number + place, text=one.text.format(name=name))
    if kind == "benchmarks":
        target = SPECIFICATION[place].name
        rows = tuple(one for one in SPECIFIED if one.partition(":")[0] == target)
        return replace(named_one, tests=(name,), rows=rows)
    row = next((row for row in OPERATIONS if row.prefix == name), None)
    guides = {"document_qa": "21_document_qa", "api": "21_document_qa", "agents": "11_agents", "agent": "11_agents"}
    guides |= {"gateway": "12_gateway", "rag": "13_rag", "llmops": "14_llmops", "mlops": "15_mlops"}
    guide = guides.get(name.split(".")[1], "16_prompts")
    return replace(named_one, rows=(row.name,) if row else (name,), notebooks=(guide,))


def find_missing(requirement: Requirement) -> list[str]:
    """Return the things that a requirement points to but that do not exist."""
    root = project_root()
    known = _known_names()
    missing = [f"row {name}" for name in requirement.rows if name not in known]
    missing += [f"test {name}" for name in requirement.tests if name not in known]
    missing += [f"check {name}" for name in requirement.checks if name not in CHECKS]
    missing += [
        f"notebook {name}" for name in requirement.notebooks if not (root / "notebooks" / f"{name}.ipynb").is_file()
    ]
    return missing + [f"file {name}" for name in requirement.files if not (root / name).is_file()]


def _row_names() -> set[str]:
    return {row.name for row in OPERATIONS} | {row.name for row in SPANS} | {row.name for row in METRICS}


@cache
def _known_names() -> frozenset[str]:
    from kit import codec

    rows = _row_names() | {*codec.message_types(), *SPECIFIED}
    paths = (project_root() / "tests" / "benchmarks").glob("*.py")
    texts = [path.read_text().replace("def benchmark_", "def test_benchmark_") for path in paths]
    benchmarks = {name.removeprefix("test_") for text in texts for name in test_functions(text)}
    return frozenset(rows | tests_now().keys() | benchmarks)


Verdict = Callable[[Requirement], str]


def state(requirement: Requirement) -> str:
    """Return a requirement's state in words; it is missing if it points to something that does not exist."""
    if gone := find_missing(requirement):
        return f"✗ missing: {', '.join(gone)}"
    return "✓ alive" if requirement.state == "alive" else f"◐ {requirement.state}: {requirement.note}"


def as_table(found: Sequence[Requirement], **columns: Verdict) -> pd.DataFrame:
    """Return the matrix, one row per requirement.

    Args:
        columns: further columns by name, each with a function of the requirement.
    """
    import pandas as pd

    rows = {
        requirement.number: {
            "requirement": requirement.text,
            "stands": state(requirement),
            **{name: judge(requirement) for name, judge in columns.items()},
            "rows": _listed(requirement.rows),
            "tests": _listed(requirement.tests),
            "notebooks": ", ".join(name.partition("_")[0] for name in requirement.notebooks),
            "gate checks": ", ".join(requirement.checks),
        }
        for requirement in found
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def last_verdicts(reports: Path) -> Verdict:
    """Return a function that judges a requirement by the last measurements of this tree."""
    now = commit()
    states: dict[str, str] = {}
    run = read_tests(reports)
    if run is not None and not explain_stale(run["commit"], now):
        states |= {test.partition("[")[0].rpartition("::")[2]: seen for test, seen in _worst_last(run["outcomes"])}
    for body in read_reports(reports):
        if not explain_stale(body["environment"]["commit"], now):
            states[body["notebook"]] = "passed" if body["good"] else "failed"
            rows = [row for record in body["records"] for row in record["verdicts"]]
            states |= {
                row["name"]: {"met": "passed", "missed": "failed"}.get(state_of(row), "undecided") for row in rows
            }
    gates = read_json(reports / render.FILE, render.SHAPE)
    if gates is not None and not explain_stale(gates["commit"], now):
        states |= {check["name"]: check["state"] for gate in gates["gates"] for check in gate["checks"]}

    def judge(requirement: Requirement) -> str:
        shown = (*requirement.tests, *requirement.notebooks, *requirement.checks, *requirement.rows)
        seen = {name: states.get(name, "not measured") for name in shown if name in states or name not in _unjudged()}
        worst = next((state for state in _WORST if state in seen.values()), "not measured")
        names = ", ".join(name for name, state in seen.items() if state == worst)
        return worst if worst in ("not measured", "passed", "for people") else f"{worst}: {names}"

    return judge


def _worst_last(outcomes: dict[str, str]) -> Iterable[tuple[str, str]]:
    """Sort the outcomes of a test's cases so that the worst comes last and counts."""
    return sorted(outcomes.items(), key=lambda item: ("skipped", "passed", "failed").index(item[1]))


_WORST = ("failed", "not measured", "skipped", "undecided", "for people", "passed")


@cache
def _unjudged() -> frozenset[str]:
    """Return the names that no run has a verdict on: rows, and benchmarks, whose targets the notebooks judge."""
    from kit import codec

    return frozenset(_row_names() | {*codec.message_types(), *find_names("tests"), *find_names("benchmarks")})


def as_criteria(**columns: Verdict) -> pd.DataFrame:
    """Return the success criteria as a table: a row a criterion, with what judges it.

    Args:
        columns: further ones, by name: what is said of a criterion.
    """
    import pandas as pd

    rows = [
        {
            "group": one.group, "criterion": one.text, **{name: judge(one) for name, judge in columns.items()},
            "judged by": ", ".join((*one.checks, *one.rows, *one.tests, *one.notebooks)),
        }
        for one in criteria()
    ]  # fmt: skip
    return pd.DataFrame(rows, index=range(1, len(rows) + 1))


def _met(judge: Verdict) -> Verdict:
    """Return what says whether a criterion is met."""
    words = {"passed": "✓ met", "failed": "✗ not met", "not measured": "– not measured", "for people": "☐ for people"}

    def say(one: Requirement) -> str:
        state, colon, names = judge(one).partition(":")
        return words.get(state, f"? {state}") + colon + names

    return say


def write_page(reports: Path) -> Path:
    """Write the matrix, with the last verdict on each requirement, as a page next to the report."""
    from kit.lab.report.render import make_plain_page

    found = requirements()
    judge = last_verdicts(reports)
    matrix, success = as_table(found, **{"last verdict": judge}), as_criteria(met=_met(judge))
    alive = sum(state(requirement).startswith("✓") for requirement in found)
    under = f"{alive} of {len(found)} requirements are alive · commit <code>{escape(commit())}</code>"
    under += f" · {success['met'].str.startswith('✓').sum()} of {len(success)} success criteria are met"
    body = "".join(
        f"<h2>{title}</h2><div class='scroll' tabindex='0'>{table.to_html(classes='rows', border=0)}</div>"
        for title, table in (("Success criteria", success), ("Requirements", matrix))
    )
    path = reports / PAGE
    path.write_text(make_plain_page("Traceability", under, body))
    return path
