"""How many tokens a text has for a model: an estimate that names its method.

The vocabularies of OpenAI's models (cl100k_base, o200k_base) are on this machine already: LiteLLM ships them, so
counting needs no network. For any other model the count of a like vocabulary is an approximation, and is called so.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

APPROXIMATION = 0.1  # share by which the token count of another vocabulary may be off, and more for code and CJK
FALLBACK = "cl100k_base"  # Source: litellm.token_counter counts every model without a tokenizer of its own with it
BYTES_PER_TOKEN = 3.5  # UTF-8 bytes, English prose has about 4.5 in cl100k_base, Chinese about 3


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """Tokens of a text.

    Attributes:
        tokens: the count, never below 0.
        method: how it was made, e.g. ``tiktoken/o200k_base``.
        exact: whether the model itself counts this way (its chat wrapping excepted).
    """

    tokens: int
    method: str
    exact: bool


class TokenCounter:
    """Counts tokens as one model does, as nearly as is known here.

    Args:
        model: LiteLLM's name of the model, with or without its provider (``openai/gpt-4o``, ``kit/extractive``).
    """

    def __init__(self, model: str) -> None:
        self.model = model
        name, self.exact = _vocabulary(model)
        self._encoding = _encoding(name)
        if self._encoding is None:
            self.exact = False
            self.method = f"bytes/{BYTES_PER_TOKEN:g}"
        else:
            self.method = f"tiktoken/{name}" + ("" if self.exact else " (approximation)")

    @property
    def margin(self) -> float:
        """Share to keep free of a budget because the count is not the model's own."""
        return 0.0 if self.exact else APPROXIMATION

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, special tokens counted as the plain text they are here."""
        if self._encoding is None:
            return -(-len(text.encode()) * 2 // int(2 * BYTES_PER_TOKEN))
        return len(self._encoding.encode_ordinary(text))


def estimate_tokens(text: str, model: str) -> TokenCount:
    """Estimate the tokens of a text for a model.

    The first call for a vocabulary takes about 0.3 s: call it off the event loop, or accept that once.
    """
    counter = TokenCounter(model)
    return TokenCount(tokens=counter.count(text), method=counter.method, exact=counter.exact)


def _vocabulary(model: str) -> tuple[str, bool]:
    """Return the vocabulary to count with, and whether it is the model's own."""
    import tiktoken

    try:
        name = tiktoken.encoding_name_for_model(model.rsplit("/", 1)[-1])
    except KeyError:
        return FALLBACK, False
    return (name, True) if name in _shipped() else (FALLBACK, False)


@functools.cache
def _shipped() -> frozenset[str]:
    """Return the names of the vocabularies that are on this machine."""
    import hashlib

    folder = _folder()
    if folder is None:
        return frozenset()
    # Source: tiktoken.load.read_file_cached names a cached vocabulary by the SHA-1 of its address.
    address = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
    names = ("cl100k_base", "o200k_base", "p50k_base", "r50k_base")
    return frozenset(
        name
        for name in names
        if (folder / hashlib.sha1(address.format(name).encode(), usedforsecurity=False).hexdigest()).exists()
    )


def _folder() -> Path | None:
    if chosen := os.environ.get("TIKTOKEN_CACHE_DIR"):
        return Path(chosen)
    package = importlib.util.find_spec("litellm")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0], "litellm_core_utils", "tokenizers")


@functools.cache
def _encoding(name: str) -> Any:
    """Return tiktoken's encoding, or None where its vocabulary would have to be fetched."""
    if name not in _shipped():
        return None
    import tiktoken

    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(_folder()))  # as LiteLLM sets it itself when it is imported
    return tiktoken.get_encoding(name)
