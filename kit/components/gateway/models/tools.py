"""Choosing a tool that fits a question, and filling its arguments from the question's own words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .language import STOPWORDS, stem, words

if TYPE_CHECKING:
    from .static import StaticEmbeddings

FIT = 0.5  # from here on a tool fits a question
_MOST_WORDS = 200  # at the beginning of a text and at its end that are held against each other
_STEPS = 4  # from a parameter to what it refers to, at most
_LOOKUP = re.compile(r"search|retriev|look ?up|find|knowledge|documents?|passages?|query|consult", re.IGNORECASE)
_WHOLE = re.compile(r"^(?:query|question|q|text|search\w*|input|prompt|message|topic|content|sentence)$", re.IGNORECASE)
_TEXT = re.compile(r"^(?:text|content|sentence)$", re.IGNORECASE)
_QUOTED = re.compile(r"[\"“‘']([^\"“”‘’']{1,200}+)[\"”’'](?!\w)")
_OPERATORS = (
    (re.compile(r"(?<=[\d)])\s*\+\s*(?=[\d(])"), " plus add sum "),
    (re.compile(r"(?<=[\d)])\s*[-−]\s*(?=[\d(])"), " minus subtract difference "),
    (re.compile(r"(?<=[\d)])\s*(?:[*×·]|x(?=\s*\d))\s*(?=[\d(])"), " times multiply product "),
    (re.compile(r"(?<=[\d)])\s*[/÷]\s*(?=[\d(])"), " divide divided quotient "),
)
_EXPRESSION = re.compile(r"[-(]?\d[\d\s.,()*/+×÷^%−-]*[\d)]")
_SHAPES: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = (
    (re.compile(r"e?mail|recipient", re.I), re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]++\.[\w.]+\w")),
    (re.compile(r"url|link|uri", re.I), re.compile(r"https?://\S+\w")),
    (
        re.compile(r"date|day", re.I),
        re.compile(r"\d{4}-\d\d-\d\d|\b(?:today|tomorrow|yesterday)\b|\d{1,2} [A-Z]\w+(?: \d{4})?", re.I),
    ),
    (re.compile(r"path|file", re.I), re.compile(r"(?<![\w./~-])[\w./~-]*/[\w./-]+|(?<![\w-])[\w-]++\.\w{1,5}\b")),
    (re.compile(r"expression|formula|calculation|equation", re.I), _EXPRESSION),
    (re.compile(r"code", re.I), re.compile(r"(?<=`)[^`]+(?=`)")),
    (re.compile(r"id$|number|code|reference", re.I), re.compile(r"\b(?=\w*\d)[A-Za-z]*[-#]?\w*\d[\w-]*\b")),
)
_NAME = r"[A-ZÀ-Þ][\w’'.-]*(?: (?:of |de |the )?[A-ZÀ-Þ][\w’'-]*)*"
_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve"
_SMALL_NUMBERS = {word: number for number, word in enumerate(_NUMERALS.split())}


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A tool to call: its name and its arguments as JSON."""

    name: str
    arguments: str


def choose_tool(
    question: str, tools: Sequence[Mapping[str, Any]], choice: Any, model: StaticEmbeddings, *, fallback: bool
) -> ToolCall | None:
    """Return the call of the tool that fits a question best, or None.

    Args:
        question: what the user asks.
        tools: in the OpenAI format, ``{"type": "function", "function": {...}}``.
        choice: ``tool_choice``: "auto", "none", "required", or one function by name.
        model: word vectors to judge the fit by.
        fallback: whether a tool that looks things up may be taken for any question, as nothing else answers it.
    """
    functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), Mapping)]
    if choice == "none" or not functions:
        return None
    if isinstance(choice, Mapping):
        wanted = choice.get("function", {}).get("name")
        functions = [function for function in functions if function.get("name") == wanted]
    forced = choice == "required" or isinstance(choice, Mapping)
    ranked = sorted(((_fit(question, function, model), function) for function in functions), key=lambda pair: -pair[0])
    for fit, function in ranked:
        if fit < FIT and not forced:
            break
        arguments = _arguments(question, function, forced=forced)
        if arguments is not None:
            return ToolCall(name=function["name"], arguments=json.dumps(arguments, ensure_ascii=False))
    return _look_up(question, functions) if fallback else None


