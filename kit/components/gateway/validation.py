"""Checks of a response that a request may ask for: its form, a JSON Schema, its grounding in the context."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.codec import CodecError, ForeignSchema, shorten

from .errors import RequestRefused
from .models.language import STOPWORDS, split_units, stem, words
from .models.prompt import read_messages
from .models.static import static_embeddings
from .parameters import foreign_schema

if TYPE_CHECKING:
    from .models.static import StaticEmbeddings

LEVELS = ("none", "format", "json_schema", "grounding")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffd]")
_REFUSAL = re.compile(
    r"\b(?:do(?:es)? not|don't|doesn't|cannot|can't) (?:know|support|answer|find|contain|mention)"
    r"|\bno (?:answer|information)\b",
    re.I,
)
_GROUNDED = 0.6  # share of a sentence's weight that the context must hold
_CLOSE = 0.6  # cosine from which another word counts as the same
_MOST_COMPARED = (
    4_000  # words of a context, and of a response, that are compared so; beyond them it is letter by letter
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a check found.

    Attributes:
        level: how strictly was looked.
        passed: whether the response may be given.
        score: grounding, 0 to 1, where it was measured.
        detail: what is wrong, without quoting the response.
    """

    level: str
    passed: bool
    score: float | None = None
    detail: str | None = None

    def as_data(self) -> dict[str, Any]:
        """Return it as the ``validation`` object of a response."""
        data: dict[str, Any] = {"level": self.level, "passed": self.passed}
        if self.score is not None:
            data["score"] = self.score
        if self.detail is not None:
            data["detail"] = self.detail
        return data


PASSED_NONE = Verdict(level="none", passed=True)


async def check_response(request: Mapping[str, Any], response: Mapping[str, Any]) -> Verdict:
    """Check a response as its request asks: ``none``, ``format``, ``json_schema`` or ``grounding``.

    A stricter level includes ``format``.

    Raises:
        RequestRefused: the request's schema is unusable.
    """
    asked = request.get("validation") or {}
    level = asked.get("level", "none")
    if level == "none":
        return PASSED_NONE
    fault = _format_fault(request, response, asked.get("max_length"))
    if fault is not None:
        return Verdict(level=level, passed=False, detail=fault)
    if response.get("tool_calls"):
        return Verdict(level=level, passed=True)
    if level == "json_schema":
        fault = await asyncio.to_thread(_schema_fault, response.get("response") or "", _schema_of(request, asked))
        return Verdict(level=level, passed=fault is None, detail=fault)
    if level == "grounding":
        passages = asked.get("context") or [p.text for p in read_messages(_messages(request)).passages]
        score = await asyncio.to_thread(
            lambda: grounding(response.get("response") or "", passages, static_embeddings())
        )
        least = asked.get("min_score", 0.8)
        detail = None if score >= least else f"{score:.2f} of it is supported by the context, {least:g} is asked for"
        return Verdict(level=level, passed=score >= least, score=score, detail=detail)
    return Verdict(level=level, passed=True)


def check_schema(request: Mapping[str, Any]) -> None:
    """Refuse a check that cannot be made, before anything is spent on the response.

    Raises:
        RequestRefused: the check needs a JSON Schema, and there is none or an unusable one.
    """
    asked = request.get("validation") or {}
    if asked.get("level") == "json_schema":
        _schema_of(request, asked)


