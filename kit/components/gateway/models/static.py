"""The weights behind the offline models: WordLlama's 256-dimensional word-piece embeddings, which ship in its wheel."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIMENSION = 256


class StaticEmbeddings:
    """Text to a vector by the mean of its word pieces' trained vectors: no network, no state, the same every time.

    Use ``static_embeddings()``, which loads the 32 MB of weights once for the process.
    """

    def __init__(self, weights: NDArray[np.float32], tokenizer: Any) -> None:
        self._weights = weights
        self._tokenizer = tokenizer
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors, float32 (n, 256), for texts; a text without a single word piece gives zeros."""
        return _normalised(self._pooled(texts, mean=True))

    def count_tokens(self, text: str) -> int:
        """Return the number of word pieces in a text, which is what the offline models bill."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else 0

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return the longest beginning of a text that has at most ``max_tokens`` word pieces."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return text if len(offsets) <= max_tokens else text[: offsets[max_tokens][0]].rstrip()

    def word_vectors(self, words: Sequence[str]) -> NDArray[np.float32]:
        """Return the summed, unnormalised vectors of single words, float32 (n, 256).

        The length of such a vector tells how much the word says: about 1.6 for "the", 17 for "Python".
        """
        known = self._vectors
        missing = [word for word in dict.fromkeys(words) if word not in known]
        if missing:
            if len(known) + len(missing) > 100_000:
                known = self._vectors = {}
                missing = list(dict.fromkeys(words))
            known.update(zip(missing, self._pooled(self._forms(missing), mean=False), strict=True))
        if not words:
            return np.zeros((0, DIMENSION), np.float32)
        return np.stack([known[word] for word in words])

    def _forms(self, missing: list[str]) -> list[str]:
        """Write a capitalised word small where the vocabulary knows it better so, as at the beginning of a sentence."""
        small = [word.lower() if word.istitle() else word for word in missing]
        as_written, lowered = (
            self._tokenizer.encode_batch(forms, add_special_tokens=False) for forms in (missing, small)
        )
        return [
            low if len(lowered[i].ids) < len(as_written[i].ids) else word
            for i, (word, low) in enumerate(zip(missing, small, strict=True))
        ]

    def _pooled(self, texts: Sequence[str], *, mean: bool) -> NDArray[np.float32]:
        """Sum or average the word pieces' vectors of each text, in slices that bound the memory."""
        pooled = np.zeros((len(texts), DIMENSION), np.float32)
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        pieces = [encoding.ids for encoding in encodings]
        begin = 0
        while begin < len(pieces):
            end, size = begin, 0
            while end < len(pieces) and (end == begin or size + len(pieces[end]) <= 65_536):
                size += len(pieces[end])
                end += 1
            self._pool_slice(pieces[begin:end], pooled[begin:end], mean=mean)
            begin = end
        return pooled

    def _pool_slice(self, pieces: list[list[int]], out: NDArray[np.float32], *, mean: bool) -> None:
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        filled = lengths > 0
        if not filled.any():
            return
        flat = np.concatenate([np.asarray(ids, np.int64) for ids in pieces if ids])
        starts = np.concatenate(([0], np.cumsum(lengths[filled])[:-1]))
        sums = np.add.reduceat(self._weights[flat], starts, axis=0)
        out[filled] = sums / lengths[filled, None] if mean else sums


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0), np.float32)


@functools.cache
def static_embeddings() -> StaticEmbeddings:
    """Return the process's one loaded model; the first call takes about a second, so make it on a worker thread.

    Source: WordLlama's ``l2_supercat_256`` weights and tokenizer (MIT), read from its wheel.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads warn whenever a kernel forks later
    root, quiet = logging.getLogger(), logging.NullHandler()
    root.addHandler(quiet)  # with a handler there, wordllama's logging.basicConfig at import changes nothing
    try:
        import wordllama
    finally:
        root.removeHandler(quiet)
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    model.tokenizer.no_padding()
    return StaticEmbeddings(np.ascontiguousarray(model.embedding, dtype=np.float32), model.tokenizer)
