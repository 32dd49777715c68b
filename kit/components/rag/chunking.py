"""Documents cut into passages along their structure: headings, paragraphs, lists, tables and code.

A passage is a run of whole blocks up to ``max_chars``. It ends at a heading, unless the section is too short to stand
for itself and joins the next. Code stays whole. Where one section needs several passages, each begins with the last
sentences of the one before, so that nothing is cut off from what it refers to. Every passage is an exact slice of the
document: ``document[chunk.start:chunk.end] == chunk.content``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from kit.components.rag.text import heading_of, sentence_spans
from kit.errors import ConfigurationError

_UNDERLINE = re.compile(r"\A {0,3}(=+|-+)\s*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_INDENTED = re.compile(r"(?: {4}|\t)")
_LIST_ITEM = re.compile(r"\A\s*+(?:[-*+•]|\d{1,3}[.)])\s+\S")
_CODE_LINE = re.compile(
    r"\A\s*+(?:>>> |\.\.\. |#|[{}]|[\w.\[\]]+ = |(?:def|class|for|while|if|elif|with)\b.*:$"
    r"|(?:import|from|return)\b.*[)\w]$)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunking:
    """How documents are cut.

    Attributes:
        max_chars: characters of a passage at most; a longer block of code or table is kept whole up to four times that.
        min_share: part of ``max_chars`` below which a section joins the next one, as far as both fit.
        overlap_share: part of ``max_chars`` that a further passage of a section repeats of the one before at most.
        lead_sentences: sentences that make the passage's lead, which is embedded for itself too.
    """

    max_chars: int = 2000
    min_share: float = 0.4
    overlap_share: float = 0.1
    lead_sentences: int = 2

    def __post_init__(self) -> None:
        if self.max_chars < 100 or not (0 <= self.min_share <= 1 and 0 <= self.overlap_share <= 0.5):
            raise ConfigurationError(
                f"{self}: max_chars must be at least 100, min_share 0 to 1, overlap_share 0 to a half"
            )
        if self.lead_sentences < 1:
            raise ConfigurationError(f"{self}: lead_sentences must be at least 1")

    @property
    def min_chars(self) -> int:
        """Characters below which a section joins the next one."""
        return int(self.max_chars * self.min_share)

    @property
    def overlap_chars(self) -> int:
        """Characters that a passage repeats of the one before at most."""
        return int(self.max_chars * self.overlap_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One passage of a document.

    Attributes:
        start, end: where it lies in the document, in characters.
        heading: the headings above it, outermost first, joined by " › "; "" where there are none.
    """

    index: int
    start: int
    end: int
    content: str
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, a list, a table or a piece of code: what is not cut apart while it fits."""

    start: int
    end: int
    kind: str  # heading, prose, code
    level: int = 0
    title: str = ""


def chunk(text: str, chunking: Chunking | None = None, *, markdown: bool = True) -> list[Chunk]:
    """Cut a document into passages, in their order; one without text gives none.

    Args:
        markdown: whether ``#`` begins a heading; in plain text it may begin a comment of some code.
    """
    chunking = chunking or Chunking()
    chunks: list[Chunk] = []
    sections = list(_sections(list(blocks(text, markdown=markdown))))
    for heading, section in _joined_sections(sections, chunking):
        for start, end in _pack(text, section, chunking):
            chunks.append(Chunk(index=len(chunks), start=start, end=end, content=text[start:end], heading=heading))
    return chunks


def lead(content: str, chunking: Chunking | None = None) -> str:
    """Return the first sentences of a passage: what it is about, most of the time."""
    chunking = chunking or Chunking()
    spans = list(sentence_spans(content))[: chunking.lead_sentences]
    return " ".join(content[start:end] for start, end in spans)[: chunking.max_chars]


def blocks(text: str, *, markdown: bool = True) -> Iterator[Block]:
    """Yield the blocks of a Markdown or plain text, in their order; front matter is passed over."""
    lines = _lines(text)
    position = _front_matter(lines) if markdown else 0
    while position < len(lines):
        start, end, line = lines[position]
        if not line.strip():
            position += 1
        elif fence := _FENCE.match(line):
            last = _fence_end(lines, position, fence.group(1))
            yield Block(start, lines[last][1], "code")
            position = last + 1
        elif markdown and (found := heading_of(line)):
            yield Block(start, end, "heading", *found)
            position += 1
        elif position + 1 < len(lines) and _underlined(line, lines[position + 1][2]):
            level = 1 if "=" in lines[position + 1][2] else 2
            yield Block(start, lines[position + 1][1], "heading", level, line.strip())
            position += 2
        else:
            last = _paragraph_end(lines, position, markdown)
            piece = [entry[2] for entry in lines[position : last + 1]]
            yield Block(start, lines[last][1], "code" if _is_code(piece) else "prose")
            position = last + 1


def _lines(text: str) -> list[tuple[int, int, str]]:
    """Return ``(start, end, line)`` of each line, the end before its line break."""
    found = []
    position = 0
    for raw in text.splitlines(keepends=True):
        line = raw.rstrip("\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029")
        found.append((position, position + len(line), line))
        position += len(raw)
    return found


def _front_matter(lines: list[tuple[int, int, str]]) -> int:
    """Return the number of the first line after YAML front matter; 0 where there is none."""
    if not lines or lines[0][2].rstrip() != "---":
        return 0
    return next((number + 1 for number in range(1, len(lines)) if lines[number][2].rstrip() in ("---", "...")), 0)


def _fence_end(lines: list[tuple[int, int, str]], position: int, fence: str) -> int:
    for last in range(position + 1, len(lines)):
        closing = lines[last][2].strip()
        if closing.startswith(fence) and not closing.strip(fence[0]):
            return last
    return len(lines) - 1  # never closed: code to the end


def _underlined(line: str, following: str) -> bool:
    """Whether a line is a heading by the rule below it, as in Markdown's second style and in reStructuredText."""
    match = _UNDERLINE.match(following)
    plain = not _LIST_ITEM.match(line) and not line.startswith((" ", "\t", "|", ">"))
    return match is not None and plain and len(match.group(1)) >= 3 and len(line.strip()) <= 120


