"""A context within a token budget: ranked, without repetitions, cut at sentence ends, with an account of the rest."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kit.components.prompts.errors import BudgetTooSmall
from kit.components.prompts.tokens import TokenCounter

DEFAULT_MODEL = "kit/extractive"
PRIORITY = 5  # of an item that names none; 9 is put in first
SHINGLE = 3  # words; two texts that share most of their word triples say the same
DUPLICATE = 0.85  # share of an item's triples found in one that is in already
SHORTEST = 12  # tokens; a shorter beginning of an item is not worth its place

_WORD = re.compile(r"\w+")
_END = re.compile(r"""(?<![.!?…])[.!?…]++["')\]»”’]*+(?=\s|$)|[。！？]+[」』”’]*|\n(?=[^\S\n]*(?:\n|[-*#•]|\d+[.)]))""")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:e\.g|i\.e|cf|vs|approx|dr|mr|mrs|ms|prof|fig|no|st|[a-z])\.$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Included:
    """An item that is in the context, with its place from 1 and what was cut off its end."""

    item_id: str
    rank: int
    tokens: int
    truncated: bool = False
    tokens_left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An item that is not in the context, and why: ``budget``, ``duplicate``, ``empty`` or ``threshold``."""

    item_id: str
    reason: str
    tokens: int
    duplicate_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """A built context.

    Attributes:
        tokens: of the text, counted by ``estimator``; at most ``limit``.
        limit: tokens that could be used: the budget less the reserve, and less a tenth where counting approximates.
    """

    text: str
    tokens: int
    budget: int
    limit: int
    model: str
    estimator: str
    included: tuple[Included, ...]
    left_out: tuple[LeftOut, ...]

    def account(self) -> dict[str, Any]:
        """Return what is in and what is not, as it travels."""
        included = [
            {"item_id": item.item_id, "rank": item.rank, "tokens": item.tokens, "truncated": item.truncated}
            | ({"tokens_left_out": item.tokens_left_out} if item.truncated else {})
            for item in self.included
        ]
        left_out = [
            {"item_id": item.item_id, "reason": item.reason, "tokens": item.tokens}
            | ({"duplicate_of": item.duplicate_of} if item.duplicate_of else {})
            for item in self.left_out
        ]
        return {"included": included, "left_out": left_out}


def build_context(
    items: Sequence[Mapping[str, Any] | str],
    budget: int,
    *,
    model: str = DEFAULT_MODEL,
    query: str | None = None,
    reserve: int = 0,
    separator: str = "\n\n",
    min_score: float | None = None,
    counter: TokenCounter | None = None,
) -> Context:
    """Build the best context that fits a token budget.

    Items go in by ``required``, then ``priority`` (9 first), then relevance: their scores where all have one, else how
    well their words match the query, else their order. One that repeats what is in already is left out; the first that
    does not fit is cut at the end of a sentence; what is left out is reported with its reason.

    Args:
        items: texts, or mappings with ``content`` and, as wanted, ``item_id``, ``title``, ``score``, ``priority``,
            ``required``.
        budget: tokens at most, of which ``reserve`` are kept free.
        min_score: items that score less are left out.

    Raises:
        BudgetTooSmall: a required item does not fit.
    """
    counter = counter or TokenCounter(model)
    limit = max(0, math.floor((budget - reserve) * (1.0 - counter.margin)))
    builder = _Builder(counter=counter, limit=limit, separator=separator)
    for item in _ranked([_Item.of(given, index) for index, given in enumerate(items)], query):
        builder.offer(item, min_score)
    text = builder.finish()
    return Context(
        text=text,
        tokens=counter.count(text),
        budget=budget,
        limit=limit,
        model=counter.model,
        estimator=counter.method,
        included=tuple(included for _, included in builder.inside),
        left_out=tuple(builder.left_out),
    )


def sentence_ends(text: str) -> list[int]:
    """Return the offsets at which a sentence, a paragraph or a list item ends; the text's own end is the last."""
    ends = [
        found.end()
        for found in _END.finditer(text)
        if not (found.group().startswith(".") and _is_abbreviated(text, found.start() + 1))
    ]
    if text.strip() and (not ends or ends[-1] < len(text.rstrip())):
        ends.append(len(text.rstrip()))
    return ends


def _is_abbreviated(text: str, end: int) -> bool:
    return _ABBREVIATION.search(text, max(end - 10, 0), end) is not None


@dataclass(frozen=True, kw_only=True)
class _Item:
    item_id: str
    text: str
    head: str
    score: float | None
    priority: int
    required: bool

    @classmethod
    def of(cls, given: Mapping[str, Any] | str, index: int) -> _Item:
        fields: Mapping[str, Any] = {"content": given} if isinstance(given, str) else given
        title, text = fields.get("title", ""), str(fields["content"]).strip()
        return cls(
            item_id=str(fields.get("item_id", index + 1)),
            text=text,
            head=f"{title}\n" if title and not text.startswith(title) else "",
            score=fields.get("score"),
            priority=fields.get("priority", PRIORITY),
            required=fields.get("required", False),
        )


