"""A kit in which AI components talk through checked, delivered and observed messages.

    import kit
    from kit.catalogue import RAG_QUERIES

    async with kit.start(tenant_id="acme") as lab:
        await lab.serve("gateway", "rag")
        answer = await lab.bus.request(RAG_QUERIES, {...}, timeout=5.0)

Names are loaded when first used, so that ``import kit`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.errors import KitError
    from kit.lab.session import Lab, start

__all__ = ["KitError", "Lab", "start"]

_HOMES = {"KitError": "kit.errors", "Lab": "kit.lab.session", "start": "kit.lab.session"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
