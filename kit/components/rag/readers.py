"""Files and bytes read as text: Markdown, plain text, HTML, PDF, and JSON Lines with a document in each line.

What comes out is one text whose characters the passages' offsets count: the file's own text for Markdown and plain
text, and its plain rendering, with ``#`` headings and fenced code, for HTML and PDF.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any, Self

from kit import codec
from kit.components.rag.errors import BadEncoding, DocumentRefused, UnreadableDocument, UnsupportedType
from kit.errors import ConfigurationError

MARKDOWN, PLAIN, HTML, PDF, JSON_LINES = (
    "text/markdown", "text/plain", "text/html", "application/pdf", "application/jsonl"
)  # fmt: skip
MEDIA_TYPES: Mapping[str, str] = {
    ".md": MARKDOWN, ".markdown": MARKDOWN, ".mdx": MARKDOWN, ".txt": PLAIN, ".text": PLAIN, ".rst": PLAIN,
    ".html": HTML, ".htm": HTML, ".xhtml": HTML, ".pdf": PDF, ".jsonl": JSON_LINES, ".ndjson": JSON_LINES,
}  # fmt: skip
_ALIASES = {"application/xhtml+xml": HTML, "application/x-ndjson": JSON_LINES, "text/x-markdown": MARKDOWN,
            "text/x-rst": PLAIN}  # fmt: skip
MAX_ID = 200  # characters, by the schema
_CONTENT = ("content", "text", "body")  # fields of JSON Lines that hold a text, the first that is there


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A document on its way into the index.

    Attributes:
        content: its text, or its bytes where it is not text yet (PDF, HTML of unknown encoding).
        metadata: what is known about it; scalars and lists of them can be filtered on.
        modified_at: UTC, RFC 3339, or None.
    """

    document_id: str
    content: str | bytes
    media_type: str = PLAIN
    title: str | None = None
    source: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    modified_at: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A document as text.

    Attributes:
        pages: for a PDF, the offset at which each page begins.
    """

    text: str
    title: str | None = None
    markdown: bool = True
    pages: tuple[int, ...] = ()


def media_type_of(path: Path) -> str:
    """Return the media type that a file's suffix stands for.

    Raises:
        UnsupportedType: there is no reader for it.
    """
    found = MEDIA_TYPES.get(path.suffix.lower())
    if found is None:
        known = ", ".join(sorted(MEDIA_TYPES))
        raise UnsupportedType(path.name, f"no reader for {path.suffix or 'a file without suffix'}; known are {known}")
    return found


def read(document_id: str, content: str | bytes, media_type: str = PLAIN) -> Reading:
    """Read a document's content as text.

    Raises:
        UnsupportedType, BadEncoding, UnreadableDocument: see each.
    """
    kind = media_type.split(";")[0].strip().lower()
    kind = _ALIASES.get(kind, kind)
    if kind == PDF:
        return _read_pdf(document_id, content)
    if kind not in (MARKDOWN, PLAIN, HTML) and not kind.startswith("text/"):
        raise UnsupportedType(document_id, f"no reader for {media_type!r}")
    text = content if isinstance(content, str) else _decode(document_id, content, media_type)
    text = text.removeprefix("\ufeff")
    if kind == HTML:
        return _read_html(document_id, text)
    if "\x00" in text:
        raise BadEncoding(document_id, "there are NUL characters in it: it is not text")
    if kind == MARKDOWN:
        return Reading(text=text, title=_markdown_title(text))
    return Reading(text=text, markdown=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """The files of a folder that can be read, and those that cannot.

    Attributes:
        root: what document ids are relative to.
        skipped: files for whose suffix there is no reader, relative to the root.
    """

    root: Path
    files: list[Path]
    skipped: list[str]

    @classmethod
    def of(cls, path: Path, pattern: str = "**/*") -> Self:
        """Look a folder through, or take a single file; hidden files are passed over.

        Raises:
            ConfigurationError: there is no such file or folder.
        """
        if not path.exists():
            raise ConfigurationError(f"there is no file or folder {path}")
        root = path if path.is_dir() else path.parent
        found = sorted(path.glob(pattern)) if path.is_dir() else [path]
        shown = [file for file in found if not any(part.startswith(".") for part in file.relative_to(root).parts)]
        files = [file for file in shown if file.is_file()]
        skipped = [file.relative_to(root).as_posix() for file in files if file.suffix.lower() not in MEDIA_TYPES]
        return cls(root=root, files=[file for file in files if file.suffix.lower() in MEDIA_TYPES], skipped=skipped)

    def documents(self) -> Iterator[Document | DocumentRefused]:
        """Yield the documents in the files, and in place of one that cannot be read why not."""
        for file in self.files:
            yield from read_file(file, root=self.root)


def read_file(path: Path, *, root: Path | None = None) -> Iterator[Document | DocumentRefused]:
    """Yield the documents of a file: one, or one for each line of JSON Lines; in place of one that is none, why not.

    Args:
        root: the folder that document ids are relative to; the file's own folder when None.
    """
    name = path.relative_to(root or path.parent).as_posix()
    try:
        kind = media_type_of(path)
        raw = path.read_bytes()
        modified = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC).isoformat().replace("+00:00", "Z")
        if kind == JSON_LINES:
            yield from read_json_lines(raw, name=name)
            return
        content: str | bytes = raw if kind in (PDF, HTML) else _decode(name, raw, kind)
    except DocumentRefused as refusal:
        yield refusal
    except OSError as error:
        yield UnreadableDocument(name, error.strerror or type(error).__name__)
    else:
        yield Document(document_id=shortened(name), content=content, media_type=kind, source=name, modified_at=modified)


def read_json_lines(
    raw: bytes, *, name: str = "lines", content: str | None = None, document_id: str | None = None
) -> Iterator[Document | DocumentRefused]:
    """Yield a document for each line of JSON Lines; in place of a line that is none, why not.

    Args:
        name: what the lines are called in errors and in ids that are missing.
        content: the field that holds the text; when None, the first of content, text, body that is there.
        document_id: the field that names it; when None, document_id or id; without one, its line number does.

    Every field beside those, ``title``, ``source``/``url`` and ``media_type`` is metadata: kept, never searched.
    """
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            try:
                yield _document_of(line, f"{name}:{number}", content, document_id)
            except DocumentRefused as refusal:
                yield refusal


def _document_of(line: bytes, where: str, content: str | None, document_id: str | None) -> Document:
    try:
        row = codec.loads(line.strip())
    except codec.CodecError as error:
        raise UnreadableDocument(where, error.reason) from error
    if not isinstance(row, dict):
        raise UnreadableDocument(where, "a line must be a JSON object")
    fields = _CONTENT if content is None else (content,)
    text_field = next((key for key in fields if isinstance(row.get(key), str)), None)
    if text_field is None:
        raise UnreadableDocument(where, f"it has no text in {' or '.join(map(repr, fields))}")
    text = row.pop(text_field)
    id_field = document_id or ("document_id" if "document_id" in row else "id")
    given = row.pop(id_field, None)
    title, source, url = row.pop("title", None), row.pop("source", None), row.pop("url", None)
    extra = row.pop("metadata", None)
    return Document(
        document_id=shortened(where if given is None or given == "" else str(given)),
        content=text,
        media_type=str(row.pop("media_type", None) or PLAIN),
        title=title if isinstance(title, str) and title else None,
        source=str(source or url) if source or url else None,
        metadata={**row, **(extra if isinstance(extra, dict) else {})},
    )


def shortened(name: str) -> str:
    """Return a name as a document id: unchanged where it fits, else its end behind a hash of the whole."""
    if len(name) <= MAX_ID:
        return name
    return f"{hashlib.sha256(name.encode()).hexdigest()[:16]}…{name[-(MAX_ID - 17) :]}"


def title_from(source: str) -> str:
    """Return what a file's name says of its content: ``docs/refund_policy.txt`` is "refund policy"; "" for no file."""
    path = PurePosixPath(source)
    return re.sub(r"[\s_-]+", " ", path.stem).strip() if path.suffix.lower() in MEDIA_TYPES else ""


