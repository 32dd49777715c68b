"""Plain text as retrieval sees it: sentences with their offsets, words that carry meaning, and light stems."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

# Function words and the words of asking. They say nothing of a passage, and "how do I" stands in every question:
# leaving them out of the full-text index is the largest single gain of text search (see evaluation.ablation).
_STOP_WORDS = """
    a about above after again against all also am an and any are aren as at be because been before being below
    between both but by can cannot could couldn d did didn do does doesn doing don down during each few for from further
    had hadn has hasn have haven having he her here hers him his how i if in into is isn it its itself just ll m may me
    might more most must my myself no nor not now of off on once only or other ought our ours out over own please re s
    same shall she should shouldn so some such t than that the their theirs them then there these they this those
    through to too under until up upon us ve very was wasn we were weren what when where which while who whom whose why
    will with won would wouldn you your yours
"""
STOP_WORDS: frozenset[str] = frozenset(_STOP_WORDS.split())

# Scripts of Chinese, Japanese and Korean, in which no blanks part words, or endings hang on them: pairs of characters
# stand for words.
_PAIRED = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
# Foreign text meets these patterns: each must be linear, also where it fails (tests/test_patterns.py).
_PAIRED_RUN = re.compile(f"[{_PAIRED}]+")
_WORD = re.compile(rf"[{_PAIRED}]+|[^\W_{_PAIRED}]+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[`*]*[A-Z0-9À-ÖØ-Þ])|(?<=[。！？])|\n\s*\n")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|cf|vs|no|fig|eq|vol|mr|mrs|ms|dr|prof|st|inc|ltd|co|u\.s)|\b[A-Z])\.\s*$", re.IGNORECASE
)
_SUFFIXES = ("ational", "ations", "ation", "ingly", "edly", "ments", "ment", "ness", "ings", "ing", "ies", "ied", "ers",
             "er", "ed", "es", "ly", "s", "e", "y")  # fmt: skip


def heading_of(line: str) -> tuple[int, str] | None:
    """Return level and text of a Markdown heading; None for a line that is none.

    Source: CommonMark 0.31, 4.2: what closes a heading stands behind a blank, so that of ``# C#`` it is no part.
    """
    bare = line.lstrip(" ")
    text = bare.lstrip("#")
    level = len(bare) - len(text)
    if len(line) - len(bare) > 3 or not 1 <= level <= 6 or not text[:1].isspace():
        return None
    text = text.strip()
    closed = text.rstrip("#")
    if not closed or closed[-1].isspace():
        text = closed.rstrip()
    return (level, text) if text else None


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; a name such as ``os_path`` gives its parts, ``图书馆`` its pairs."""
    found = _WORD.findall(text.casefold())
    if text.isascii():
        return found
    return [part for word in found for part in (_pairs(word) if _PAIRED_RUN.match(word) else (word,))]


def _pairs(run: str) -> list[str]:
    return [run[begin : begin + 2] for begin in range(max(len(run) - 1, 1))]


def spaced(text: str, *, singles: bool = False) -> str:
    """Return a text for full-text search, in which pairs of Chinese, Japanese and Korean characters are words.

    Args:
        singles: whether each character is one, too: for what is searched in, not for what is asked.
    """
    if text.isascii():
        return text
    return _PAIRED_RUN.sub(lambda run: f" {' '.join(_pairs(run[0]) + (list(run[0]) if singles else []))} ", text)


def content_words(text: str) -> list[str]:
    """Return the words of a text that carry meaning, in their order."""
    return [word for word in words(text) if word not in STOP_WORDS]


@functools.lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return what is left of a word without its ending: enough to join "copy", "copies" and "copying"."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    if len(word) > 3 and word[-1] in "eiy":
        word = word[:-1]
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] else word


def stems(text: str) -> set[str]:
    """Return the stems of the words that carry meaning."""
    return {stem(word) for word in content_words(text)}


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield ``(start, end)`` of each sentence, without the white space around it; a blank line ends one too."""
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.start() < start or ("\n\n" not in match.group() and _abbreviated(text, start, match.start())):
            continue
        yield from _trimmed(text, start, match.start())
        start = match.end()
    yield from _trimmed(text, start, len(text))


def _abbreviated(text: str, start: int, end: int) -> bool:
    return _ABBREVIATION.search(text, max(start, end - 16), end) is not None


def fenced(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield ``(start, end, code)`` of each block of code between fences of backticks."""
    position = 0
    while (start := text.find("```", position)) >= 0 and (line := text.find("\n", start + 3)) >= 0:
        if (end := text.find("```", line + 1)) < 0:
            return
        yield start, end + 3, text[line + 1 : end].removesuffix("\n")
        position = end + 3


def sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    return [text[start:end] for start, end in sentence_spans(text)]


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    piece = text[start:end]
    stripped = piece.strip()
    if stripped:
        begin = start + len(piece) - len(piece.lstrip())
        yield begin, begin + len(stripped)
