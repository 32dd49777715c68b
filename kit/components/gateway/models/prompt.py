"""Chat messages as the extractive model reads them: a question, passages that may be cited, tools and their results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .support import Passage

_HEADER = re.compile(r"^[ \t]*+\[(\d{1,3})\](.*)$")
_QUESTION = re.compile(
    r"^[ \t]*(?:#+ *|\*\*)?(?:user(?:'s)? )?(?:question|query)(?:\*\*)? ?:(?:\*\*)?[ \t]*", re.I | re.M
)
_CONTEXT = re.compile(
    r"^[ \t]*(?:#+ *|\*\*)?(?:context|passages|documents|sources|background|text)(?:\*\*)? ?:(?:\*\*)?[ \t]*",
    re.I | re.M,
)
_ANSWER = re.compile(r"\n[^\S\n]*(?:#+ *|\*\*)?answer(?:\*\*)? ?:.*\Z", re.I | re.S)
_TAG = re.compile(r"<(/?)([a-z_]{1,60})[^<>]*>", re.I)
_TAGGED = re.compile("context|document|memor|knowledge|reference|passage|interaction|information|summary")
_REFUSAL = re.compile(
    r"(?:say|saying|answer|reply|respond|write|output)(?: only| exactly| just| with| simply| that)*:? ?"
    r"[\"“'`‘]([^\"”`]{3,200}?)[\"”`’']"
    r"(?=[\s.,;)]|$)",
    re.I,
)
_TEXT_KEYS = ("text", "content", "passage", "chunk", "snippet", "answer", "summary", "body")
_TITLE_KEYS = ("title", "document_id", "source", "name", "id")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """What a tool gave back in this turn."""

    name: str
    arguments: str
    content: str


@dataclass(kw_only=True, slots=True)
class Conversation:
    """What is asked now, and everything that it may be answered from.

    Attributes:
        question: the last user message without the context it carries.
        passages: context in the order in which it stands; numbered where it may be cited.
        refusal: the words the instructions ask for when nothing supports an answer, or None.
        results: results of the tools called since the question was asked.
    """

    question: str = ""
    passages: list[Passage] = field(default_factory=list)
    refusal: str | None = None
    results: list[ToolResult] = field(default_factory=list)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Read OpenAI chat messages; the last user message asks, earlier ones and the system message may give context."""
    talk = Conversation()
    asked = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    calls: dict[str, tuple[str, str]] = {}
    for index, message in enumerate(messages):
        role, text = message.get("role"), text_of(message.get("content"))
        if role in ("system", "developer"):
            talk.passages += read_context(text, only_marked=True)[0]
            phrase = _REFUSAL.search(text)
            talk.refusal = phrase.group(1).strip() if phrase else talk.refusal
        elif role == "user" and index == asked:
            passages, talk.question = read_context(text)
            talk.passages += passages
            phrase = _REFUSAL.search(text.replace(talk.question, " ")) if passages else None
            talk.refusal = phrase.group(1).strip() if phrase else talk.refusal
        elif role == "user":
            passages, rest = read_context(text)
            talk.passages += passages or ([Passage(text=rest)] if rest and not rest.rstrip().endswith("?") else [])
        elif role == "assistant" and index > asked:
            for call in message.get("tool_calls") or ():
                function = call.get("function", {})
                calls[call.get("id", "")] = (function.get("name", ""), function.get("arguments", ""))
        elif role == "tool" and index > asked:
            name, arguments = calls.get(message.get("tool_call_id", ""), (message.get("name") or "tool", ""))
            talk.results.append(ToolResult(name=name, arguments=arguments, content=text))
    return talk


