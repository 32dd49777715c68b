"""JSON text <-> Python values, exactly: what cannot be kept as it is, is refused.

orjson is fast but forgiving in a few places: it turns integers beyond 64 bits into floats, keeps the last of two
equal keys, writes NaN as null, tuples as arrays and UUIDs as text. Here each of these is refused with the path of the
fault. Numbers written as decimals or with an exponent are IEEE 754 doubles, as in every common JSON reader.

Reading proves itself: a text that is equal to what orjson writes for the parsed value cannot have lost anything, and
that comparison costs a fraction of the parsing. Only a text in another layout is read again, strictly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from math import isfinite
from typing import Any

import orjson
from orjson import dumps as render

from kit.errors import CodecError, MalformedEnvelope

MAX_DEPTH = 254
"""Levels of nesting that can be written. Source: orjson's limit for serialisation."""

__all__ = ["MAX_DEPTH", "OPTIONS", "PLAIN", "dumps", "fault", "keeps", "loads", "parse", "pointer", "render", "shorten"]

OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
PLAIN = frozenset({str, int, bool, type(None)})
_EQUAL = (str, int)  # what of it orjson writes is an Enum that equals its value
_FLOATS = {float}
_MANY = 8  # values from which on it pays to look at their types together
_LEAST, _GREATEST = -(2**63), 2**64 - 1
_SHOWN = 120


def pointer(parts: Iterable[str | int]) -> str:
    """Return a JSON pointer. Source: RFC 6901."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in parts)


def shorten(text: str, limit: int = _SHOWN) -> str:
    """Return the text as printable characters, at most ``limit`` of them: names come from strangers."""
    shown = text[:limit].encode("unicode_escape").decode("ascii")
    return shown if len(text) <= limit and len(shown) <= limit else f"{shown[:limit]}…"


class _Doubled(dict[str, Any]):
    """An object in which a key stood twice; remembers the key."""

    key = ""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    doubled = _Doubled(found)
    doubled.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return doubled


def _scalar_fault(value: Any) -> str | None:
    """Say why a value that is no container cannot stand in JSON, or None."""
    kind = type(value)  # an object may lie about its class
    if kind is int:
        return None if _LEAST <= value <= _GREATEST else "the integer exceeds 64 bits"
    if kind is float:
        return None if isfinite(value) else "the number is not finite"
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return "the text has a lone surrogate"
        return None
    if kind is bool or value is None or (issubclass(kind, Enum) and issubclass(kind, _EQUAL)):
        return None
    hint = "; kit.codec.now() returns the current time as text" if kind.__module__ == "datetime" else ""
    return f"{kind.__module__}.{kind.__qualname__} is not a JSON type; convert it first{hint}".replace("builtins.", "")


def _key_fault(key: Any) -> str | None:
    if type(key) is not str:
        return f"a key is {type(key).__qualname__}, not str"
    return _scalar_fault(key)


def fault(value: Any) -> tuple[str, str] | None:
    """Return the path and the reason of the first value that JSON cannot carry exactly, or None.

    Never recurses, so that no depth can exhaust the stack.
    """
    stack: list[tuple[Any, tuple[str | int, ...]]] = [(value, ())]
    while stack:
        item, path = stack.pop()
        kind = type(item)
        if kind is _Doubled:
            return pointer((*path, shorten(item.key))), "the key stands twice"
        if kind is dict or kind is list:
            if len(path) > MAX_DEPTH:  # one level is the envelope's
                return pointer(path[:8]), f"nested deeper than {MAX_DEPTH} levels"
            if kind is list:
                stack.extend((child, (*path, index)) for index, child in enumerate(item))
                continue
            for key in item:
                if (reason := _key_fault(key)) is not None:
                    return pointer(path), reason
            stack.extend((child, (*path, shorten(key))) for key, child in item.items())
        elif (reason := _scalar_fault(item)) is not None:
            return pointer(path), reason
    return None


def keeps(value: Any) -> bool:
    """Whether a value that orjson could write is read back as an equal one: no tuple, no NaN, no plain Enum.

    Depth is not looked at: orjson has bounded it.
    """
    kind = type(value)
    if kind is dict:
        value = value.values()
    elif kind is not list:
        return kind in PLAIN or (isfinite(value) if kind is float else issubclass(kind, _EQUAL))
    if len(value) > _MANY:
        kinds = set(map(type, value))
        if kinds <= PLAIN:
            return True
        if kinds == _FLOATS:
            return all(map(isfinite, value))
    for item in value:
        kind = type(item)
        if kind is float:
            if not isfinite(item):
                return False
        elif kind not in PLAIN and not keeps(item):
            return False
    return True


def dumps(value: Any, *, indent: bool = False) -> bytes:
    """Return plain JSON text, for reports and stored documents; ``loads`` returns an equal value.

    Raises:
        CodecError: a part that JSON cannot carry exactly, with its path.
    """
    try:
        text = render(value, None, OPTIONS | (orjson.OPT_INDENT_2 if indent else 0))
        if keeps(value):
            return text
    except TypeError:
        pass  # The walk below says where.
    path, reason = fault(value) or ("", "cannot be written as JSON")
    raise CodecError(reason, path=path)


def loads(text: bytes | bytearray | memoryview | str) -> Any:
    """Return the value of a plain JSON text, exactly.

    Raises:
        CodecError: not JSON, or a part that Python would not keep exactly, with its path.
    """
    kind = type(text)  # an object may lie about its class
    if issubclass(kind, str):
        try:
            text = str.encode(text)  # type: ignore[arg-type]
        except UnicodeEncodeError:
            raise MalformedEnvelope("not JSON: the text has a lone surrogate") from None
    elif not issubclass(kind, bytes | bytearray | memoryview):
        raise MalformedEnvelope(f"expected text or bytes, not {kind.__name__}")
    return parse(bytes(text))  # type: ignore[arg-type]


def parse(text: bytes) -> Any:
    """Return the value of a JSON text, exactly.

    Raises:
        MalformedEnvelope: not JSON, or a part that Python would not keep exactly, with its path.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # `from None`, because the error carries the whole document.
        raise MalformedEnvelope(f"not JSON: {error.msg} at byte {error.pos}") from None
    try:
        if render(value) == text:
            return value
    except TypeError:
        pass  # Nested too deep to be written again; what is wrong with it is said below.
    prove(text)
    return value


def prove(text: bytes) -> None:
    """Read a text, which orjson has taken already, once more and strictly.

    Raises:
        MalformedEnvelope: a part that Python would not keep exactly, with its path.
    """
    try:
        found = fault(json.loads(text, object_pairs_hook=_pairs))
    except (ValueError, RecursionError) as error:  # e.g. an integer of more digits than int() takes
        raise MalformedEnvelope(f"not exactly readable: {type(error).__name__}") from None
    if found is not None:
        raise MalformedEnvelope(found[1], path=found[0])
