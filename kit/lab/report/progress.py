"""Show how far the report is: one moving line in a terminal, plain lines in a log."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from kit.lab.quantities import elapsed
from kit.lab.report.outcome import Outcome

HEARTBEAT = 15.0  # seconds of silence after which a log is told that work goes on


class Progress:
    """What is running, and how far it is.

    Args:
        out: where it is shown; a terminal gets a line that moves, anything else a line a notebook and a sign of life
            every 15 s.
    """

    def __init__(self, out: TextIO, *, total: int) -> None:
        self._out, self._total = out, total
        self._moving = out.isatty()
        self._began = self._spoke = time.monotonic()
        self._running: dict[str, str] = {}
        self._done = 0
        self._width = 0

    def started(self, name: str) -> None:
        """Say that a notebook starts."""
        self._running[name] = ""
        if self._moving:
            self._move()
        else:
            self._say(f"  … {name}")

    def cell(self, name: str, number: int, of: int) -> None:
        """Say which cell a notebook is at."""
        self._running[name] = f"{number + 1}/{of}"
        self.tick()

    def tick(self) -> None:
        """Show that time passes."""
        if self._moving:
            self._move()
        elif time.monotonic() - self._spoke >= HEARTBEAT:
            self._say(f"    {self._status()}")

    def finished(self, outcome: Outcome) -> None:
        """Say how a notebook's run ended."""
        self._running.pop(outcome.name, None)
        self._done += 1
        sign, end = ("✓", "") if outcome.failure is None else ("✗", f"  {outcome.verdict}")
        count = f"[{self._done}/{self._total}]"
        cells = f"{outcome.cells:3d} cells {elapsed(outcome.seconds):>12}"
        self._say(f"  {sign} {outcome.name:<24} {cells}  {count}{end}")
        if outcome.failure is not None:
            self._say(f"      {outcome.failure.error}: {outcome.failure.message.partition(chr(10))[0]}")
        if self._moving and self._running:
            self._move()

    def note(self, text: str) -> None:
        """Say something between notebooks."""
        self._say(text)

    def _status(self) -> str:
        running = " · ".join(f"{name} {at}".rstrip() for name, at in self._running.items())
        return f"{elapsed(time.monotonic() - self._began)}  {self._done}/{self._total} done  {running}"

    def _move(self) -> None:
        columns = shutil.get_terminal_size().columns
        line = f"  {self._status()}"[: columns - 1]
        self._out.write("\r" + line.ljust(self._width))
        self._width = len(line)
        self._out.flush()

    def _say(self, text: str) -> None:
        if self._moving and self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._width = 0
        self._out.write(text + "\n")
        self._out.flush()
        self._spoke = time.monotonic()