def text_of(content: Any) -> str:
    """Return the text of a message's content, which is a string or a list of typed parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n\n".join(part for part in parts if isinstance(part, str))
    return ""


def read_context(text: str, *, only_marked: bool = False) -> tuple[list[Passage], str]:
    """Split a message into its passages and its question.

    Understood are numbered passages ("[1] title", text on the next lines), tagged blocks, "Context: … Question: …", and
    a question before or after any of these. With ``only_marked``, text without such a mark is neither.
    """
    tagged, text = _untagged(text)
    asked = list(_QUESTION.finditer(text))
    question = None
    if asked:
        question = _ANSWER.sub("", "\n" + text[asked[-1].end() :]).strip()
        text, after = text[: asked[-1].start()], _CONTEXT.search("\n" + question)
        if after:  # the question came first
            text += "\n\n" + question[max(after.start() - 1, 0) :]
            question = question[: max(after.start() - 1, 0)].strip()
        elif not text.strip() and "\n\n" in question and _headers(question.split("\n")):
            question, _, text = question.partition("\n\n")
    passages, before = _numbered(text)
    for body in tagged:
        inner, _ = _numbered(body)
        passages += inner or [Passage(text=body)]
    marked = _CONTEXT.search(before)
    if not passages and marked:
        body = before[marked.end() :].strip()
        before = before[: marked.start()]
        if question is None:
            body, _, question = body.rpartition("\n\n") if "\n\n" in body else (body, "", "")
        passages = [Passage(text=body)] if body else []
    if question is None:
        passages, question = _unmarked_question(passages, before)
    return passages, "" if only_marked else question.strip()


def _untagged(text: str) -> tuple[list[str], str]:
    """Return what stands between tags such as ``<context>`` and ``</context>``, and the text without it."""
    tags = [(match, match.group(2).lower()) for match in _TAG.finditer(text)]
    closing: dict[str, list[re.Match[str]]] = {}
    for match, name in reversed(tags):
        if match.group(1):
            closing.setdefault(name, []).append(match)
    bodies: list[str] = []
    rest: list[str] = []
    position = 0
    for match, name in tags:
        if match.group(1) or match.start() < position or not _TAGGED.search(name):
            continue
        ends = closing.get(name, [])
        while ends and ends[-1].start() < match.end():
            ends.pop()
        if ends:
            bodies.append(text[match.end() : ends[-1].start()].strip())
            rest.append(text[position : match.start()])
            position = ends[-1].end()
    return bodies, "\n\n".join([*rest, text[position:]])


def _headers(lines: list[str]) -> list[tuple[int, str]]:
    """Positions and titles of the lines that number passages; a bare "[2]" counts only after a blank line."""
    found: list[tuple[int, str]] = []
    for position, line in enumerate(lines):
        match = _HEADER.match(line)
        if match is None or int(match.group(1)) != len(found) + 1:
            continue
        title = match.group(2).strip(" \t")
        if title or position == 0 or not lines[position - 1].strip():
            found.append((position, title))
    return found


def _numbered(text: str) -> tuple[list[Passage], str]:
    """Return the passages numbered 1, 2, 3 … and what stands before them."""
    lines = text.split("\n")
    headers = _headers(lines)
    if not headers:
        return [], text
    ends = [*(position for position, _ in headers[1:]), len(lines)]
    passages = [
        _passage(number, title, lines[position + 1 : end])
        for number, ((position, title), end) in enumerate(zip(headers, ends, strict=True), start=1)
    ]
    return passages, "\n".join(lines[: headers[0][0]])


def _passage(number: int, head: str, body: list[str]) -> Passage:
    """A numbered passage; a first line that is no title belongs to its text."""
    text = "\n".join(body).rstrip()
    if not text:
        return Passage(text=head, number=number)
    if len(head) > 160 or re.search(r"[.!;:,]$", head):
        return Passage(text=f"{head}\n{text}".strip("\n"), number=number)
    return Passage(text=text, title=head, number=number)


def _unmarked_question(passages: list[Passage], before: str) -> tuple[list[Passage], str]:
    """Find a question that no word announces: before the passages, or as the last paragraph after them."""
    if not passages:
        return passages, before.strip()
    last = passages[-1]
    body, gap, tail = last.text.rstrip().rpartition("\n\n")
    if gap and (tail.rstrip().endswith("?") or "?" not in before):
        shortened = Passage(text=body, title=last.title, number=last.number)
        return [*passages[:-1], shortened], tail.strip()
    asking = [part for part in re.split(r"\n\s*\n", before) if "?" in part]
    return passages, (asking[-1] if asking else before).strip()


def read_result(result: ToolResult, start: int) -> list[Passage]:
    """Return a tool's result as passages; documents in it are numbered from ``start``."""
    passages, _ = _numbered(result.content)
    if passages:
        return passages
    try:
        value = json.loads(result.content)
    except ValueError:
        return [Passage(text=result.content)] if result.content.strip() else []
    return _flatten(value, start)


def _flatten(value: Any, start: int) -> list[Passage]:
    """JSON as passages: a list of documents is numbered, anything else becomes "key: value" lines."""
    if isinstance(value, Mapping):
        for inner in value.values():
            if isinstance(inner, list) and inner and all(isinstance(item, Mapping) and _body(item) for item in inner):
                return _flatten(inner, start)
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and _body(item) for item in value):
        return [
            Passage(text=_body(item), title=_title(item), number=start + position)
            for position, item in enumerate(value)
        ]
    text = "\n".join(_lines(value))
    return [Passage(text=text)] if text else []


def _body(item: Mapping[str, Any]) -> str:
    return next((item[key] for key in _TEXT_KEYS if isinstance(item.get(key), str)), "")


def _title(item: Mapping[str, Any]) -> str:
    return next((item[key] for key in _TITLE_KEYS if isinstance(item.get(key), str)), "")


def _lines(value: Any, name: str = "") -> list[str]:
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _lines(inner, str(key).replace("_", " "))]
    if isinstance(value, list):
        return [line for inner in value for line in _lines(inner, name)]
    return [f"{name}: {value}" if name else str(value)]
