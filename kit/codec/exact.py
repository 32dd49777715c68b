"""JSON text <-> Python values, exactly: what cannot be kept as it is, is refused.

orjson is fast but forgiving in a few places: it turns integers beyond 64 bits into floats, keeps the last of two
equal keys, writes NaN as null, tuples as arrays and UUIDs as text. Here each of these is refused with the path of the
fault. Numbers written as decimals or with an exponent are IEEE 754 doubles, as in every common JSON reader.

Reading proves itself: a text that is equal to what orjson writes for the parsed value cannot have lost anything, and
that comparison costs a fraction of the parsing. Only a text in another layout is read again, strictly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import orjson

from kit.errors import CodecError, MalformedEnvelope

MAX_DEPTH = 254
"""Levels of nesting that can be written. Source: orjson's limit for serialisation."""

_WRITE = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_SCALARS = frozenset({str, int, float, bool, type(None)})
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
    kind = value.__class__
    if kind is int:
        return None if _LEAST <= value <= _GREATEST else "the integer exceeds 64 bits"
    if kind is float:
        return None if math.isfinite(value) else "the number is not finite"
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return "the text has a lone surrogate"
        return None
    if kind is bool or value is None:
        return None
    return f"{kind.__module__}.{kind.__qualname__} is no JSON type; convert it first".replace("builtins.", "")


def _key_fault(key: Any) -> str | None:
    if key.__class__ is not str:
        return f"a key is {key.__class__.__qualname__}, not str"
    return _scalar_fault(key)


def fault(value: Any) -> tuple[str, str] | None:
    """Return the path and the reason of the first value that JSON cannot carry exactly, or None.

    Never recurses, so that no depth can exhaust the stack.
    """
    stack: list[tuple[Any, tuple[str | int, ...]]] = [(value, ())]
    while stack:
        item, path = stack.pop()
        kind = item.__class__
        if kind is _Doubled:
            return pointer((*path, shorten(item.key))), "the key stands twice"
        if kind is dict or kind is list:
            if len(path) > MAX_DEPTH:
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


def is_exact(value: Any) -> bool:
    """Whether every part of a value has exactly a JSON type: no tuple, no Enum, no subclass.

    Numbers are not looked at, and depth is the caller's to bound (orjson has done so already).
    """
    if value.__class__ is dict:
        value = value.values()
    for item in value:
        kind = item.__class__
        if kind not in _SCALARS and not ((kind is dict or kind is list) and is_exact(item)):
            return False
    return True


def finite(value: Any) -> bool:
    """Whether no number in a value is NaN or infinite."""
    stack = [value]
    while stack:
        item = stack.pop()
        kind = item.__class__
        if kind is float:
            if not math.isfinite(item):
                return False
        elif kind is dict:
            stack.extend(item.values())
        elif kind is list:
            stack.extend(item)
    return True


def write(value: Any) -> bytes:
    """Return JSON text for a value, as orjson writes it.

    The caller looks after what orjson would change silently (see ``is_exact``; NaN).

    Raises:
        TypeError: a type that JSON has not.
    """
    return orjson.dumps(value, None, _WRITE)


def dumps(value: Any, *, indent: bool = False) -> bytes:
    """Return plain JSON text, for reports and stored documents; ``loads`` returns an equal value.

    Raises:
        CodecError: a part that JSON cannot carry exactly, with its path.
    """
    try:
        text = orjson.dumps(value, None, _WRITE | (orjson.OPT_INDENT_2 if indent else 0))
        if is_exact((value,)) and finite(value):
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
    if isinstance(text, str):
        try:
            text = text.encode()
        except UnicodeEncodeError:
            raise MalformedEnvelope("not JSON: the text has a lone surrogate") from None
    return parse(bytes(text))


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
        if orjson.dumps(value) == text:
            return value
    except TypeError:
        raise MalformedEnvelope(f"nested deeper than {MAX_DEPTH} levels") from None
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
