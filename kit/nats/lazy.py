"""Import nats without aiohttp, which it needs for websockets only and which costs more than all the rest.

Imported before anything else of this package, so that no module of it can import nats first.
"""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType
from typing import Any


class _Absent:
    """A finder that makes one module absent, for one thread: others may import it at the same time."""

    def __init__(self, name: str) -> None:
        self._name, self._thread = name, threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._name and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is imported later", name=name)


class _Later(ModuleType):
    """A module that is imported at the first use of one of its names."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def import_nats() -> None:
    """Import nats with websockets left for later; they work as before once they are used."""
    if "nats" in sys.modules or "aiohttp" in sys.modules:
        return
    finder: Any = _Absent("aiohttp")
    sys.meta_path.insert(0, finder)
    try:
        transport: Any = importlib.import_module("nats.aio.transport")
    finally:
        sys.meta_path.remove(finder)
    transport.aiohttp, transport.multidict = _Later("aiohttp"), _Later("multidict")
