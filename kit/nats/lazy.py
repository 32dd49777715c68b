"""Make the first ``import nats`` cheap: nats-py imports aiohttp for websockets only, which costs more than all the rest.

Imported before anything else of this package, so that no module of it can import nats first.
"""

from __future__ import annotations

import importlib.util
import sys


def import_later(name: str) -> None:
    """Register a module so that it is loaded at its first use; do nothing when it is loaded or not installed."""
    if name in sys.modules or (spec := importlib.util.find_spec(name)) is None or spec.loader is None:
        return
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


import_later("aiohttp")
