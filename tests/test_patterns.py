"""No text stops the event loop: every pattern of the kit is linear, and so is the code around it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hostile import patterns, shapes

SHORT, LONG = 4_000, 100_000
MOST = 4 * 0.05  # s for LONG: the promise is 0.05, and others on the machine slow the caches


def _seconds(pattern: re.Pattern[Any], text: str | bytes) -> float:
    """Return the processor's time for every start and every way: all matches, one at the start, one of the whole."""
    begin = time.thread_time()
    for _ in pattern.finditer(text):
        pass
    pattern.match(text)
    pattern.fullmatch(text)
    return time.thread_time() - begin


@pytest.fixture(scope="module")
def known() -> dict[str, re.Pattern[Any]]:
    return patterns()


def test_the_patterns_are_found_and_the_shapes_are_many(known: dict[str, re.Pattern[Any]]) -> None:
    assert len(known) > 120
    assert len(set(shapes(SHORT))) == 88
    for place in ("rag.chunking", "gateway.models.tools", "agents.questions", "prompts.context"):
        assert any(where.startswith(f"kit.components.{place}") for where in known)


def test_every_pattern_is_linear(known: dict[str, re.Pattern[Any]]) -> None:
    slow: dict[str, str] = {}
    short, long = shapes(SHORT), shapes(LONG)
    for where, pattern in known.items():
        as_text: Callable[[str], Any] = str.encode if isinstance(pattern.pattern, bytes) else str
        times = []
        for number, text in enumerate(map(as_text, short)):
            seconds = _seconds(pattern, text)
            if seconds > MOST * SHORT / LONG:
                seconds = min(seconds, _seconds(pattern, text), _seconds(pattern, text))
            times.append((seconds, number))
            if seconds > MOST * SHORT / LONG:
                break
        seconds, number = max(times)
        if seconds <= MOST * SHORT / LONG:
            seconds, number = max(
                (min(_seconds(pattern, as_text(long[n])) for _ in "12"), n) for _, n in sorted(times)[-2:]
            )
        if seconds > MOST * (SHORT if len(times) < 88 else LONG) / LONG:
            slow[where] = f"{seconds * 1e3:.0f} ms: {short[number][:24]!r}"
    assert not slow, "\n".join(f"{where}: {what}" for where, what in slow.items())


# --- the code around the patterns ---------------------------------------------------------------------------------


def _blocking(work: Callable[[str], Any], unit: str) -> float:
    """Return the processor's time for 32 KB of a unit, over that for 8 KB: 4 where the work is linear."""

    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        begin = time.thread_time()
        work(text)
        return time.thread_time() - begin

    short = min(seconds(8_000) for _ in range(2))
    long = min(seconds(32_000) for _ in range(2))
    return long / max(short, 0.005)


def _markdown(text: str) -> Any:
    from kit.components.rag.readers import read

    return read("d", text, "text/markdown")


def _html(text: str) -> Any:
    from kit.components.rag.rendering import render_html

    return render_html(text)


def _chunks(text: str) -> Any:
    from kit.components.rag.chunking import chunk

    return chunk(text)


def _citations(text: str) -> Any:
    from kit.components.rag.citations import _segments, _texts

    return [list(_texts(segment)) for segment, _ in _segments(text)]


def _units(text: str) -> Any:
    from kit.components.gateway.models.language import split_units

    return split_units(text)


def _prompt(text: str) -> Any:
    from kit.components.gateway.models.prompt import read_messages

    return read_messages([{"role": "system", "content": text}, {"role": "user", "content": text}])


def _sentence_ends(text: str) -> Any:
    from kit.components.prompts.context import sentence_ends

    return sentence_ends(text)


def _without_scripts(text: str) -> Any:
    from kit.lab.report.figures import _without

    return _without("script", text)


_HOSTILE = [
    " ", "\n", "\t", "e.g. A", "Dr. ", "a. ", "[1] ", "`a`[1] ", "a[1]", "```\n", "x```\n", "# a\n", "#\n", "- \n",
    "=\n", "---\n", "1. ", ". \n", "<context", "<context>", "<context></context>", "question:", "\n \n", "in a",
    "for (a, ", "(", "say 'a ", "<p", "<p>a", "<pre>", "<script>", "<!--", "|", "a = b\n", "“", "...", "。",
]  # fmt: skip


@pytest.mark.parametrize(
    "work",
    [
        _markdown,
        _html,
        _chunks,
        _citations,
        _units,
        _prompt,
        _sentence_ends,
        _without_scripts,
    ],
    ids=["markdown", "html", "chunks", "citations", "units", "prompt", "sentence ends", "scripts"],
)
def test_the_code_around_the_patterns_is_linear(work: Callable[[str], Any]) -> None:
    slow = {unit: ratio for unit in _HOSTILE if (ratio := _blocking(work, unit)) > 9}
    assert slow == {}