def looks_up(name: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the named tool searches something by a query, so that a result may be beside the point."""
    functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), Mapping)]
    return any(function.get("name") == name and _query_parameter(function) is not None for function in functions)


def _look_up(question: str, functions: Sequence[Mapping[str, Any]]) -> ToolCall | None:
    """Call a tool that takes a query and says that it searches, if the message asks something at all."""
    if not re.search(
        r"\?|^\W*+(?:who|what|when|where|why|which|how|is|are|can|does|do|tell|find|explain)\b", question, re.I
    ):
        return None
    for function in functions:
        parameter = _query_parameter(function)
        if parameter is not None:
            required = set(_schema(function).get("required", ())) - {parameter}
            if not required:
                return ToolCall(name=function["name"], arguments=json.dumps({parameter: question}, ensure_ascii=False))
    return None


def _query_parameter(function: Mapping[str, Any]) -> str | None:
    described = f"{function.get('name', '')} {function.get('description', '')}".replace("_", " ")
    if not _LOOKUP.search(described):
        return None
    rows = {name: _plain(row, _schema(function)) for name, row in _schema(function).get("properties", {}).items()}
    return next(
        (name for name, row in rows.items() if _WHOLE.match(name) and row.get("type", "string") == "string"), None
    )


def _schema(function: Mapping[str, Any]) -> Mapping[str, Any]:
    schema = function.get("parameters")
    return schema if isinstance(schema, Mapping) else {}


def _plain(row: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that a parameter's refers to, and of several the first that is not null."""
    for _ in range(_STEPS):
        if isinstance(row, Mapping) and isinstance(name := row.get("$ref"), str):
            row = schema.get("$defs", {}).get(name.rpartition("/")[2], {})
        elif isinstance(row, Mapping) and isinstance(several := row.get("anyOf"), Sequence):
            row = next((one for one in several if one != {"type": "null"}), {})
        else:
            break
    return row if isinstance(row, Mapping) else {}


def _fit(question: str, function: Mapping[str, Any], model: StaticEmbeddings) -> float:
    """How well a tool fits a question, 0 to 1: its name's words found there, and likeness to its description."""
    for pattern, meaning in _OPERATORS:
        question = pattern.sub(meaning, question)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(function.get("name", ""))).replace("_", " ")
    name = [word.lower() for word in words(spaced) if word.lower() not in STOPWORDS | {"tool", "function", "run"}]
    asked = list(dict.fromkeys(word for word in words(question) if word.casefold() not in STOPWORDS))
    if not name or not asked:
        return 0.0
    asked = [*asked[:_MOST_WORDS], *asked[_MOST_WORDS:][-_MOST_WORDS:]]  # a task stands at the beginning or the end
    described = [*name, *(w for w in words(str(function.get("description", ""))) if w.casefold() not in STOPWORDS)]
    described = described[:_MOST_WORDS]
    vectors = model.word_vectors([*asked, *described])
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    likeness = unit[: len(asked)] @ unit[len(asked) :].T
    stems = [stem(word) for word in asked]
    for column, word in enumerate(map(stem, described)):
        likeness[:, column] = np.where([root == word for root in stems], 1.0, likeness[:, column])
    weights = np.clip((np.linalg.norm(vectors, axis=1)[len(asked) :] - 4.0) / 10.0, 0.1, 1.6)
    best = likeness.max(0)
    best = np.where(best >= 0.4, best, 0.0)
    named, whole = slice(0, len(name)), slice(0, len(described))
    by_name = float((best[named] * weights[named]).sum() / weights[named].sum())
    by_text = float(np.sort(best[whole])[::-1][:3].mean())
    return 0.6 * by_name + 0.4 * by_text


def _arguments(question: str, function: Mapping[str, Any], *, forced: bool) -> dict[str, Any] | None:
    """Fill a tool's arguments from the question, or return None where a required one has no value there."""
    schema = _schema(function)
    required = set(schema.get("required", ()))
    filled: dict[str, Any] = {}
    used: list[str] = []
    for name, row in schema.get("properties", {}).items():
        row = _plain(row, schema)
        value = _value(question, name, row, used, required=name in required)
        if value is None and name in required:
            if not forced or row.get("type", "string") != "string":
                return None
            value = question
        if value is not None:
            filled[name] = value
            used.append(str(value))
    return filled


def _value(question: str, name: str, row: Mapping[str, Any], used: list[str], *, required: bool) -> Any:
    """Find one argument's value in the question."""
    if "enum" in row:
        asked = {stem(word) for word in words(question)}
        return next((option for option in row["enum"] if {stem(w) for w in words(str(option))} <= asked), None)
    kind = row.get("type", "string")
    if kind in ("integer", "number"):
        left = _numbers(question)
        for value in used:
            if value in left:
                left.remove(value)
        if not left:
            return None
        return int(float(left[0])) if kind == "integer" or left[0].isdigit() else float(left[0])
    if kind == "boolean":
        return True if required else None
    if kind == "array":
        inner = row.get("items", {}).get("type", "string")
        if inner in ("integer", "number"):
            return [float(number) if "." in number else int(number) for number in _numbers(question)] or None
        return [match.group(0) for match in re.finditer(_NAME, question[1:])] or None
    return _string(question, name, used, required=required) if kind == "string" else None


def _numbers(question: str) -> list[str]:
    found = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)|\b[a-z]+\b", question.replace(",", ""))
    return [str(_SMALL_NUMBERS.get(token, token)) for token in found if token in _SMALL_NUMBERS or not token.isalpha()]


def _string(question: str, name: str, used: list[str], *, required: bool) -> str | None:
    """Find a text argument: by the parameter's name, in quotation marks, after a preposition, or as a proper name."""
    if _WHOLE.match(name) and not (_TEXT.match(name) and _QUOTED.search(question)):
        return question
    for parameter, shape in _SHAPES:
        if parameter.search(name):
            match = shape.search(question)
            if match and match.group(0).strip() not in used:
                return match.group(0).strip()
    for match in _QUOTED.finditer(question):
        if match.group(1) not in used:
            return match.group(1)
    if not required:
        return None
    directions = {"from": "from|origin|source|start", "to": "to|destination|target|end|recipient"}
    wanted = [word for word, pattern in directions.items() if re.search(rf"(?:^|_)(?:{pattern})(?:$|_)", name)]
    prepositions = "|".join(wanted) or "in|for|at|of|from|to|about|on|near|named|called|with"
    for pattern in (
        rf"\b(?:{prepositions}) ({_NAME})",
        rf"(?<!^)(?<![.?!] )\b({_NAME})",
        rf"\b(?:{prepositions}) (?:the |my |an? )?(\w+(?: \w+)?)",
    ):
        for match in re.finditer(pattern, question):
            value = match.group(1).rstrip(".?!,")
            if value not in used and value != "I":
                return value
    return None
