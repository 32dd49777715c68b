"""Several searches of one index made into one ranking.

Every score is standardised over the candidates (how many standard deviations above their mean) and the results are
added with weights. Unlike reciprocal rank fusion this keeps how much better a passage is than the next, and unlike
raw sums it needs no common scale. The weights were fitted on other corpora than the one that retrieval is reported on:
see data/evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from kit.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

Fusion: TypeAlias = Literal["standard", "reciprocal"]
RECIPROCAL_K = 60  # Source: Cormack, Clarke, Büttcher: Reciprocal Rank Fusion, SIGIR 2009


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Which signals count, and how much; a weight of 0 leaves its search out.

    Attributes:
        vector: cosine of question and passage.
        text: BM25 over stems, without stop words.
        lead: cosine of question and the passage's first sentences, both seen from the candidates' mean.
        grams: BM25 over runs of five letters, which meet names and compounds: "copy" in "copyfile".
        candidates: passages that each search brings.
        fusion: standard scores added, or reciprocal ranks (RRF) added.
    """

    vector: float = 1.0
    text: float = 1.0
    lead: float = 0.7
    grams: float = 0.4
    candidates: int = 50
    fusion: Fusion = "standard"

    def __post_init__(self) -> None:
        weights = (self.vector, self.text, self.lead, self.grams)
        if min(weights) < 0 or max(weights) <= 0 or not 1 <= self.candidates <= 10_000:
            raise ConfigurationError(f"{self}: weights must be 0 or more, one above 0, candidates 1 to 10000")


def fuse(scores: Mapping[str, Floats], ranking: Ranking) -> Floats:
    """Return one score for each candidate, float32 (n,): the higher the better.

    Args:
        scores: signal to its scores, float32 (n,); 0 where a text search did not find the candidate.
    """
    total = np.zeros(len(next(iter(scores.values()))), np.float32)
    for signal, values in scores.items():
        weight = getattr(ranking, signal)
        if weight:
            total += weight * (standardised(values) if ranking.fusion == "standard" else reciprocal_ranks(values))
    return total


def standardised(values: Floats) -> Floats:
    """Return how many standard deviations each value lies above the mean; zeros where all are alike."""
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 1e-9 else np.zeros_like(values)


def reciprocal_ranks(values: Floats) -> Floats:
    """Return ``1 / (60 + rank)``, and 0 for what a search did not find."""
    ranks = np.empty(len(values), np.float32)
    ranks[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return np.where(values == 0, 0, 1 / (RECIPROCAL_K + ranks)).astype(np.float32)


def centred_cosine(vectors: Floats, query: Floats) -> Floats:
    """Return the cosine of each vector and the query as seen from the vectors' mean, float32 (n,).

    What all candidates have in common ("this is about Python") no longer hides what tells them apart.
    """
    centre = vectors.mean(axis=0)
    return cosine(vectors - centre, query - centre)


def cosine(vectors: Floats, query: Floats) -> Floats:
    """Return the cosine of each vector, float32 (n, dim), and the query, float32 (dim,); 0 for a vector of zeros."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    cosines: Floats = np.divide(vectors @ query, lengths, out=np.zeros(len(vectors), np.float32), where=lengths > 1e-9)
    return cosines
