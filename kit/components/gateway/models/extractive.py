"""An extractive chat model: it answers in the context's own sentences, cites them, or says that nothing does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .language import STOPWORDS, Unit, answers_kind, points_elsewhere, split_units, stem, words
from .prompt import Conversation, read_messages, read_result
from .support import Candidate, Evidence, Passage, Question
from .tools import ToolCall, choose_tool, looks_up

if TYPE_CHECKING:
    from .static import StaticEmbeddings

NOT_SUPPORTED = "I do not know: the passages do not support an answer to this question."
NO_CONTEXT = "I do not know: there is no context here that I could answer from."
_SURE = 1.5  # a score from which a passage answers better than a tool could
_NEAR = 1.0  # a further sentence may score this much less than the best one
_ELSEWHERE = 2.0  # a sentence that points elsewhere has to score this much more than one that says something
_DANGLING = 1.0  # the same for one that cannot be read without what the passage has cut off before it
_SHORT = 7  # words, at most, of a sentence that only opens an answer
_LITTLE = 2  # content words, at most, that it adds to the question
_ANAPHORA = re.compile(
    r"\A(?:(?:however|also|therefore|thus|then|otherwise|in this case|for example|such|doing so|but|and|so|similarly"
    r"|he|she|that|it|they|them|this|these|those|its)\b"
    r"|\W*+(?:\w++\W++){1,10}?(?:it|they|them|this|these|those|its)\b)",
    re.I,
)
_POINTS_BACK = re.compile(r"\A\W*+(?:it|they|them|this|these|those|that|he|she|such|its|their)\b", re.I)
_SUMMARY = re.compile(r"\b(?:summari[sz]e|summary|tl;?dr|key points|main points|in brief)\b", re.I)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What the model says, or the tool it asks for.

    Attributes:
        text: the answer ("" for a tool call).
        tool_call: the call, or None.
        finish_reason: ``stop``, ``length`` or ``tool_calls``.
        prompt_tokens / completion_tokens: word pieces read and written.
        supported: whether something in the context supports the answer.
    """

    text: str
    tool_call: ToolCall | None = None
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    supported: bool = True


def complete(
    messages: Sequence[Mapping[str, Any]],
    model: StaticEmbeddings,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: Any = "auto",
    max_tokens: int | None = None,
    response_format: Mapping[str, Any] | None = None,
) -> Completion:
    """Answer OpenAI chat messages from what stands in them; the same messages give the same answer."""
    talk = read_messages(messages)
    prompt_tokens = model.count_tokens("\n".join(_prompt_texts(messages, tools)))
    call, text, supported = _decide(talk, model, tools, tool_choice)
    if call is not None:
        spent = model.count_tokens(call.name) + model.count_tokens(call.arguments)
        return Completion(
            text="", tool_call=call, finish_reason="tool_calls", prompt_tokens=prompt_tokens, completion_tokens=spent
        )
    if response_format is not None and response_format.get("type") in ("json_object", "json_schema"):
        text = _as_json(text, supported, response_format)
    reason = "stop"
    if max_tokens is not None and model.count_tokens(text) > max_tokens:
        text, reason = model.truncate(text, max_tokens), "length"
    return Completion(
        text=text, finish_reason=reason, prompt_tokens=prompt_tokens, completion_tokens=model.count_tokens(text),
        supported=supported,
    )  # fmt: skip


