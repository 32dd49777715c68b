"""Files and bytes read as text: Markdown, plain text, HTML, PDF, and JSON Lines with a document in each line.

What comes out is one text whose characters the passages' offsets count: the file's own text for Markdown and plain
text, and its plain rendering, with ``#`` headings and fenced code, for HTML and PDF.
"""

from __future__ import annotations

import base64
import codecs
import datetime as dt
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from kit import codec
from kit.children import Child, ChildEnded
from kit.components.rag import rendering
from kit.components.rag.errors import (
    BadEncoding,
    DocumentRefused,
    DocumentTooLarge,
    EmptyDocument,
    UnreadableDocument,
    UnsupportedType,
)
from kit.components.rag.text import heading_of
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
MAX_FILE, MAX_LINES = 2**28, 2**30  # bytes of a file; … of JSON Lines
# What a text begins with that says how it is encoded; the longer ones first, as UTF-16's begins UTF-32's.
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
          codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
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
        notes: what is missing from the text, one sentence each.
    """

    text: str
    title: str | None = None
    markdown: bool = True
    pages: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


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
    """Read a document's content as text in this process, however long that takes.

    Raises:
        UnsupportedType, BadEncoding, UnreadableDocument, DocumentTooLarge: see each.
    """
    known = _as_text(document_id, content, media_type)
    if isinstance(known, Reading):
        return known
    kind, raw = known
    try:
        return _rendered(rendering.render_html(raw) if isinstance(raw, str) else rendering.render_pdf(raw), kind)
    except rendering.Unreadable as error:
        raise _refusal(document_id, error.kind, str(error)) from error


class Reader:
    """Reads documents as ``read`` does; PDF and HTML in a process that is killed if it takes too long.

    Args:
        seconds: limit for one document.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self._child = Child("-P", rendering.__file__, line=8 * rendering.MAX_TEXT)

    async def read(self, document_id: str, content: str | bytes, media_type: str = PLAIN) -> Reading:
        """Read a document's content as text.

        Raises:
            UnsupportedType, BadEncoding, UnreadableDocument, DocumentTooLarge: see each.
        """
        known = _as_text(document_id, content, media_type)
        if isinstance(known, Reading):
            return known
        kind, raw = known
        request = {"html": raw} if isinstance(raw, str) else {"pdf": base64.b64encode(raw).decode()}
        try:
            told = await self._child.ask(request, timeout=self.seconds)
        except TimeoutError:
            raise DocumentTooLarge(document_id, f"reading it takes more than {self.seconds:g} s: split it") from None
        except ChildEnded as error:
            raise DocumentTooLarge(document_id, "the reading process crashed on it: split it") from error
        if "error" in told:
            raise _refusal(document_id, told["error"], told["detail"])
        return _rendered(told["result"], kind)

    async def close(self) -> None:
        """End the process."""
        await self._child.close()


def _as_text(document_id: str, content: str | bytes, media_type: str) -> Reading | tuple[str, str | bytes]:
    """Return a text as it was read, or what is to be rendered: a PDF's bytes or the text of a page."""
    kind = media_type.split(";")[0].strip().lower()
    kind = _ALIASES.get(kind, kind)
    if kind == PDF:
        if isinstance(content, str):
            raise UnreadableDocument(document_id, "a PDF must be sent as bytes, by claim check")
        return kind, content
    if kind not in (MARKDOWN, PLAIN, HTML) and not kind.startswith("text/"):
        raise UnsupportedType(document_id, f"no reader for {media_type!r}")
    text = content if isinstance(content, str) else _decode(document_id, content, media_type)
    text = text.removeprefix("\ufeff")
    if kind == HTML:
        return kind, text
    if "\x00" in text:
        raise BadEncoding(document_id, "there are NUL characters in it: it is not text")
    if len(text) > rendering.MAX_TEXT:
        raise DocumentTooLarge(
            document_id, f"{len(text):,} characters exceed the limit of {rendering.MAX_TEXT:,}: split it"
        )
    if kind == MARKDOWN:
        return Reading(text=rendering.without_marks_alone(text), title=_markdown_title(text))
    return Reading(text=text, markdown=False)


def _rendered(told: Mapping[str, Any], kind: str) -> Reading:
    return Reading(
        text=told["text"], title=told["title"], markdown=kind == HTML, pages=tuple(told["pages"]),
        notes=tuple(told["notes"]),
    )  # fmt: skip