def page_of(pages: tuple[int, ...], offset: int) -> int | None:
    """Return the number of the page, from 1, that a character stands on; None for what has no pages."""
    return sum(begin <= offset for begin in pages) or None


def _decode(document_id: str, raw: bytes, media_type: str) -> str:
    match = re.search(r"charset=[\"']?([\w.:-]+)", media_type) or _declared(raw, media_type)
    charset = match.group(1) if match else "utf-8"
    charset = charset.decode("ascii", "replace") if isinstance(charset, bytes) else charset
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        charset = "utf-16"
    try:
        return raw.decode(charset)
    except LookupError as error:
        raise BadEncoding(document_id, f"nobody knows the encoding {charset!r}") from error
    except UnicodeDecodeError as error:
        raise BadEncoding(document_id, f"byte {error.start} is not {charset}: save it as UTF-8") from error


def _declared(raw: bytes, media_type: str) -> re.Match[bytes] | None:
    """The encoding that an HTML file declares for itself."""
    return re.search(rb"<meta[^>]+charset=[\"']?([\w.:-]+)", raw[:2048], re.IGNORECASE) if HTML in media_type else None


def _markdown_title(text: str) -> str | None:
    front = re.match(r"---\s*\n(.*?)\n(?:---|\.\.\.)\s*\n", text, re.DOTALL)
    match = re.search(r"^title:\s*[\"']?(.+?)[\"']?\s*$", front.group(1), re.MULTILINE) if front else None
    match = match or re.search(r"^ {0,3}#\s+(.+?)\s*#*\s*$", text, re.MULTILINE)
    return match.group(1) if match else None


