"""PDF and HTML as plain text, in this process or in one that can be killed.

As a process it is started by path with ``python -P`` and imports nothing but the standard library and pypdf. One
request, one answer, each a line of JSON; it ends when its standard input does. A file of some kilobytes can take
gigabytes or hours: only a memory limit and a kill from outside stop that, no check from inside.
"""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import logging
import re
import signal
import sys
from html.parser import HTMLParser
from typing import Any

MAX_TEXT = 5_000_000  # characters of one document: some 1,500 printed pages
MAX_PAGES = 5_000
MEMORY = 2 * 2**30  # bytes of address space of the process
_SCANT = 40  # characters on a scanned page at most: more is more than a page number
_SHOWN = 20  # pages that a note names
_MARKS = "#-|`*+>=_~. \t\r\n"  # what a rendering puts in by itself


class Unreadable(Exception):
    """The document cannot be rendered as text.

    Attributes:
        kind: ``damaged`` or ``large``.
    """

    def __init__(self, reason: str, kind: str = "damaged") -> None:
        self.kind = kind
        super().__init__(reason)


def render_pdf(raw: bytes) -> dict[str, Any]:
    """Return a PDF's ``text``, ``title``, the offsets at which its ``pages`` begin, and ``notes`` on what was not read.

    Raises:
        Unreadable: it is damaged, encrypted or too large.
    """
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # pypdf repaired what it warns of, or it is reported below
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("the PDF is encrypted")
        if len(reader.pages) > MAX_PAGES:
            raise Unreadable(f"{len(reader.pages):,} pages exceed the limit of {MAX_PAGES:,}: split it", "large")
        title = _clean((reader.metadata and reader.metadata.title) or "")
        pages = list(reader.pages)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # pypdf raises arbitrary errors on damaged files
        raise Unreadable(f"the PDF is damaged: {type(error).__name__}") from error
    texts, length = [], 0
    for page in pages:
        texts.append(text := _text_of(page))
        length += len(text or "")
        _check_length(length)
    begins = [0, *itertools.accumulate(len(text or "") + 2 for text in texts)][: len(texts)]
    broken = [number for number, text in enumerate(texts, start=1) if text is None]
    if len(broken) == len(pages):
        raise Unreadable("the PDF is damaged: no page of it can be read")
    scant = [
        number
        for number, text in enumerate(texts, start=1)
        if text is not None and len(text) < _SCANT and (not text or _has_picture(pages[number - 1]))
    ]
    notes = [_about(scant, len(pages), "little or no text: scanned text is not read")] if scant else []
    notes += [_about(broken, len(pages), "damage and could not be read")] if broken else []
    return {"text": "\n\n".join(text or "" for text in texts), "title": title or None, "pages": begins, "notes": notes}


def _text_of(page: Any) -> str | None:
    """Return a page's text; None if it is damaged."""
    try:
        return _unwrapped(page.extract_text())
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as above; it is told, by the page's number
        return None


def _about(pages: list[int], count: int, what: str) -> str:
    shown = ", ".join(map(str, pages[:_SHOWN])) + (f" and {len(pages) - _SHOWN} more" if len(pages) > _SHOWN else "")
    many = len(pages) > 1
    return f"page{'s' * many} {shown} of {count} {'have' if many else 'has'} {what}"


def _has_picture(page: Any) -> bool:
    try:
        objects = _within(_within(page, "/Resources"), "/XObject").values()
        return any(entry.get_object().get("/Subtype") == "/Image" for entry in objects)
    except Exception:  # noqa: BLE001 - what cannot be looked at may be one
        return True


def _within(known: Any, key: str) -> Any:
    found = known.get(key)
    return {} if found is None else found.get_object()


def _unwrapped(page: str) -> str:
    """Join the lines of a page that run on: a PDF knows lines, not paragraphs."""
    page = _clean(page)
    page = re.sub(r"(?<=[a-zà-ÿ])-\n(?=[a-zà-ÿ])", "", page)
    return re.sub(r"(?<=[^\n.!?:;])\n(?=[a-zà-ÿ(])", " ", page).strip()


