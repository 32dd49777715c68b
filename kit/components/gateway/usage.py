"""A call's usage: the provider's report if it is plausible, else an estimate marked as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ESTIMATED = "tokens estimated"  # marks a price whose tokens nobody reported
IMPLAUSIBLE = f"{ESTIMATED}, the provider's count is implausible"
# Tokens of a prompt that a request does not show: a provider's own instructions and template; one picture or file.
_UNSEEN, _ATTACHMENT = 16_384, 65_536
_BESIDE = ("name", "tool_calls", "reasoning_content", "refusal")  # what else of a message a model reads
_PART = 16  # tokens around a text of a batch
_END = 8  # tokens that end an answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A provider's input, and the most that it may use for it.

    Attributes:
        texts: the input.
        prompt: the most tokens that the input may be.
        completion: the most tokens of output, unless more were returned.
    """

    texts: Sequence[str]
    prompt: int
    completion: int


def asked_of(messages: Iterable[Mapping[str, Any]], tools: Any, completion: int) -> Asked:
    """Return what a conversation asks of a model that may write so many tokens."""
    texts, attachments = [], 0
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else [{"text": content}]:
            text = part.get("text")
            attachments += text is None and isinstance(content, list)
            texts.append(str(text or ""))
        texts += [str(message[name]) for name in _BESIDE if message.get(name)]
    texts += [str(tools)] if tools else []
    return Asked(texts=texts, prompt=size_of(texts) + _UNSEEN + attachments * _ATTACHMENT, completion=completion)


def asked_to_embed(texts: Sequence[str]) -> Asked:
    """Return what a batch of texts asks of an embedding model."""
    return Asked(texts=texts, prompt=size_of(texts) + _PART * (len(texts) + _PART), completion=0)


def reported(usage: Any, asked: Asked, said: str) -> tuple[dict[str, int], str]:
    """Return a provider's count of tokens, and the doubt about it: ``ESTIMATED``, ``IMPLAUSIBLE`` or nothing.

    A token is at least one byte of text, so a count above the bytes is implausible; hidden output is bounded by what
    the request allows. No part of a count, each of which may have a price of its own, is
    more than what it is a part of.
    """
    details, more = (getattr(usage, f"{kind}_tokens_details", None) for kind in ("prompt", "completion"))
    tokens = {
        "prompt": getattr(usage, "prompt_tokens", None) or 0,
        "completion": getattr(usage, "completion_tokens", None) or 0,
        "cached": getattr(details, "cached_tokens", None) or 0,
        "reasoning": getattr(more, "reasoning_tokens", None) or 0,
    }
    if not all(isinstance(count, int) and count >= 0 for count in tokens.values()):
        return {}, IMPLAUSIBLE
    written = max(asked.completion, size_of([said]) + _END)
    if tokens["prompt"] > asked.prompt or tokens["completion"] > written:
        return {}, IMPLAUSIBLE
    parts = [(tokens["prompt"], asked.prompt, details), (written, written, more)]
    parts.append((asked.prompt, asked.prompt, getattr(usage, "server_tool_use", None)))
    for whole, most, part in parts:
        for name, count in _counts(part):
            if not isinstance(count, int | float) or not 0 <= count <= (whole if name.endswith("_tokens") else most):
                return {}, IMPLAUSIBLE
    if (not tokens["prompt"] and any(asked.texts)) or (not tokens["completion"] and said):
        return {}, ESTIMATED
    shown = {name: count for name, count in tokens.items() if count or name in ("prompt", "completion")}
    return {**shown, "total": tokens["prompt"] + tokens["completion"]}, ""


def _counts(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield each count in a part of a provider's usage: of cached, spoken, shown tokens, of seconds, of searches."""
    held = part if isinstance(part, Mapping) else getattr(part, "__dict__", {})
    for name, value in held.items():
        if isinstance(value, Mapping) or hasattr(value, "__dict__"):
            yield from _counts(value)
        elif value is not None:
            yield name, value


def size_of(texts: Iterable[str]) -> int:
    """Return the bytes of texts, the most tokens that a tokenizer can make of them."""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
