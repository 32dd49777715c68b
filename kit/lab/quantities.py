"""Numbers for people: a value with its unit and three significant digits; and texts that are safe for a terminal."""

from __future__ import annotations

import math
import re

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))

# Control characters (C0, C1), marks that change the direction of writing, and surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str, *, line: bool = False) -> str:
    """Return a text for a terminal, with control characters as JSON escapes.

    Args:
        line: whether to keep it on one line.
    """
    text = " ".join(text.split()) if line else text
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def quantity(value: float | None, unit: str = "") -> str:
    """Return a value with its unit; seconds choose between s, ms, µs and ns.

    Any other unit is put behind the number as it stands: ``quantity(1.2, "×")`` is ``1.20 ×``.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if unit == "s":
        return _duration(value)
    text = digits(value)
    return f"{text} {unit}" if unit else text


def digits(value: float) -> str:
    """Return a number with three significant digits, and separators from a thousand on."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if isinstance(value, int):
        return str(value)
    if size < 0.001:
        return f"{value:.3g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"


def _duration(seconds: float) -> str:
    if seconds == 0:
        return "0 s"
    for scale, unit in _SECONDS:
        if abs(seconds) >= scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds / 1e-9)} ns"


def elapsed(seconds: float) -> str:
    """Return a span of wall-clock time as a person says it: ``8.3 s``, ``2 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
