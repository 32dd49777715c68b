"""Answers held against what they cite: which sentence rests on which words of which passage.

A claim is a sentence of the answer, or a block of code in it. It is supported as far as its words stand in the passages
it cites, and not at all when it has a number that they have not. That is a check of words, not of logic: it finds what
was made up or cited wrongly, and would miss a "not" that was lost.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kit.components.rag.text import content_words, fenced, sentence_spans, stem, words

if TYPE_CHECKING:
    import pandas as pd

SUPPORTED = 0.6  # share of a claim's words from which on it counts as supported
_UNLIKE = 0.4  # most that a claim gets whose numbers are not in the passage
_LONGEST_NAME = 100
_MARK = re.compile(r"(?<![\[(])\[([1-9]\d{0,2})\](?!\()")
_INLINE = re.compile(r"`[^`\n]+`")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """The words of a source that support a claim best.

    Attributes:
        start, end: where they lie in the source's document, in characters.
        support: share of the claim that the source's passage supports, 0 to 1.
    """

    citation: int
    document_id: str
    chunk_id: str
    text: str
    start: int
    end: int
    support: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A sentence of an answer, and what it rests on.

    Attributes:
        citations: the numbers it cites, as they stand; () where it cites nothing.
        unknown: those of them that no source has.
        quote: of the source that supports it best, among those it cites, or among all that the answer cites.
    """

    text: str
    citations: tuple[int, ...] = ()
    unknown: tuple[int, ...] = ()
    quote: Quote | None = None

    @property
    def support(self) -> float:
        """How much of it its sources support, 0 to 1."""
        return 0.0 if self.quote is None else self.quote.support

    @property
    def supported(self) -> bool:
        """Whether its sources support it, and exist."""
        return not self.unknown and self.support >= SUPPORTED


@dataclass(frozen=True, kw_only=True, slots=True)
class Citations:
    """What a check of an answer found.

    Attributes:
        claims: the answer's sentences, in their order.
    """

    claims: tuple[Claim, ...] = field(default=())

    @property
    def support(self) -> float:
        """Mean support of the claims: the answer's grounding, 0 to 1; 0 for an answer without claims."""
        return sum(claim.support for claim in self.claims) / len(self.claims) if self.claims else 0.0

    @property
    def supported_share(self) -> float:
        """Share of the claims that are supported, 0 to 1."""
        return sum(claim.supported for claim in self.claims) / len(self.claims) if self.claims else 0.0

    @property
    def valid(self) -> bool:
        """Whether something is cited, every number cited exists, and every claim is supported."""
        return any(claim.citations for claim in self.claims) and all(claim.supported for claim in self.claims)

    def table(self) -> pd.DataFrame:
        """Return a row for each claim: what it says, what it cites, and the words that support it."""
        import pandas as pd

        rows = [
            {
                "claim": claim.text,
                "cites": list(claim.citations),
                "supported": claim.supported,
                "support": round(claim.support, 3),
                "document": claim.quote.document_id if claim.quote else None,
                "start": claim.quote.start if claim.quote else None,
                "end": claim.quote.end if claim.quote else None,
                "quote": claim.quote.text if claim.quote else None,
            }
            for claim in self.claims
        ]
        return pd.DataFrame(
            rows, columns=["claim", "cites", "supported", "support", "document", "start", "end", "quote"]
        )


def check_citations(result: Mapping[str, Any]) -> Citations:
    """Check an answer (a ``rag_result`` or an ``api_answer``) against the sources that came with it."""
    return check(result.get("answer") or "", result.get("sources", ()))


def check(answer: str, sources: Sequence[Mapping[str, Any]]) -> Citations:
    """Check an answer's claims against numbered sources.

    Args:
        sources: each with ``content``, and its number as ``citation`` or ``rank``; else numbered in their order.
    """
    numbered = {
        source.get("citation") or source.get("rank") or place: source for place, source in enumerate(sources, start=1)
    }
    found = list(claims(answer))
    cited = {number for _, numbers in found for number in numbers if number in numbered}
    checked = []
    for text, numbers in found:
        known = [number for number in numbers if number in numbered] or sorted(cited)
        quotes = [_quote(text, number, numbered[number]) for number in known]
        best = max(quotes, key=lambda quote: quote.support, default=None)
        unknown = tuple(number for number in numbers if number not in numbered)
        checked.append(Claim(text=text, citations=numbers, unknown=unknown, quote=best))
    return Citations(claims=tuple(checked))