def _refusal(document_id: str, kind: str, reason: str) -> DocumentRefused:
    return (DocumentTooLarge if kind == "large" else UnreadableDocument)(document_id, reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A folder's readable files, and the others.

    Attributes:
        root: what document ids are relative to.
        skipped: files without a reader for their suffix, relative to the root.
        refused: entries that are not followed, such as links out of the folder.
    """

    root: Path
    files: list[Path]
    skipped: list[str]
    refused: list[DocumentRefused] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, pattern: str = "**/*", *, follow_links: bool = False) -> Self:
        """Search a folder, or take a single file; hidden files are skipped.

        Args:
            follow_links: whether to follow links to files outside the folder.

        Raises:
            ConfigurationError: there is no such file or folder.
        """
        if not path.exists():
            raise ConfigurationError(f"there is no file or folder {path}")
        root = path if path.is_dir() else path.parent
        made = cls(root=root, files=[], skipped=[])
        within = None if path.is_file() or follow_links else root.resolve()
        for file in sorted(path.glob(pattern)) if path.is_dir() else [path]:
            if any(part.startswith(".") for part in file.relative_to(root).parts):
                continue
            name = named(file.relative_to(root))
            reason = _not_looked_into(file, within)
            if reason:
                made.refused.append(DocumentRefused(shortened(name), reason))
            elif file.is_file():
                known = file.suffix.lower() in MEDIA_TYPES
                made.files.append(file) if known else made.skipped.append(name)
        return made

    def documents(self) -> Iterator[Document | DocumentRefused]:
        """Yield the documents in the files, and in place of one that cannot be read why not."""
        yield from self.refused
        for file in self.files:
            yield from read_file(file, root=self.root)


def _not_looked_into(file: Path, within: Path | None) -> str:
    """Return why a file or folder is skipped, if it is: a link out of ``within``, or no permission."""
    try:
        if file.is_symlink() and file.is_dir():
            return "links to folders are not followed"
        if within is not None and not file.resolve().is_relative_to(within):
            return "links out of the folder are not followed: use follow_links=True to read it"
        if file.is_symlink() and not file.exists():
            return "it is a broken link"
        if file.is_dir():
            next(file.iterdir(), None)
    except (OSError, RuntimeError) as error:
        return getattr(error, "strerror", None) or "it is a broken link"
    return ""


def named(path: Path) -> str:
    """Return a path as text that can be sent, with bytes that are not UTF-8 as escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def read_file(path: Path, *, root: Path | None = None) -> Iterator[Document | DocumentRefused]:
    """Yield the documents of a file: one, or one for each line of JSON Lines; in place of one that is none, why not.

    Args:
        root: the folder that document ids are relative to; the file's own folder when None.
    """
    name = named(path.relative_to(root or path.parent))
    try:
        kind = media_type_of(path)
        size, most = path.stat().st_size, MAX_LINES if kind == JSON_LINES else MAX_FILE
        if size > most:
            raise DocumentTooLarge(name, f"{size:,} bytes exceed the limit of {most:,}: split it")
        raw = path.read_bytes()
        modified = _time(path.stat().st_mtime)
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


def _time(seconds: float) -> str | None:
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # a file system may claim any time
        return None


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
    charset = json.detect_encoding(raw)
    if charset.startswith("utf-8"):
        lines = raw.removeprefix(codecs.BOM_UTF8).split(b"\n")
    else:  # a lone surrogate spoils only its own line
        lines = [line.encode() for line in raw.decode(charset, "replace").removeprefix("\ufeff").split("\n")]
    if not any(line.strip() for line in lines):
        yield EmptyDocument(name)
    for number, line in enumerate(lines, start=1):
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
    return f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}…{name[-(MAX_ID - 17) :]}"


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
    charset = next((known for mark, known in _MARKS.items() if raw.startswith(mark)), charset)
    try:
        return raw.decode(charset)
    except LookupError as error:
        raise BadEncoding(document_id, f"nobody knows the encoding {charset!r}") from error
    except UnicodeDecodeError as error:
        raise BadEncoding(document_id, f"byte {error.start} is not {charset}: save it as UTF-8") from error


def _declared(raw: bytes, media_type: str) -> re.Match[bytes] | None:
    """The encoding that an HTML file declares for itself."""
    return re.search(rb"<meta[^<>]+charset=[\"']?([\w.:-]+)", raw[:2048], re.IGNORECASE) if HTML in media_type else None


def _markdown_title(text: str) -> str | None:
    lines = text.split("\n")
    ends = (number for number, line in enumerate(lines) if number and line.rstrip() in ("---", "..."))
    front = lines[1 : next(ends, 0)] if lines[0].rstrip() == "---" else []
    named = (line[6:].strip().removeprefix('"').removesuffix('"').strip("'") for line in front if line[:6] == "title:")
    headed = (found[1] for line in lines if (found := heading_of(line)) and found[0] == 1)
    return next(filter(None, (*named, next(headed, None))), None)