def _paragraph_end(lines: list[tuple[int, int, str]], position: int, markdown: bool) -> int:
    last = position
    while last + 1 < len(lines):
        following = lines[last + 1][2]
        if not following.strip() or _FENCE.match(following) or (markdown and heading_of(following)):
            break
        last += 1
    return last


def _is_code(lines: list[str]) -> bool:
    if all(_INDENTED.match(line) for line in lines):
        return not any(_LIST_ITEM.match(line) for line in lines)
    return sum(bool(_CODE_LINE.match(line)) for line in lines) > 0.6 * len(lines)


Path: TypeAlias = tuple[tuple[int, str], ...]  # the headings above, outermost first: level and title


def _sections(found: list[Block]) -> Iterator[tuple[Path, list[Block]]]:
    """Yield each run of blocks between two headings, its own heading first, with the headings above it."""
    path: Path = ()
    section: list[Block] = []
    for block in found:
        if block.kind == "heading":
            if section:
                yield path, section
            path = (*((level, title) for level, title in path if level < block.level), (block.level, block.title))
            section = []
        section.append(block)
    if section:
        yield path, section


def _joined_sections(sections: list[tuple[Path, list[Block]]], chunking: Chunking) -> Iterator[tuple[str, list[Block]]]:
    """Yield sections, short ones joined with what follows, each with the heading that all of it stands under."""
    position = 0
    while position < len(sections):
        path, section = sections[position]
        position += 1
        while position < len(sections):
            following_path, following = sections[position]
            size, both = section[-1].end - section[0].start, following[-1].end - section[0].start
            bare = all(block.kind == "heading" for block in section)
            if (both > chunking.max_chars and not bare) or size >= chunking.min_chars:
                break
            # What stands below a heading belongs to it; a neighbour shares only what is above both.
            path = path if following_path[: len(path)] == path else _common(path, following_path)
            section = [*section, *following]
            position += 1
        alone = section[0].kind == "heading" and len(section) > 1 and path and section[0].title == path[-1][1]
        yield " › ".join(title for _, title in path), section[1:] if alone else section


def _common(one: Path, other: Path) -> Path:
    """Return the headings that stand above both."""
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return one[:shared]


def _pack(text: str, section: list[Block], chunking: Chunking) -> Iterator[tuple[int, int]]:
    """Yield the spans of a section's passages: whole blocks, as many as fit, with overlap."""
    pieces = [piece for block in section for piece in _pieces(text, block, chunking)]
    start = end = 0
    for number, (piece_start, piece_end, _) in enumerate(pieces):
        if end and piece_end - start > chunking.max_chars:
            yield start, end
            start = _overlap(text, pieces[number - 1], piece_start, piece_end, chunking)
        elif not end:
            start = piece_start
        end = piece_end
    if end:
        yield start, end


def _pieces(text: str, block: Block, chunking: Chunking) -> Iterator[tuple[int, int, str]]:
    """Yield a block, or its parts where it is larger than a passage may be."""
    limit = chunking.max_chars * 4 if block.kind == "code" else chunking.max_chars
    if block.end - block.start <= limit:
        yield block.start, block.end, block.kind
        return
    start = end = block.start
    for unit_start, unit_end in _units(text, block, chunking.max_chars):
        if end > start and unit_end - start > chunking.max_chars:
            yield start, end, block.kind
            start = unit_start
        end = unit_end
    yield start, end, block.kind


def _units(text: str, block: Block, size: int) -> Iterator[tuple[int, int]]:
    """Yield the sentences of prose, or the lines of code; what is longer than ``size`` is cut at white space."""
    body = text[block.start : block.end]
    spans = _line_spans(body) if block.kind == "code" else sentence_spans(body)
    for start, end in spans:
        while end - start > size:
            cut = body.rfind(" ", start + size // 2, start + size)
            cut = cut if cut > 0 else start + size
            yield block.start + start, block.start + cut
            start = cut + (body[cut : cut + 1] == " ")
        yield block.start + start, block.start + end


def _line_spans(body: str) -> Iterator[tuple[int, int]]:
    for start, end, line in _lines(body):
        if line.strip():
            yield start, end


def _overlap(text: str, previous: tuple[int, int, str], start: int, end: int, chunking: Chunking) -> int:
    """Return where the next passage begins: with the last sentences of the prose before it, as far as they fit."""
    before_start, before_end, kind = previous
    room = min(chunking.overlap_chars, chunking.max_chars - (end - start) - (start - before_end))
    if kind != "prose" or room <= 0:
        return start
    begin = start
    for sentence_start, _ in reversed(list(sentence_spans(text[before_start:before_end]))):
        if before_end - (before_start + sentence_start) > room or sentence_start == 0:
            break
        begin = before_start + sentence_start
    return begin