def _messages(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    return request.get("messages") or [{"role": "user", "content": request.get("prompt", "")}]


def _format_fault(request: Mapping[str, Any], response: Mapping[str, Any], max_length: int | None) -> str | None:
    """What is wrong with a response's form, or None."""
    text, calls = response.get("response"), response.get("tool_calls") or ()
    if not calls and not (text or "").strip():
        return "it is empty"
    if response.get("finish_reason") in ("content_filter", "error"):
        return f"the provider ended it with {response['finish_reason']}"
    if text and _CONTROL.search(text):
        return "it has control characters or broken encoding in it"
    if text and max_length is not None and len(text) > max_length:
        return f"it has {len(text)} characters, {max_length} are allowed"
    offered = {tool["function"]["name"] for tool in request.get("tools") or ()}
    for call in calls:
        if offered and call["function"]["name"] not in offered:
            return "it calls a tool that was not offered"
        if not isinstance(_parsed(call["function"]["arguments"] or "{}"), dict):
            return "the arguments of a tool call are no JSON object"
    wanted = (request.get("parameters") or {}).get("response_format", {}).get("type")
    if not calls and wanted in ("json_object", "json_schema") and _parsed(text or "") is _BROKEN:
        return "it is no JSON"
    return None


_BROKEN = object()


def _parsed(text: str) -> Any:
    """Parse JSON, bare or in a code fence; ``_BROKEN`` when it is none."""
    text = text.strip()
    language, newline, inside = text[3:-3].partition("\n")
    fenced = len(text) > 6 and text.startswith("```") and text.endswith("```") and newline
    try:
        return json.loads(inside if fenced and language.strip() in ("", "json") else text)
    except (ValueError, RecursionError):
        return _BROKEN


def _schema_of(request: Mapping[str, Any], asked: Mapping[str, Any]) -> ForeignSchema:
    """The schema to check against: the validation's own, or the one of ``response_format``."""
    named = (request.get("parameters") or {}).get("response_format", {}).get("json_schema", {}).get("schema")
    schema = asked.get("schema") or named
    if not isinstance(schema, Mapping):
        raise RequestRefused("validation level json_schema needs a schema: in validation.schema or response_format")
    return foreign_schema(schema, "validation.schema", used=True)


def _schema_fault(text: str, schema: ForeignSchema) -> str | None:
    """What breaks the schema, by path and rule; never by value."""
    value = _parsed(text)
    if value is _BROKEN:
        return "it is no JSON"
    try:
        fault = schema.fault(value)
    except CodecError as error:
        return error.reason
    if fault is None:
        return None
    path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{shorten(part, 60)}" for part in fault.path)
    return f"{path} breaks the rule '{fault.rule}'" if fault.rule else fault.reason


def grounding(response: str, passages: Sequence[str], model: StaticEmbeddings) -> float:
    """Return how much of a response its context supports: the share of its sentences whose words stand there.

    A sentence that says that there is no answer needs no support. Numbers must stand in the context as they are. Other
    words may stand there as near synonyms, which is looked for among so many words and no more.
    """
    sentences = [unit.text for unit in split_units(re.sub(r"(?<!\s)\s*+\[\d++\]", "", response).replace("```", ""))]
    sentences = [text for text in sentences if words(text) and not _REFUSAL.search(text)]
    if not sentences:
        return 1.0
    context = [word for passage in passages for word in words(passage)]
    if not context:
        return 0.0
    stems = {stem(word) for word in context}
    flat = " ".join(" ".join(passages).split()).casefold()
    others = [word for text in sentences for word in words(text) if stem(word) not in stems]
    close = _close(others, context, model)
    supported = sum(_is_grounded(text, flat, stems, close, model) for text in sentences)
    return supported / len(sentences)


def _close(others: Sequence[str], context: Sequence[str], model: StaticEmbeddings) -> set[str]:
    """Return those words for which a context has another that means much the same."""
    found, known = (list(dict.fromkeys(listed))[:_MOST_COMPARED] for listed in (others, context))
    if not found:
        return set()
    units = [model.word_vectors(listed) for listed in (found, known)]
    one, other = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6) for vectors in units)
    likeness = (one @ other.T).max(1)
    return {word for word, like in zip(found, likeness, strict=True) if like >= _CLOSE}


def _is_grounded(sentence: str, flat: str, stems: set[str], close: set[str], model: StaticEmbeddings) -> bool:
    if " ".join(sentence.split()).casefold().rstrip(".") in flat:
        return True
    content = [word for word in words(sentence) if word.casefold() not in STOPWORDS]
    if any(word[0].isdigit() and stem(word) not in stems for word in content):
        return False
    if not content:
        return True
    weights = np.clip((np.linalg.norm(model.word_vectors(content), axis=1) - 4.0) / 10.0, 0.1, 1.6)
    held = np.array([stem(word) in stems or word in close for word in content])
    return float((held * weights).sum() / weights.sum()) >= _GROUNDED
