"""Notebook cells: running a cell again replaces what it started before."""

from __future__ import annotations

import sys
import weakref
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")


class Cell(NamedTuple):
    """A notebook cell, and one execution of it."""

    key: str
    execution: str

    def ran_before(self, other: Cell) -> bool:
        """Return whether the other is an earlier execution of the same cell."""
        return other.key == self.key and other.execution != self.execution


_started: weakref.WeakKeyDictionary[Any, Cell] = weakref.WeakKeyDictionary()


def current_cell() -> Cell | None:
    """Return the cell that the kernel is executing; None outside a kernel.

    Source: https://jupyter-client.readthedocs.io/en/stable/messaging.html#execute (front ends add ``cellId``)
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    parent: dict[str, Any] = getattr(shell, "get_parent", dict)()
    execution = parent.get("header", {}).get("msg_id")
    if not execution:
        return None
    return Cell(parent.get("metadata", {}).get("cellId") or parent["content"].get("code", ""), execution)


def remember(thing: object) -> None:
    """Note that the current cell started something."""
    if (cell := current_cell()) is not None:
        _started[thing] = cell


def started_earlier(kind: type[_T]) -> list[_T]:
    """Return objects of one type that earlier executions of the current cell started."""
    cell = current_cell()
    if cell is None:
        return []
    return [thing for thing, its in list(_started.items()) if isinstance(thing, kind) and cell.ran_before(its)]
