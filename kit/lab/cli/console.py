"""What the commands share: saying something, complaining, reading ``name=value``."""

from __future__ import annotations

import argparse
import sys
from ast import literal_eval
from collections.abc import Iterable
from typing import Any

from kit.errors import ConfigurationError

Commands = Any  # argparse's own type for subparsers is private


def say(text: str = "") -> None:
    """Write a line to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


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
    """Return a text as the Python value it spells (a number, True, None, a list), else as the text itself."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)
