"""Gates for a terminal, for CI, and as a page that the report's front page links."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from kit.lab.gates.evidence import commit, read_json
from kit.lab.gates.model import SIGNS, Gate, State

if TYPE_CHECKING:
    import pandas as pd

FILE, PAGE = "gates.json", "gates.html"
SHAPE = {"commit": str, "gates": [{"gate": str, "title": str, "checks": [{"name": str, "state": str}]}]}
BEGIN, END = "<!-- gates -->", "<!-- /gates -->"
"""The marks around the gates on the front page."""

_CHIPS: dict[State, str] = {
    "passed": "good", "failed": "bad", "not measured": "wait", "undecided": "wait", "for people": "wait",
}  # fmt: skip


def as_text(gates: Iterable[Gate]) -> Iterator[str]:
    """Yield the lines of a table: each gate and its checks, and below a check what is wrong and how to fix it."""
    for gate in gates:
        yield f"{SIGNS[gate.state]} {gate.title}: {gate.state}"
        for check in gate.checks:
            yield f"  {SIGNS[check.state]} {check.name:<14} {check.summary}"
            for line in check.lines():
                yield f"      {line}"


def as_table(gates: Iterable[Gate]) -> pd.DataFrame:
    """Return one row per check: its state, what was measured, and what to do, if anything."""
    import pandas as pd

    rows = {
        (gate.title, check.name): {
            "state": f"{SIGNS[check.state]} {check.state}",
            "seen": "; ".join([check.summary, *check.findings[:3]]) if check.state == "failed" else check.summary,
            "to do": check.remedy if check.state in ("failed", "not measured") else "",
        }
        for gate in gates
        for check in gate.checks
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["gate", "check"])


def as_junit(gates: Iterable[Gate]) -> str:
    """Return JUnit XML with a suite per gate and a case per check; a check that is not measured counts as skipped."""
    root = ElementTree.Element("testsuites", name="kit gates")
    for gate in gates:
        states = [check.state for check in gate.checks]
        suite = ElementTree.SubElement(
            root, "testsuite", name=gate.title, tests=str(len(states)), failures=str(states.count("failed")),
            skipped=str(len(states) - states.count("failed") - states.count("passed")), errors="0",
        )  # fmt: skip
        for check in gate.checks:
            case = ElementTree.SubElement(suite, "testcase", classname=f"gates.{gate.name}", name=check.name)
            if check.state == "failed":
                ElementTree.SubElement(case, "failure", message=check.summary).text = "\n".join(check.lines())
            elif check.state != "passed":
                ElementTree.SubElement(case, "skipped", message=f"{check.state}: {check.summary}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write(gates: Sequence[Gate], reports: Path) -> Path:
    """Write the gates next to the last report, as JSON and as a page, and put them on its front page."""
    reports.mkdir(parents=True, exist_ok=True)
    body = {"commit": commit(), "gates": [gate.plain() for gate in gates]}
    (reports / FILE).write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    page = reports / PAGE
    page.write_text(as_page(body))
    front = reports / "index.html"
    if front.is_file():
        before, begin, rest = front.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if begin and end:
            front.write_text(before + as_section(reports) + after)
    return page


def as_section(reports: Path) -> str:
    """Return the gates' section of the front page, between its marks: the last verdict, or how to get one."""
    body = read_json(reports / FILE, SHAPE)
    if body is None:
        inner = "<p class='lead'>Not judged yet: <code>kit gates</code> judges this report and the tests.</p>"
        return f"{BEGIN}{inner}{END}"
    rows = "".join(
        f"<tr><td>{_chip(gate['state'])}</td><td><a href='{PAGE}#{gate['gate']}'>{escape(gate['title'])}</a></td>"
        f"<td>{', '.join(SIGNS[check['state']] + ' ' + escape(check['name']) for check in gate['checks'])}</td></tr>"
        for gate in body["gates"]
    )
    lead = f"The specification's four gates, as <code>kit gates</code> judged them at commit {escape(body['commit'])}."
    lead += " Requirement by requirement: <a href='traceability.html'>traceability</a>."
    table = f"<div class='scroll' tabindex='0'><table class='rows'><tbody>{rows}</tbody></table></div>"
    return f"{BEGIN}<p class='lead'>{lead}</p>{table}{END}"


def as_page(body: dict[str, Any]) -> str:
    """Return the gates as a page: each check with its findings and remedy."""
    from kit.lab.report.render import make_plain_page

    parts = []
    for gate in body["gates"]:
        rows = "".join(
            f"<tr><td>{_chip(check['state'])}</td><td>{escape(check['name'])}</td>"
            f"<td>{escape(check['summary'])}{_details(check)}</td></tr>"
            for check in gate["checks"]
        )
        head = f"<h2 id='{gate['gate']}'>{escape(gate['title'])}</h2>"
        parts.append(f"{head}<div class='scroll' tabindex='0'><table class='rows'><tbody>{rows}</tbody></table></div>")
    under = f"commit <code>{escape(body['commit'])}</code> · a check passes only on evidence from this commit"
    return make_plain_page("Validation gates", under, "".join(parts))


def _chip(state: State) -> str:
    return f"<span class='chip {_CHIPS[state]}'>{SIGNS[state]} {state}</span>"


def _details(check: dict[str, Any]) -> str:
    lines = list(check["findings"])
    if check["remedy"] and check["state"] in ("failed", "not measured"):
        lines.append(f"→ {check['remedy']}")
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
