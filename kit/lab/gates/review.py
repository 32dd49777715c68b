"""Gate 4, code review: what a machine can review, and a list of what it cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from kit.errors import ReportError
from kit.lab.gates.api import find_tool, run_tool
from kit.lab.gates.changes import Change
from kit.lab.gates.model import Check, Context, judge, unseen
from kit.lab.project import project_root

GUIDES = {
    "kit/codec/": "01_codec", "kit/nats/": "02_nats", "kit/otel/": "03_otel", "kit/components/agents/": "11_agents",
    "kit/components/gateway/": "12_gateway", "kit/components/rag/": "13_rag", "kit/components/llmops/": "14_llmops",
    "kit/components/mlops/": "15_mlops", "kit/components/prompts/": "16_prompts",
    "kit/components/document_qa": "21_document_qa",
}  # fmt: skip
"""The notebook that is the guide to each part of the code."""

TRAILER = "Guide-unchanged"
"""The trailer of a commit that says why a guide need not change: ``Guide-unchanged: nats, no behaviour differs``."""

FOR_PEOPLE = (
    "Integration correctness: components do what the change says, even if a message is late, duplicated or foreign",
    "API usage: only a package's public names are used; no interface breaks for its users",
    "Performance impact: every ratio that moved has an explanation",
    "Documentation quality: a reader who does not know the change understands the guide",
    "Error handling: each error says what to do, and nothing is swallowed",
)
"""What the other team's reviewer looks at. Source: the specification, steps 6 and 7, and gate 4."""

_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(
    r"""\]\(\s{0,9}<?([^()<>\s]{1,300})>?(?:\s{1,9}["'][^"'\n]{0,300}["'])?\s{0,9}\)"""  # [text](target "title")
    r"""|\b(?:href|src)=["']([^"'\s]{1,300})["']|^\[[^\[\]\n]{1,300}\]:[ \t]{0,9}(\S{1,300})""",
    re.MULTILINE,
)


def lint(_: Context) -> Check:
    """Judge style and format."""
    findings = [*_ruff("check", "--output-format=concise", "."), *_ruff("format", "--check", ".")]
    return _by_tool("lint", "ruff", "style and format", findings, "ruff check --fix . && ruff format .")


def types(_: Context) -> Check:
    """Judge the types."""
    findings = [line for line in _lines("mypy", "--no-error-summary") if ": error:" in line]
    return _by_tool("types", "mypy", "strict types of kit/", findings, "mypy shows each with its context")


def docstrings(_: Context) -> Check:
    """Judge whether everything public is documented."""
    findings = _ruff("check", "--output-format=concise", "--select=D100,D101,D102,D103,D104", "kit")
    return _by_tool("docstrings", "ruff", "everything public in kit/ is documented", findings, "one full sentence each")


def _ruff(*arguments: str) -> list[str]:
    return [line for line in _lines("ruff", *arguments) if re.match(r"\A(?:\S+:\d+:\d+:|Would reformat)", line)]


def _lines(name: str, *arguments: str) -> list[str]:
    tool = find_tool(name)
    if tool is None:
        return []
    done = run_tool([tool, *arguments])
    if done.returncode > 1:  # it could not run at all
        return [f"x:1:1: error: {name} failed: {' '.join((done.stderr or done.stdout).split())[:300]}"]
    return done.stdout.splitlines()


def _by_tool(name: str, tool: str, summary: str, findings: list[str], remedy: str) -> Check:
    if find_tool(tool) is None:
        return unseen(name, f"not measured: {tool} is not installed", "pip install -e '.[test]'")
    return judge(name, summary, findings, remedy)


def links(_: Context) -> Check:
    """Judge whether links between the project's own documents, and to their headings, have targets."""
    root = project_root()
    documents = [*root.glob("*.md"), *root.glob(".github/**/*.md"), *(root / "notebooks").glob("*.ipynb")]
    links_of = {path: list(_links(path)) for path in documents}
    findings = [
        f"{path.relative_to(root)}: {link} has no target"
        for path, found in links_of.items()
        for link in found
        if not _leads_somewhere(path, link)
    ]
    summary = f"{sum(map(len, links_of.values()))} links in {len(documents)} documents"
    return judge("links", summary, findings, "correct the path, or restore the file")


def _prose(path: Path) -> str:
    """Return a document's text, of a notebook that of its prose.

    Raises:
        ReportError: it is no notebook, though it is named as one.
    """
    text = path.read_text(errors="replace")
    if path.suffix == ".ipynb":
        try:
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        except (ValueError, TypeError, KeyError) as error:
            raise ReportError(f"notebooks/{path.name} is no notebook: {error}") from error
    return text


def _links(path: Path) -> Iterator[str]:
    """Yield a document's links to files and headings, without reports, which are made later."""
    for match in _LINK.finditer(_CODE.sub("", _prose(path))):
        link = next(filter(None, match.groups()))
        if ":" not in link and "reports/" not in link:
            yield link


def _leads_somewhere(path: Path, link: str) -> bool:
    file, _, heading = link.partition("#")
    target = path.parent / file if file else path
    return target.exists() and (not heading or target.suffix != ".md" or heading in _headings(target))


def _headings(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#{1,6} (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def guides(context: Context) -> Check:
    """Judge whether each changed component's guide changed with it, or a commit says why not."""
    name, change = "guides", context.change
    if not change.base:
        return unseen(name, "not measured: no base to compare with", "run it in a git checkout with its history")
    excused = {value.partition(",")[0].strip() for value in change.reasons.get(TRAILER.lower(), ())}
    touched = {guide: folder for folder, guide in GUIDES.items() if change.touches(folder)}
    findings = [
        f"{folder} changed since {change.base}, but its guide notebooks/{guide}.ipynb did not"
        for guide, folder in touched.items()
        if not _renewed(change, guide) and guide.partition("_")[2] not in excused
    ]
    remedy = f"update the guide, or say why not in a commit's trailer: {TRAILER}: nats, no behaviour differs"
    return judge(name, f"{len(touched)} components changed since {change.base}, with their guides", findings, remedy)


def _renewed(change: Change, guide: str) -> bool:
    path = f"notebooks/{guide}.ipynb"
    return path in change.files and (project_root() / path).is_file()


def checklist(_: Context) -> Check:
    """List what people must review."""
    summary = f"{len(FOR_PEOPLE)} points for the reviewers of both teams"
    return Check(name="checklist", state="for people", summary=summary, findings=FOR_PEOPLE)