def _clean(text: str) -> str:
    """Return a text without NUL and lone surrogates."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def _check_length(length: int) -> None:
    if length > MAX_TEXT:
        raise Unreadable(f"its text exceeds the limit of {MAX_TEXT:,} characters: split it", "large")


def render_html(page: str) -> dict[str, Any]:
    """Return a page's ``text``, with Markdown's headings, list marks and code fences, ``title``, and ``notes``.

    Raises:
        Unreadable: it is damaged or too large.
    """
    rendering = _Rendering()
    try:
        whole = page.rfind(">") + 1  # behind it no tag ends: html.parser would look for one at each "<"
        rendering.feed(page[:whole])
        rendering.feed(page[whole:].replace("<", "&lt;"))
        rendering.close()
    except (AssertionError, ValueError) as error:
        raise Unreadable(f"the HTML is damaged: {type(error).__name__}") from error
    text = rendering.text()
    _check_length(len(text))
    return {"text": text, "title": rendering.title(), "pages": [], "notes": rendering.notes()}


_SILENT = ("script", "style")  # what is no text; all else is read, hidden or not: nothing tells what a script will show
_BLOCK = frozenset({
    "p", "div", "section", "article", "main", "ul", "ol", "table", "blockquote", "dl", "dt", "dd", "figure", "tr",
    "figcaption", "header", "footer", "aside", "body", "details", "summary", "address", "hr", "form", "fieldset", "nav",
    "menu", "option", "noscript", "template", "dialog",
})  # fmt: skip
# What no navigation holds, but a page does whose navigation has no end.
_CONTENT = frozenset({"main", "article", "section", "p", "table", "pre", "blockquote", "dl", "form", "figure"})


class _Rendering(HTMLParser):
    """HTML as plain text; scripts and styles are left out, and navigation that holds nothing like content."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._titles: list[str] = []
        self._silent = ""
        self._pre = self._left_out = 0
        self._in_title = False
        self._navs: list[int] = []  # where in the parts each begins that may be left out

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title" and not self._titles  # which other tags end, as nothing stands in a title
        heading = re.fullmatch("h[1-6]", tag) is not None
        if heading or tag in _CONTENT:
            self._navs.clear()  # perhaps it has no end, or is none
        if tag in _SILENT:
            self._silent = tag
        elif tag == "pre":
            self._pre += 1
            self._parts.append("\n\n```\n")
        elif heading:
            self._parts.append("\n\n" + "#" * int(tag[1]) + " ")
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag == "br":
            self._parts.append("\n")
        elif tag in ("td", "th"):
            self._parts.append(" | ")
        elif tag == "img":
            self._parts.append(next((value for name, value in attrs if name == "alt" and value), ""))
        elif tag in _BLOCK:
            self._parts.append("\n" if tag == "tr" else "\n\n")
        if tag == "nav":
            self._navs.append(len(self._parts))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._silent:
            self._silent = ""
        elif tag == "title":
            self._in_title = False
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
            self._parts.append("\n```\n\n")
        elif re.fullmatch("h[1-6]", tag) or (tag in _BLOCK and tag != "tr"):
            self._parts.append("\n\n")
        if tag == "nav" and self._navs:
            begin = self._navs.pop()
            self._left_out += len("".join(self._parts[begin:]).split())
            del self._parts[begin:]

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._titles.append(data)
        elif not self._silent:
            self._parts.append(data if self._pre else re.sub(r"\s+", " ", data.replace("\xb6", "")))

    def unknown_decl(self, data: str) -> None:
        if data.startswith("CDATA["):
            self.handle_data(data[6:])

    def title(self) -> str | None:
        return " ".join(_clean("".join(self._titles)).split()) or None

    def notes(self) -> list[str]:
        notes = [f"{self._left_out} words of navigation are left out"] if self._left_out else []
        return notes + ([f"an unclosed <{self._silent}> hides what follows it"] if self._silent else [])

    def text(self) -> str:
        """Return the rendering, with white space tidied outside code; empty if it has only marks."""
        whole, pieces, position = "".join(self._parts), list[str](), 0
        while (start := whole.find("```\n", position)) >= 0 and (end := whole.find("\n```", start + 4)) >= 0:
            pieces += (_tidied(whole[position:start]), whole[start : end + 4])
            position = end + 4
        return without_marks_alone(_clean("".join([*pieces, _tidied(whole[position:])])).strip())


def _tidied(prose: str) -> str:
    """Return text without white space around line breaks, runs of it, or more than one blank line."""
    first, *rest = prose.split("\n")
    if rest:
        *between, last = rest
        lines = (first.rstrip(" \t"), *(line.strip(" \t") for line in between), last.lstrip(" \t"))
        prose = "\n".join(lines)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]{2,}", " ", prose))


def without_marks_alone(text: str) -> str:
    """Return a text; nothing where all of it is marks of headings, lists and the like."""
    return text if text.strip(_MARKS) else ""


def main() -> None:
    """Answer requests from standard input until it ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has it; the deadline still holds
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook cell is its owner's business
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            raw = request.get("pdf")
            answer = {"result": render_html(request["html"]) if raw is None else render_pdf(base64.b64decode(raw))}
        except Unreadable as error:
            answer = {"error": error.kind, "detail": str(error)}
        except MemoryError:
            answer = {"error": "large", "detail": f"reading it takes more than {MEMORY // 2**20:,} MiB of memory"}
        sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
