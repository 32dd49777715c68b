"""How well a sentence supports an answer: trained word vectors, weighted overlap, and what the question asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from .language import (
    STOPWORDS,
    Unit,
    answers_kind,
    defines,
    names_a_thing,
    question_kind,
    split_units,
    stem,
    synonyms,
    without_kind,
    words,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .static import StaticEmbeddings

_SYNONYM = 0.75
_MOST_WORDS = 100  # of a question; each is held against each word of the context
_SOFT = 0.40  # below this cosine two different words say nothing about each other


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """One numbered piece of context; ``number`` is None where it cannot be cited."""

    text: str
    title: str = ""
    number: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A unit that may be quoted, with its features and its score (log-odds that it answers the question)."""

    passage: int
    index: int
    unit: Unit
    features: NDArray[np.float32]
    matches: NDArray[np.float32]
    score: float = 0.0


FEATURES = (
    "coverage", "window", "likeness", "passage", "heaviest_missing", "cosine", "passage_cosine", "kind_met",
    "kind_missed", "manner_met", "defining", "early", "cut", "code", "novel",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question's content words with their weights and vectors."""

    text: str
    words: list[str]
    stems: list[str]
    weights: NDArray[np.float32]
    vectors: NDArray[np.float32]
    whole: NDArray[np.float32]
    kind: str | None = field(default=None)

    @classmethod
    def parse(cls, text: str, model: StaticEmbeddings) -> Question:
        """Read a question: function words out, the rest weighted by how much their trained vectors say.

        Of a very long one the last words count: what is asked stands at the end.
        """
        seen: dict[str, str] = {}
        for word in words(without_kind(text)):
            if word.casefold().replace("’", "'") not in STOPWORDS and (
                len(word) > 1 or word.isupper() or word.isdigit()
            ):
                seen.setdefault(stem(word), word)
        content = (list(seen.values()) or words(text))[-_MOST_WORDS:]
        vectors = model.word_vectors(content)
        lengths = np.linalg.norm(vectors, axis=1)
        weights = np.clip((lengths - 4.0) / 10.0, 0.1, 1.6).astype(np.float32)
        return cls(
            text=text, words=content, stems=[stem(word) for word in content], weights=weights,
            vectors=_unit(vectors), whole=_unit(vectors.sum(0, keepdims=True))[0], kind=question_kind(text),
        )  # fmt: skip


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    return np.asarray(vectors / lengths, np.float32)


class Evidence:
    """A question held against passages: ``candidates`` in the passages' order, scored."""

    def __init__(self, question: str, passages: Sequence[Passage], model: StaticEmbeddings) -> None:
        self.passages = passages
        self.question = Question.parse(question, model)
        self._model = model
        self.candidates: list[Candidate] = []
        if self.question.words:
            readings = [_Reading(passage, self.question, model) for passage in passages]
            wholes = np.stack([reading.whole for reading in readings]) if readings else np.zeros((1, 1), np.float32)
            weights = self._discounted(wholes)
            for number, reading in enumerate(readings):
                self.candidates += reading.candidates(number, weights)

    def _discounted(self, wholes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights in which a word that stands in nearly every passage counts less: it tells none of them apart."""
        weights = self.question.weights
        if len(wholes) < 3:
            return weights
        spread = np.mean(wholes >= 0.8, axis=0)
        return np.asarray(weights * (1.0 - DISCOUNT * np.maximum(spread - 0.4, 0.0) / 0.6), np.float32)


class _Reading:
    """One passage read with a question in mind: which of its words match how strongly, unit by unit."""

    def __init__(self, passage: Passage, question: Question, model: StaticEmbeddings) -> None:
        self.question = question
        self.units = split_units(passage.text)
        self.tokens = [words(text) for text in (passage.title, *(unit.text for unit in self.units))]
        flat = [word for row in self.tokens for word in row]
        vectors = model.word_vectors(flat)
        strengths, soft = self._strengths(flat, vectors)
        starts = np.cumsum([0, *map(len, self.tokens)])
        rows = [slice(begin, end) for begin, end in pairwise(starts)]
        self.matches = np.stack([strengths[:, row].max(1, initial=0.0) for row in rows])
        self.likeness = np.stack([soft[:, row].max(1, initial=0.0) for row in rows])
        self.sums = np.stack([vectors[row].sum(0) for row in rows])
        self.whole = np.maximum(self.matches[1:].max(0, initial=0.0), self.matches[0] * 0.9)
        self.cosine = float(_unit(self.sums.sum(0)) @ question.whole)

    def _strengths(
        self, flat: list[str], vectors: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Match and likeness of each question word (rows) with each word of the passage (columns), 0 to 1."""
        question = self.question
        likeness = np.maximum(question.vectors @ _unit(vectors).T, 0.0)
        strengths = np.where(likeness >= _SOFT, 0.85 * likeness, 0.0).astype(np.float32)
        stems = [stem(word) for word in flat]
        for row, (word, root) in enumerate(zip(question.words, question.stems, strict=True)):
            number, others = word[0].isdigit(), synonyms(root)
            for column, other in enumerate(stems):
                if other == root:
                    strengths[row, column] = likeness[row, column] = 1.0
                elif number or other[:1].isdigit():
                    strengths[row, column] = likeness[row, column] = 0.0
                elif other in others:
                    strengths[row, column] = likeness[row, column] = max(strengths[row, column], _SYNONYM)
                elif len(root) >= 4 and len(other) > len(root) and (other.startswith(root) or other.endswith(root)):
                    strengths[row, column] = likeness[row, column] = max(strengths[row, column], 0.8)
        return strengths, likeness

    def candidates(self, number: int, weights: NDArray[np.float32]) -> list[Candidate]:
        """Return the passage's quotable units with their features and scores."""
        found: list[Candidate] = []
        heading, heading_like = self.matches[0] * 0.9, self.likeness[0] * 0.9
        title, last = 0, len(self.units)
        for index, unit in enumerate(self.units):
            row = index + 1
            if unit.kind == "heading" or unit.text.endswith("?"):  # a question is no answer, but what follows may be
                heading = np.maximum(self.matches[0], self.matches[row]) * 0.9
                heading_like = np.maximum(self.likeness[0], self.likeness[row]) * 0.9
                title = row
                continue
            before, after = max(row - 1, 0), min(row + 1, last)
            near = np.maximum.reduce(
                [self.matches[row], heading, 0.8 * self.matches[before], 0.6 * self.matches[after]]
            )
            like = np.maximum.reduce(
                [self.likeness[row], heading_like, 0.8 * self.likeness[before], 0.6 * self.likeness[after]]
            )
            features = self._features(index, near, like, weights)
            lead = float(heading @ weights) / float(weights.sum()) / (1.0 + index)
            score = float(features @ WEIGHTS) + BIAS + LEAD * max(lead - 0.2, 0.0)
            score += ORDER * self._in_order(title) / (1.0 + index) + self._telling(row, title)
            found.append(
                Candidate(passage=number, index=index, unit=unit, features=features, matches=near, score=score)
            )
        return found

    def _in_order(self, row: int) -> float:
        """The share of the question's neighbouring words that stand in the same order in a title."""
        pairs = list(pairwise(self.question.stems))
        asked = set(self.question.stems)
        titled = set(pairwise(root for root in map(stem, self.tokens[row]) if root in asked))
        return sum(pair in titled for pair in pairs) / len(pairs) if pairs else 0.0

    def _telling(self, row: int, title: int) -> float:
        """What a unit's score gains or loses by telling, or not, what the thing is that a question names."""
        stems = self.question.stems
        if not defines(self.question.text):
            return 0.0
        said = [word.casefold() for word in self.tokens[row]]
        said = said[1:] if said[:1] and said[0] in _ARTICLES else said
        if self.units[row - 1].kind != "code" and [stem(word) for word in said[: len(stems)]] == stems:
            return SUBJECT if " ".join(said[len(stems) :][:2]).startswith(_TELLING) else 0.0
        titled = {stem(word) for word in self.tokens[title] if word.casefold() not in STOPWORDS}
        return ASIDE if names_a_thing(self.question.text) and titled != set(stems) else 0.0

    def _features(
        self, index: int, near: NDArray[np.float32], like: NDArray[np.float32], weights: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return one unit's features, in the order of ``FEATURES``."""
        question, unit, tokens = self.question, self.units[index], self.tokens[index + 1]
        total = float(weights.sum())
        kind = question.kind
        hard = kind in ("number", "time", "person", "place")
        met = kind is not None and answers_kind(kind, unit.text)
        novel = {stem(word) for word in tokens if word.casefold() not in STOPWORDS} - set(question.stems)
        return np.array(
            [
                float(self.matches[index + 1] @ weights) / total,
                float(near @ weights) / total,
                float(like @ weights) / total,
                float(self.whole @ weights) / total,
                float(((1.0 - near) * weights).max() / 1.6),
                float(_unit(self.sums[index + 1]) @ question.whole) if tokens else 0.0,
                self.cosine,
                float(hard and met),
                float(hard and not met),
                float(met and not hard),
                float(defines(question.text) and bool(_DEFINING.search(unit.text))),
                1.0 / (1.0 + index),
                float(not unit.whole),
                float(unit.kind == "code"),
                min(len(novel), 4) / 4.0,
            ],
            np.float32,
        )


_DEFINING = re.compile(
    r"^\W*+(?!(?:this|that|these|those|there) )(?:[\w.()_'’-]+ ){1,6}"
    r"(?:is|are|was|were|means|refers to|denotes) (?:an?|the|one|any|used)\b",
    re.IGNORECASE,
)


_ARTICLES = frozenset(("a", "an", "the"))
_TELLING = ("is ", "are ", "means ", "refers to")

DISCOUNT = 0.6
# Fitted as one listwise logistic model (the sentences of five retrieved passages, and "none of them") on two thirds of
# two question sets, split by document: this project's Python FAQ and XQuAD's English part (CC BY-SA 4.0), each question
# once with its document and once without it. The bias includes the threshold: a score above 0 is a supported answer.
WEIGHTS = np.array(
    [1.56, 3.45, 3.39, 2.59, 0.81, 1.19, 0.44, 0.58, -0.87, -0.81, 0.89, 0.27, -0.81, -1.03, -0.74],
    np.float32,
)
LEAD = 2.5  # not fitted: under a heading that asks the question, the first sentences answer it
ORDER = 1.0  # not fitted: "a string to a number" is not "a number to a string"
SUBJECT = 1.5  # not fitted: "X is ..." answers "What is X?" better than what merely mentions X
ASIDE = -10.0  # not fitted: and what merely mentions X, under a title that is not X, does not answer it at all
BIAS = -6.31
