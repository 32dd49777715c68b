"""Canaries: words that nothing else contains, to be sent through all that can be asked and searched for afterwards."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from kit.errors import KitError

SENTENCE = "Quagga7531 herds graze near Zyzzyvaville at dawn."  # in a document, a prompt, and so in answers
QUESTION = "Where do Quagga7531 herds graze?"
KEY = "sk-Wombat9042-do-not-tell"  # of a provider
WORDS = ("Quagga7531", "Zyzzyvaville", "Wombat9042")
NAME = "okapi3141"  # of data, models, columns and operations: no content


@dataclass
class Kept:
    """What a run kept or told, by where: texts to search; and what it left to search in."""

    texts: dict[str, str] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)
    letters: list[Any] = field(default_factory=list)
    spans: set[str] = field(default_factory=set)

    @contextmanager
    def failing(self, *kinds: type[BaseException]) -> Iterator[None]:
        """Keep the error that has to come."""
        with pytest.raises(kinds or KitError) as raised:
            yield
        self.errors.append(raised.value)

    def gather(self, telemetry: Any, lines: list[str]) -> None:
        """Take the texts of all that was recorded, logged, raised and buried."""
        recorder = telemetry.recorder
        self.spans = set(recorder.spans()["name"])
        self.texts |= {
            "spans": json.dumps(recorder.spans().to_dict("records"), default=str),
            "metrics": json.dumps(recorder.metrics().to_dict("records"), default=str),
            "logs": json.dumps(recorder.logs().to_dict("records"), default=str),
            "log lines": "\n".join(lines),
            "errors": "\n".join(f"{error!r} {error}" for error in self.errors),
            "dead letters": "\n".join(f"{letter!r} {_evidence(letter)}" for letter in self.letters),
        }

    def assert_no_content(self, where: str) -> None:
        """Search for every canary."""
        text = self.texts[where]
        assert text
        for word in WORDS:
            at = text.lower().find(word.lower())
            assert at < 0, f"{word} is in the {where}: …{text[max(at - 300, 0) : at + 100]}…"


def _evidence(letter: Any) -> dict[str, Any]:
    return {name: getattr(letter, name) for name in letter.__slots__ if name not in {"payload", "operation"}}


class _Keeping(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] == "kit" or record.levelno >= logging.WARNING:
            self.lines.append(self.format(record))


@contextmanager
def log_lines() -> Iterator[list[str]]:
    """Keep the records of every logger, as a log file would."""
    lines: list[str] = []
    handler = _Keeping(lines)
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)
