"""How the changes that two runs made of one state at the same time become one state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GONE: Any = object()  # in place of a value that is not there


class Unmergeable(Exception):
    """Two runs changed the same value, and nothing can be made of both.

    Attributes:
        path: of the value, from the state's root.
    """

    def __init__(self, path: tuple[str, ...]) -> None:
        self.path = path
        super().__init__("/".join(path))


def merged(before: Mapping[str, Any], mine: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state with what one run changed, and with what others changed meanwhile.

    - Keys are merged one by one, at every depth.
    - What a run put at the end of a list is put at the end of what the list is now.
    - A number that was there before counts: both differences are added.
    - The same change twice is one change, but for lists and numbers, where it is two.

    Args:
        before: the state that the run began with; mine: what it made of it; now: what others made of it.

    Raises:
        Unmergeable: both changed a value in another way, e.g. a text to two different ones.
    """
    merged_state: dict[str, Any] = _merge_keys(before, mine, now, ())
    return merged_state


def _merge_keys(
    before: Mapping[str, Any], mine: Mapping[str, Any], now: Mapping[str, Any], path: tuple[str, ...]
) -> dict[str, Any]:
    values = {
        key: _merge(before.get(key, _GONE), mine.get(key, _GONE), now.get(key, _GONE), (*path, key))
        for key in dict.fromkeys([*now, *mine])
    }
    return {key: value for key, value in values.items() if value is not _GONE}


def _merge(before: Any, mine: Any, now: Any, path: tuple[str, ...]) -> Any:
    if _same(mine, before):
        return now
    if _same(now, before):
        return mine
    if all(isinstance(value, dict) or value is _GONE for value in (before, mine, now)) and _GONE not in (mine, now):
        return _merge_keys({} if before is _GONE else before, mine, now, path)
    if isinstance(mine, list) and isinstance(now, list) and (isinstance(before, list) or before is _GONE):
        return _merge_lists([] if before is _GONE else before, mine, now, path)
    if all(map(_is_number, (before, mine, now))):
        return now + (mine - before)
    if _same(mine, now) and not _is_number(mine):  # of two new numbers nobody knows whether they count or tell
        return now
    raise Unmergeable(path)


def _merge_lists(before: list[Any], mine: list[Any], now: list[Any], path: tuple[str, ...]) -> list[Any]:
    """Put what was put at the end of one of them at the end of the other."""
    length = len(before)
    if _same(mine[:length], before):
        return now + mine[length:]
    if _same(now[:length], before):
        return mine + now[length:]
    if _same(mine, now):
        return now
    raise Unmergeable(path)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    """Say whether two JSON values are the same: 1 is not true, though Python takes them for equal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
