"""Data that keep their contract, from the fixtures of the contracts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kit import codec

_CONTRACTS = Path(__file__).resolve().parent.parent / "data" / "contracts"


def sample(message_type: str, **changes: Any) -> dict[str, Any]:
    """Return the smallest valid data of the latest version of a message type, with these fields changed."""
    file = _CONTRACTS / message_type / codec.latest(message_type) / "valid" / "minimal.json"
    return codec.decode(file.read_bytes()).data | changes


async def eventually(check: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = 5.0) -> Any:
    """Return what ``check`` gives, once that is true; fail after some seconds."""
    async with asyncio.timeout(seconds):
        while True:
            found = check()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)