@dataclass(kw_only=True)
class _Builder:
    """Takes items in their rank's order for as long as they fit."""

    counter: TokenCounter
    limit: int
    separator: str
    inside: list[tuple[str, Included]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    used: int = 0
    _normal: dict[str, str] = field(default_factory=dict)  # normalised text -> item
    _shingles: dict[int, list[str]] = field(default_factory=dict)  # word triple -> items

    def offer(self, item: _Item, min_score: float | None) -> None:
        """Put an item in, whole or cut, or leave it out."""
        whole = item.head + item.text
        tokens = self.counter.count(whole)
        if not item.text:
            return self._leave(item, "empty", 0)
        if min_score is not None and item.score is not None and item.score < min_score and not item.required:
            return self._leave(item, "threshold", tokens)
        if (like := self._like(item.text)) and not item.required:
            return self._leave(item, "duplicate", tokens, like)
        room = self.limit - self.used - (self.counter.count(self.separator) if self.inside else 0)
        if tokens <= room:
            return self._put(item, whole, tokens, 0)
        if item.required:
            raise BudgetTooSmall(self.limit, smallest=tokens + self.limit - room)
        cut = self._cut(item, room)
        if cut is None:
            return self._leave(item, "budget", tokens)
        part = self.counter.count(cut)
        return self._put(item, cut, part, tokens - part)

    def finish(self) -> str:
        """Return the text, once its own count, not the sum of its parts', is within the limit."""
        while True:
            text = self.separator.join(piece for piece, _ in self.inside)
            if self.counter.count(text) <= self.limit or not self.inside:
                return text
            _, last = self.inside.pop()  # joining made tokens that the parts had not
            self.left_out.append(
                LeftOut(item_id=last.item_id, reason="budget", tokens=last.tokens + last.tokens_left_out)
            )

    def _cut(self, item: _Item, room: int) -> str | None:
        """Return the longest beginning that ends with a sentence and fits, if it is worth its place."""
        if room < SHORTEST:
            return None
        pieces = [item.head + item.text[:end].rstrip() for end in sentence_ends(item.text)]
        fitting = bisect_right(pieces, room, key=self.counter.count)
        if fitting == 0 or self.counter.count(pieces[fitting - 1]) < SHORTEST:
            return None
        return pieces[fitting - 1]

    def _put(self, item: _Item, piece: str, tokens: int, cut: int) -> None:
        self.used += tokens + (self.counter.count(self.separator) if self.inside else 0)
        included = Included(
            item_id=item.item_id, rank=len(self.inside) + 1, tokens=tokens, truncated=cut > 0, tokens_left_out=cut
        )
        self.inside.append((piece, included))
        self._normal[_normal(item.text)] = item.item_id
        for shingle in _shingled(piece):
            self._shingles.setdefault(shingle, []).append(item.item_id)

    def _leave(self, item: _Item, reason: str, tokens: int, like: str | None = None) -> None:
        self.left_out.append(LeftOut(item_id=item.item_id, reason=reason, tokens=tokens, duplicate_of=like))

    def _like(self, text: str) -> str | None:
        """Return the item in the context that says the same."""
        if same := self._normal.get(_normal(text)):
            return same
        shingles = _shingled(text)
        shared = Counter(item_id for shingle in shingles for item_id in self._shingles.get(shingle, ()))
        if not shared:
            return None
        item_id, count = shared.most_common(1)[0]
        return item_id if count >= DUPLICATE * len(shingles) else None


def _normal(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _shingled(text: str) -> set[int]:
    words = _WORD.findall(text.casefold())
    return {hash(tuple(words[start : start + SHINGLE])) for start in range(len(words) - SHINGLE + 1)}


def _ranked(items: list[_Item], query: str | None) -> list[_Item]:
    scored = all(item.score is not None for item in items)
    relevance = [0.0] * len(items)
    if scored:
        relevance = [float(item.score or 0.0) for item in items]
    elif query:
        relevance = _bm25(query, [item.head + item.text for item in items])
    order = sorted(
        range(len(items)), key=lambda index: (-items[index].required, -items[index].priority, -relevance[index], index)
    )
    return [items[index] for index in order]


def _bm25(query: str, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """Score texts by how well their words match the query's.

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009), with its defaults.
    """
    counts = [Counter(_WORD.findall(text.casefold())) for text in texts]
    lengths = [count.total() for count in counts]
    mean = sum(lengths) / len(lengths) if any(lengths) else 1.0
    scores = [0.0] * len(texts)
    for word in set(_WORD.findall(query.casefold())):
        holding = sum(1 for count in counts if word in count)
        weight = math.log(1.0 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for index, count in enumerate(counts):
            times = count[word]
            scores[index] += weight * times * (k1 + 1.0) / (times + k1 * (1.0 - b + b * lengths[index] / mean))
    return scores
