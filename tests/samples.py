"""Data that keep their contract, from the fixtures of the contracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kit import codec
from kit.lab import eventually

__all__ = ["eventually", "sample"]

_CONTRACTS = Path(__file__).resolve().parent.parent / "data" / "contracts"


def sample(message_type: str, **changes: Any) -> dict[str, Any]:
    """Return the smallest valid data of the latest version of a message type, with these fields changed."""
    file = _CONTRACTS / message_type / codec.latest(message_type) / "valid" / "minimal.json"
    return codec.decode(file.read_bytes()).data | changes
