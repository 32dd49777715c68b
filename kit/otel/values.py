"""Attribute values: any value becomes one that can be stored, shown and sent.

Values are foreign: an object's ``str()`` may raise, a list may contain itself, a text may contain a lone surrogate, an
integer may exceed 64 bits. None of this may break the observed code, or the batch that exports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

PLAIN = frozenset((str, bool, int, float))
_DEEPEST = 8  # levels of nested mappings and sequences; deeper ones become text
_CONVERT: Mapping[type, Callable[[Any], Any]] = {str: str.__str__, int: int.__int__, float: float.__float__}
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


def safe_text(value: object, how: Callable[[Any], str] = str) -> str:
    """Return a value's text, or its type and why it has no text."""
    try:
        return how(value)
    except Exception as error:  # noqa: BLE001 - foreign code
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def sendable(value: Any, depth: int = _DEEPEST) -> Any:
    """Return an immutable value that every exporter accepts: plain values, and tuples and mappings of them."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if value is None or kind is bool or kind is float or kind is bytes:
        return value
    if kind is int:
        return value if _SMALLEST <= value <= _LARGEST else f"{value:#x}"
    try:
        return _converted(value, depth)
    except Exception:  # noqa: BLE001 - foreign code
        return sendable(safe_text(value))


def _converted(value: Any, depth: int) -> Any:
    for plain in (str, int, float):
        if isinstance(value, plain):
            return sendable(_CONVERT[plain](value))
    if depth and isinstance(value, Mapping):
        return {sendable(safe_text(key)): sendable(one, depth - 1) for key, one in value.items()}
    if depth and isinstance(value, list | tuple | Sequence):
        return tuple(sendable(one, depth - 1) for one in value)
    if depth and hasattr(value, "tolist"):
        return sendable(value.tolist(), depth - 1)
    kind: Any = type(value)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        return None  # it contains a memory address
    return sendable(str(value))