def _prompt_texts(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[str]:
    texts = [json.dumps(tools, ensure_ascii=False)] if tools else []
    for message in messages:
        content = message.get("content")
        texts.append(content if isinstance(content, str) else json.dumps(content or message.get("tool_calls") or ""))
    return texts


def _decide(
    talk: Conversation, model: StaticEmbeddings, tools: Sequence[Mapping[str, Any]], tool_choice: Any
) -> tuple[ToolCall | None, str, bool]:
    """Choose between the context, a tool and its result, and saying that nothing supports an answer."""
    if talk.results:
        return _after_tools(talk, model, tools, tool_choice)
    if _SUMMARY.search(talk.question) and talk.passages:
        return None, _summary(talk.passages, model), True
    evidence = Evidence(talk.question, talk.passages, model)
    best = max((candidate.score for candidate in evidence.candidates), default=-np.inf)
    if tools and (best < _SURE or tool_choice == "required" or isinstance(tool_choice, Mapping)):
        call = choose_tool(talk.question, tools, tool_choice, model, fallback=best <= 0)
        if call is not None:
            return call, "", True
    if best > 0:
        return None, compose(evidence), True
    return None, talk.refusal or (NOT_SUPPORTED if talk.passages else NO_CONTEXT), False


def _after_tools(
    talk: Conversation, model: StaticEmbeddings, tools: Sequence[Mapping[str, Any]], tool_choice: Any
) -> tuple[ToolCall | None, str, bool]:
    """Answer from the tools' results; a plain result is an answer in itself, a search's result must support one."""
    numbered = sum(passage.number is not None for passage in talk.passages)
    found: list[Passage] = []
    for result in talk.results:
        found += read_result(result, start=numbered + len(found) + 1)
    evidence = Evidence(talk.question, [*found, *talk.passages], model)
    if any(candidate.score > 0 for candidate in evidence.candidates):
        return None, compose(evidence), True
    plain = [result for result in talk.results if not looks_up(result.name, tools)]
    if not plain and tools and tool_choice != "none":
        done = {result.name for result in talk.results}
        others = [tool for tool in tools if tool.get("function", {}).get("name") not in done]
        call = choose_tool(talk.question, others, "auto", model, fallback=True)
        if call is not None:
            return call, "", True
    if plain:
        return None, "\n".join(_state(result.name, read_result(result, 1)) for result in plain), True
    return None, talk.refusal or NOT_SUPPORTED, False


def _state(name: str, passages: Sequence[Passage]) -> str:
    """Say what a tool returned: a bare value in a sentence, text as it stands."""
    text = "\n".join(passage.text for passage in passages).strip()
    if not text:
        return f"{name} returned nothing."
    bare = "\n" not in text and ": " not in text and len(text.split()) <= 3
    return f"The result of {name} is {text.rstrip('.')}." if bare else text[:1500]


def compose(evidence: Evidence, limit: int = 3) -> str:
    """Quote the best supported units, at most ``limit`` and what belongs to them, each with its citation."""
    supported = [candidate for candidate in evidence.candidates if candidate.score > 0]
    least = max(candidate.score for candidate in supported) - _NEAR
    chosen: list[Candidate] = []
    for candidate in sorted(supported, key=lambda c: (-_worth(c), c.passage, c.index)):
        full = len(chosen) == limit or sum(c.unit.text.count(" ") for c in chosen) > 90
        if full or (chosen and _worth(candidate) < least):
            break
        if not any(_same(candidate.unit.text, other.unit.text) for other in chosen):
            chosen.append(candidate)
    order = list(dict.fromkeys(candidate.passage for candidate in chosen))
    by_place = {(candidate.passage, candidate.index): candidate for candidate in evidence.candidates}
    parts: list[str] = []
    for passage in order:
        indices: list[int] = []
        for candidate in sorted((c for c in chosen if c.passage == passage), key=lambda c: c.index):
            around = _with_context(candidate, by_place, opens=_opens(candidate.unit, evidence.question))
            indices += [index for index in around if index not in indices]
        parts += [_quote(by_place[passage, index], evidence.passages[passage]) for index in sorted(indices)]
    return re.sub(r" ?\n\n\n*", "\n\n", " ".join(parts)).strip()


def _worth(candidate: Candidate) -> float:
    """A candidate's score as something to read: less when it says little by itself."""
    text = candidate.unit.text
    dangling = candidate.index == 0 and bool(_POINTS_BACK.match(text))
    return candidate.score - _ELSEWHERE * points_elsewhere(text) - _DANGLING * dangling


def _opens(unit: Unit, question: Question) -> bool:
    """Whether a sentence only opens an answer, as "Yes." does, or "There are several reasons."."""
    said = words(unit.text)
    if unit.kind != "sentence" or len(said) > _SHORT:
        return False
    if question.kind in ("number", "time", "person", "place") and answers_kind(question.kind, unit.text):
        return False
    new = {stem(word) for word in said if word.casefold() not in STOPWORDS} - set(question.stems)
    return len(new) <= _LITTLE


def _with_context(candidate: Candidate, by_place: Mapping[tuple[int, int], Candidate], *, opens: bool) -> list[int]:
    """A unit with what it cannot be read without: what "it" refers to, what a colon announces, what it opens."""
    passage, index = candidate.passage, candidate.index
    indices = [index]
    first, before = candidate, by_place.get((passage, index - 1))
    while before is not None and before.unit.kind == "sentence" and before.unit.whole and len(indices) < 3:
        near = first.unit.paragraph - before.unit.paragraph <= 1
        together = near and bool(_ANAPHORA.match(first.unit.text))
        if not together and not (first.unit.kind in ("code", "item") and before.unit.text.endswith(":")):
            break
        indices.insert(0, before.index)
        first, before = before, by_place.get((passage, before.index - 1))
    following = by_place.get((passage, index + 1)) if opens else None
    if following is not None and following.unit.whole and not _adds_nothing(following.unit.text, candidate.unit.text):
        return [*indices, following.index, *_announced(following, by_place)]
    return [*indices, *_announced(candidate, by_place)]


def _adds_nothing(text: str, opening: str) -> bool:
    return text == opening or points_elsewhere(text)


def _announced(candidate: Candidate, by_place: Mapping[tuple[int, int], Candidate]) -> list[int]:
    """What a colon at the end of a unit announces: code, a sentence, or the items of a list."""
    indices: list[int] = []
    if not candidate.unit.text.endswith(":"):
        return indices
    following = by_place.get((candidate.passage, candidate.index + 1))
    while following is not None and len(indices) < 6:
        indices.append(following.index)
        if following.unit.kind != "item":
            break
        following = by_place.get((following.passage, following.index + 1))
        if following is not None and following.unit.kind != "item":
            break
    return indices


def _quote(candidate: Candidate, passage: Passage) -> str:
    mark = f" [{passage.number}]" if passage.number is not None else ""
    text = candidate.unit.text
    if candidate.unit.kind == "code":
        lines = text.split("\n")
        return "\n\n```\n" + "\n".join(lines[:16]) + f"\n```\n{mark.strip()}\n\n"
    if candidate.unit.kind == "item" and not re.search(r"[.!?:;]$", text):
        text += "."
    return text + mark


def _same(one: str, other: str) -> bool:
    a, b = (re.sub(r"\W+", " ", text).casefold().strip() for text in (one, other))
    return a == b or a in b or b in a


def _summary(passages: Sequence[Passage], model: StaticEmbeddings, limit: int = 3) -> str:
    """Quote the sentences nearest to the middle of everything said, in their order."""
    rows = [(p, u) for p in passages for u in split_units(p.text) if u.kind in ("sentence", "item") and u.whole]
    if not rows:
        return NOT_SUPPORTED
    vectors = model.embed([unit.text for _, unit in rows])
    nearness = vectors @ vectors.mean(0) + np.array([0.05 / (1 + i) for i in range(len(rows))])
    best = sorted(np.argsort(-nearness, kind="stable")[:limit])
    return " ".join(
        rows[i][1].text + (f" [{rows[i][0].number}]" if rows[i][0].number is not None else "") for i in best
    )


def _as_json(text: str, supported: bool, response_format: Mapping[str, Any]) -> str:
    """Write an answer as the JSON that the caller's schema asks for."""
    schema = response_format.get("json_schema", {}).get("schema") or {}
    cited = [int(number) for number in dict.fromkeys(re.findall(r"\[(\d+)\]", text))]
    properties = schema.get("properties") or {
        "answer": {"type": "string"},
        "citations": {"type": "array", "items": {"type": "integer"}},
        "supported": {"type": "boolean"},
    }
    plain = re.sub(r"(?<!\s)\s*+\[\d++\]", "", text)
    values = {name: _json_value(row, plain, cited, supported) for name, row in properties.items()}
    return json.dumps(values, ensure_ascii=False)


def _json_value(row: Mapping[str, Any], text: str, cited: list[int], supported: bool) -> Any:
    if "enum" in row:
        return next((option for option in row["enum"] if str(option).casefold() in text.casefold()), row["enum"][0])
    kind = row.get("type", "string")
    if kind == "array":
        inner = row.get("items", {}).get("type")
        return cited if inner in ("integer", "number") else ([text] if inner == "string" else [])
    if kind == "boolean":
        return supported
    if kind in ("integer", "number"):
        number = re.search(r"-?\d+(?:\.\d+)?", text)
        value = float(number.group(0)) if number else 0.0
        return int(value) if kind == "integer" else value
    if kind == "object":
        return {name: _json_value(inner, text, cited, supported) for name, inner in row.get("properties", {}).items()}
    return None if kind == "null" else text