def _read_pdf(document_id: str, content: str | bytes) -> Reading:
    if isinstance(content, str):
        raise UnreadableDocument(document_id, "a PDF is sent as bytes, by claim check")
    import pypdf
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it warns of was mended, or is said below
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableDocument(document_id, "the PDF is encrypted")
        texts = [_unwrapped(page.extract_text()) for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    except DocumentRefused:
        raise
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError) as error:
        # pypdf meets damage with whatever error its parser runs into.
        raise UnreadableDocument(document_id, f"the PDF is damaged: {type(error).__name__}") from error
    pages, length = [], 0
    for text in texts:
        pages.append(length)
        length += len(text) + 2
    return Reading(text="\n\n".join(texts), title=title or None, markdown=False, pages=tuple(pages))


def _unwrapped(page: str) -> str:
    """Join the lines of a page that run on: a PDF knows lines, not paragraphs."""
    page = page.replace("\x00", "")
    page = re.sub(r"(?<=[a-zà-ÿ])-\n(?=[a-zà-ÿ])", "", page)
    return re.sub(r"(?<=[^\n.!?:;])\n(?=[a-zà-ÿ(])", " ", page).strip()


def _read_html(document_id: str, text: str) -> Reading:
    rendering = _Rendering()
    try:
        rendering.feed(text)
        rendering.close()
    except (AssertionError, ValueError) as error:
        raise UnreadableDocument(document_id, f"the HTML is damaged: {type(error).__name__}") from error
    return Reading(text=rendering.text(), title=rendering.title())


_SILENT = frozenset({"script", "style", "nav", "noscript", "template", "svg", "iframe", "button", "select", "form"})
_BLOCK = frozenset({
    "p", "div", "section", "article", "main", "ul", "ol", "table", "blockquote", "dl", "dt", "dd", "figure", "tr",
    "figcaption", "header", "footer", "aside", "body", "details", "summary", "address", "hr",
})  # fmt: skip


class _Rendering(HTMLParser):
    """HTML as plain text with Markdown's headings, list marks and code fences; scripts and navigation left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._titles: list[str] = []
        self._silent = 0
        self._pre = 0
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent += 1
        elif tag == "title":
            self._in_title = True
        elif tag == "pre":
            self._pre += 1
            self._parts.append("\n\n```\n")
        elif re.fullmatch("h[1-6]", tag):
            self._parts.append("\n\n" + "#" * int(tag[1]) + " ")
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag == "br":
            self._parts.append("\n")
        elif tag in ("td", "th"):
            self._parts.append(" | ")
        elif tag in _BLOCK:
            self._parts.append("\n" if tag == "tr" else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag == "title":
            self._in_title = False
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
            self._parts.append("\n```\n\n")
        elif re.fullmatch("h[1-6]", tag) or (tag in _BLOCK and tag != "tr"):
            self._parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._titles.append(data)
        elif not self._silent:
            self._parts.append(data if self._pre else re.sub(r"\s+", " ", data.replace("\xb6", "")))

    def title(self) -> str | None:
        return " ".join("".join(self._titles).split()) or None

    def text(self) -> str:
        """Return the rendering, with the white space tidied outside code."""
        pieces = re.split(r"(```\n.*?\n```)", "".join(self._parts), flags=re.DOTALL)
        for number in range(0, len(pieces), 2):
            tidy = re.sub(r"[ \t]*\n[ \t]*", "\n", pieces[number])
            pieces[number] = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]{2,}", " ", tidy))
        return "".join(pieces).strip().replace("\x00", "")
