"""How many tokens a text has for a model: an estimate that names its method.

All vocabularies are on this machine already, so counting needs no network: OpenAI's (cl100k_base, o200k_base, …) ship
with LiteLLM, the word pieces of the kit's own offline models with WordLlama. For any other model the count of a like
vocabulary is an approximation, and is called so.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Share of a budget to keep free where another vocabulary counts. Word pieces of 32 K vocabularies are 1.15 times those
# of cl100k_base in prose (the median over data/python_faq.jsonl).
APPROXIMATION = 0.15
FALLBACK = "cl100k_base"  # Source: litellm.token_counter counts every model without a tokenizer of its own with it
BYTES_PER_TOKEN = 3.5  # UTF-8 bytes; English prose has about 4.5 in cl100k_base, Chinese about 3
OWN = "kit/"  # the offline models
OWN_VOCABULARY = "l2_supercat"
_OPENAI = ("cl100k_base", "o200k_base", "p50k_base", "r50k_base")


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
        found = _own() if model.startswith(OWN) else _openai(_vocabulary(model) or FALLBACK)
        self._count: Callable[[str], int] = found or _bytes
        self.exact = found is not None and (model.startswith(OWN) or _vocabulary(model) is not None)
        if found is None:
            self.method = f"bytes/{BYTES_PER_TOKEN:g}"
        elif model.startswith(OWN):
            self.method = f"wordllama/{OWN_VOCABULARY}"
        else:
            self.method = f"tiktoken/{_vocabulary(model) or FALLBACK}" + ("" if self.exact else " (approximation)")

    @property
    def margin(self) -> float:
        """Share to keep free of a budget because the count is not the model's own."""
        return 0.0 if self.exact else APPROXIMATION

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, special tokens counted as the plain text they are here."""
        return self._count(text) if text else 0


def estimate_tokens(text: str, model: str) -> TokenCount:
    """Estimate the tokens of a text for a model.

    The first call for a vocabulary takes about 0.3 s: call it off the event loop, or accept that once.
    """
    counter = TokenCounter(model)
    return TokenCount(tokens=counter.count(text), method=counter.method, exact=counter.exact)


def _bytes(text: str) -> int:
    return -(-len(text.encode()) * 2 // int(2 * BYTES_PER_TOKEN))


def _vocabulary(model: str) -> str | None:
    """Return the name of the model's own vocabulary, if it is on this machine."""
    import tiktoken

    try:
        name = tiktoken.encoding_name_for_model(model.rsplit("/", 1)[-1])
    except KeyError:
        return None
    return name if name in _shipped() else None


@functools.cache
def _own() -> Callable[[str], int] | None:
    """Return what counts the word pieces of the kit's offline models, which is what they bill."""
    folder = _package("wordllama")
    path = folder / "tokenizers" / f"{OWN_VOCABULARY}_tokenizer_config.json" if folder else None
    if path is None or not path.exists():
        return None
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(path)).encode
    return lambda text: len(encode(text, add_special_tokens=False).ids)


@functools.cache
def _openai(name: str) -> Callable[[str], int] | None:
    """Return what counts by one of OpenAI's vocabularies, or None where it would have to be fetched."""
    if name not in _shipped():
        return None
    import tiktoken

    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(_folder()))  # as LiteLLM sets it itself when it is imported
    encode = tiktoken.get_encoding(name).encode_ordinary
    return lambda text: len(encode(text))


@functools.cache
def _shipped() -> frozenset[str]:
    """Return the names of OpenAI's vocabularies that are on this machine."""
    folder = _folder()
    if folder is None:
        return frozenset()
    # Source: tiktoken.load.read_file_cached names a cached vocabulary by the SHA-1 of its address.
    address = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
    digests = {name: hashlib.sha1(address.format(name).encode(), usedforsecurity=False).hexdigest() for name in _OPENAI}
    return frozenset(name for name, digest in digests.items() if (folder / digest).exists())


def _folder() -> Path | None:
    if chosen := os.environ.get("TIKTOKEN_CACHE_DIR"):
        return Path(chosen)
    package = _package("litellm")
    return package / "litellm_core_utils" / "tokenizers" if package else None


def _package(name: str) -> Path | None:
    """Return the folder of a package, without importing it."""
    found = importlib.util.find_spec(name)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