def claims(answer: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each sentence and each block of code of an answer, with the numbers cited right behind it."""
    for segment, numbers in _segments(answer):
        texts = list(_texts(segment))
        for place, text in enumerate(texts):
            yield text, numbers if place == len(texts) - 1 else ()


def _segments(answer: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the pieces of an answer between its citations, with the numbers that follow each."""
    blocks = [(start, end) for start, end, _ in fenced(answer)]
    inline = [match.span() for match in _INLINE.finditer(answer)]
    segment, end = "", 0
    numbers: list[int] = []
    for mark in _MARK.finditer(answer):
        at = mark.start()
        if _inside(at, blocks) or _inside(at, inline) or _is_index(answer[max(0, at - _LONGEST_NAME) : at]):
            continue
        between = answer[end : mark.start()]
        if numbers and between.strip(" \n,;"):
            yield segment, tuple(numbers)
            segment, numbers = "", []
        segment, end = segment or between, mark.end()
        numbers.append(int(mark.group(1)))
    yield segment, tuple(numbers)
    yield answer[end:], ()


def _is_index(before: str) -> bool:
    """Whether a number in brackets is an index, as in a_list[1]: a citation follows a space or a plain word."""
    begin = len(before)
    while begin and (before[begin - 1].isalnum() or before[begin - 1] in "_."):
        begin -= 1
    last = before[begin:].rpartition(".")[2]
    return last != "" and not (len(last) > 1 and last.isalpha())


def _inside(position: int, spans: list[tuple[int, int]]) -> bool:
    """Whether a position lies in one of the spans, which are in order."""
    before = bisect_right(spans, position, key=lambda span: span[0]) - 1
    return before >= 0 and position < spans[before][1]


def _texts(segment: str) -> Iterator[str]:
    """Yield the sentences and the code of a piece of an answer that has no citation in it."""
    position = 0
    for begin, stop, code in [*fenced(segment), (len(segment), len(segment), "")]:
        prose = segment[position:begin]
        for start, end in sentence_spans(prose):
            text = re.sub(r"^[\s.,;:*#>-]+(?=\w)", "", prose[start:end]).strip()
            if words(text):
                yield text
        if code.strip():
            yield code
        position = stop


def _quote(claim: str, number: int, source: Mapping[str, Any]) -> Quote:
    """Find the words of a source that support a claim best."""
    content = str(source.get("content") or "")
    above = " ".join(str(source.get(key) or "") for key in ("title", "heading"))
    start, end = _best_span(claim, content)
    offset = int(source.get("start") or 0)
    return Quote(
        citation=number,
        document_id=source["document_id"],
        chunk_id=source.get("chunk_id", ""),
        text=content[start:end],
        start=offset + start,
        end=offset + end,
        support=support(claim, f"{above}\n{content}"),
    )


def support(claim: str, passage: str) -> float:
    """Return the share of a claim that a passage supports, 0 to 1; 1 where it stands there word for word."""
    said = words(claim)
    if not said:
        return 0.0
    if _contains(words(passage), said):
        return 1.0
    there = {stem(word) for word in words(passage)}
    meant = [stem(word) for word in content_words(claim)] or [stem(word) for word in said]
    share = sum(word in there for word in meant) / len(meant)
    missing = any(word.isdigit() and word not in there for word in meant)
    return min(share, _UNLIKE) if missing else share


def _contains(whole: list[str], part: list[str]) -> bool:
    return f" {' '.join(part)} " in f" {' '.join(whole)} "


def _best_span(claim: str, content: str) -> tuple[int, int]:
    """Return where the sentence of a passage lies that is most like the claim, or the claim itself."""
    exact = content.find(claim)
    if exact >= 0:
        return exact, exact + len(claim)
    wanted = {stem(word) for word in content_words(claim)}

    def likeness(span: tuple[int, int]) -> float:
        has = {stem(word) for word in content_words(content[span[0] : span[1]])}
        return len(has & wanted) / (len(has | wanted) or 1)

    return max(sentence_spans(content), key=likeness, default=(0, len(content)))
