"""What the commands share: saying something, complaining, reading ``name=value``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from ast import literal_eval
from collections.abc import Callable, Iterable
from typing import Any

from kit.errors import ConfigurationError
from kit.lab.quantities import shown

_OPENING = ("[", "{", "(", "'", '"')
Commands = Any  # argparse's own type for subparsers is private


def say(text: str = "") -> None:
    """Write a line to standard output."""
    sys.stdout.write(shown(text) + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(shown(text) + "\n")
    sys.stderr.flush()


class Shown(logging.Formatter):
    """Writes log lines, which may quote foreign text, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return shown(super().format(record))


def command(commands: Commands, name: str, run: Any, *, summary: str, details: str = "") -> argparse.ArgumentParser:
    """Add a command to the command line and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what reads an option's whole number from ``least`` on, for argparse."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} {f'to {most}' if most else 'on'}")
        return int(text)

    return read


def listed(text: str) -> list[str]:
    """Return a comma-separated list's items, without blanks and empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def pairs(texts: Iterable[str], *, option: str) -> dict[str, str]:
    """Return ``name=value`` texts as a dict.

    Raises:
        ConfigurationError: a text without ``=``, or without a name that Python could have.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigurationError(f"{option} {text!r}: name=value expected")
        found[name] = value
    return found


def literal(text: str) -> Any:
    """Return a text as the value that it spells in Python or JSON (a number, True, None, a list, a dict), else itself.

    Raises:
        ConfigurationError: it begins like a list, a dict or a quotation, and is none.
    """
    for parse in (literal_eval, json.loads):
        try:
            return parse(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    if text.lstrip().startswith(_OPENING):
        raise ConfigurationError(f"{text[:60]!r} is neither Python nor JSON: is a bracket or a quotation mark missing?")
    return text


def settings(texts: Iterable[str], *, option: str) -> dict[str, Any]:
    """Return ``name=value`` texts as a dict of the values that they spell.

    Raises:
        ConfigurationError: a text that cannot be read, by its option and name.
    """
    found = {}
    for name, text in pairs(texts, option=option).items():
        try:
            found[name] = literal(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{option} {name}: {error}") from error
    return found
