"""Render an executed notebook as one page that opens offline, by nbconvert with a template of our own.

The page's Content-Security-Policy forbids scripts and requests, so that "offline" is what the browser enforces and
not what we hope for.
"""

from __future__ import annotations

import mimetypes
import re
from base64 import b64encode
from functools import cache
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from kit.lab.quantities import elapsed, quantity
from kit.lab.records import MIME
from kit.lab.report import notebooks
from kit.lab.report.figures import inline_svg
from kit.lab.report.outcome import Outcome
from kit.lab.targets import tally

TEMPLATES = Path(__file__).parent / "templates"
MISSING = "data:,"  # in place of an image that is missing, outside the folder or remote
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"


def write_page(outcome: Outcome) -> None:
    """Write an outcome's notebook as HTML, failure and differences on top."""
    from nbconvert import HTMLExporter

    notebook = notebooks.read(outcome.executed)
    failed_anchor = _mark(notebook, outcome)
    exporter = HTMLExporter(template_name="kit", extra_template_basedirs=[str(TEMPLATES)])
    exporter.anchor_link_text = "#"
    pictures = iter(range(10**6))
    resources = {
        "metadata": {"path": str(outcome.source.parent)},
        "kit": {
            "outcome": outcome,
            "policy": POLICY,
            "style": style() + code_style(),
            "state": state(outcome),
            "sign": sign(outcome),
            "took": elapsed(outcome.seconds),
            "failed_anchor": failed_anchor,
            "record_mime": MIME,
            "number": number,
            "tally": tally,
            "svg": lambda svg: inline_svg("".join(svg), f"f{next(pictures)}-"),
        },
    }
    page, _ = exporter.from_notebook_node(notebook, resources=resources)
    outcome.html.write_text(_with_contents(_local_links(_embedded(page, outcome.source.parent))))


def make_plain_page(title: str, under: str, body: str) -> str:
    """Return a page below the report's front page: a title, a line of HTML, and the body's HTML."""
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'><meta name='color-scheme' "
        f"content='light dark'><meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        f"<title>{escape(title)}</title><style>{style()}</style></head><body class='front'><main>"
        f"<p class='eyebrow'><a href='index.html'>kit report</a></p><h1>{escape(title)}</h1>"
        f"<p class='under'>{under}</p>{body}</main></body></html>\n"
    )


def _mark(notebook: Any, outcome: Outcome) -> str:
    """Give every code cell an anchor, and the failed and the differing ones a tag; return the failed one's anchor."""
    different = {mismatch.cell for mismatch in outcome.mismatches}
    failed_anchor, code = "", 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        tags = list(cell.metadata.get("tags", []))
        cell.metadata["kit_anchor"] = f"parameters-{index}" if notebooks.INJECTED in tags else f"code-{code}"
        if code in different and notebooks.INJECTED not in tags:
            tags.append("kit-differs")
        if outcome.failure is not None and outcome.failure.cell == index:
            tags.append("kit-failed")
            failed_anchor = cell.metadata["kit_anchor"]
        cell.metadata["tags"] = tags
        code += notebooks.INJECTED not in tags
    return failed_anchor


def _embedded(page: str, folder: Path) -> str:
    """Embed the image files that the prose shows, if they are in or below the notebook's folder.

    nbconvert's own ``embed_images`` would close a ``<details>`` before its content.
    """

    inside = folder.resolve()

    def embed(match: re.Match[str]) -> str:
        named = unescape(match[2].strip("\"'"))
        if named.startswith("data:"):
            return match[0]
        try:
            path = (inside / unquote(named)).resolve()
            fits = path.is_relative_to(inside) and path.is_file()
        except (ValueError, OSError):  # a NUL, a name that is too long
            fits = False
        kind = (mimetypes.guess_type(path.name)[0] or "") if fits else ""
        if not kind.startswith("image/"):
            return f'{match[1]}"{MISSING}"'
        return f'{match[1]}"data:{kind};base64,{b64encode(path.read_bytes()).decode()}"'

    page = re.sub(r"(<(?:img|source)\b[^<>]*?)\ssrcset\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s>]+)", r"\1", page, flags=re.I)
    return re.sub(r"(<img\b[^<>]*?\ssrc\s*=\s*)(\"[^\"]*\"|'[^']*'|[^\s>]+)", embed, page, flags=re.I)


def _local_links(page: str) -> str:
    """Let links between notebooks lead from page to page."""
    return re.sub(r'href="((?!\w+:|/)[\w./-]*?)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', page)


def _with_contents(page: str) -> str:
    """Fill in the table of contents from the page's second-level headings."""
    items = ""
    for heading in re.finditer(r'<h2\b[^<>]*?\bid="([^"<>]+)', page):
        text = page[page.find(">", heading.end()) + 1 :].partition("</h2>")[0].partition('<a class="anchor-link"')[0]
        items += f'<li><a href="#{heading[1]}">{re.sub("<[^<>]+>", "", text)}</a></li>'
    return page.replace("<!--contents-->", f"<ol>{items}</ol>" if items else "", 1)


def number(headline: dict[str, Any]) -> str:
    """Return a headline's value as a person reads it."""
    value = headline["value"]
    return value if isinstance(value, str) else quantity(value, headline["unit"])


def state(outcome: Outcome) -> str:
    """Return the class that an outcome is coloured by; its words and its sign say the same."""
    if not outcome.good:
        return "bad"
    return "good" if outcome.comparison == "same" or outcome.updated else "wait"


def sign(outcome: Outcome) -> str:
    """Return one character for an outcome, so that it can be read without colour."""
    return {"good": "✓", "bad": "✗", "wait": "•"}[state(outcome)]


@cache
def style() -> str:
    """Return the style sheet of every page."""
    return (TEMPLATES / "style.css").read_text()


@cache
def code_style() -> str:
    """Return the colours of code, for light and for dark pages."""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    dark = HtmlFormatter(style="one-dark").get_style_defs(".highlight")
    transparent = ".highlight, .highlight pre { background: transparent !important; }"
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{transparent}\n"
