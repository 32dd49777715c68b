"""``kit ask``: a question to documents, answered with its sources."""

from __future__ import annotations

import argparse
from pathlib import Path

from kit.lab.cli.console import Commands, command


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "ask", _run, summary="answer a question from documents, with sources")
    parser.add_argument("question", help="in a sentence")
    parser.add_argument("--corpus", type=Path, metavar="PATH", help="folder or JSONL file (the Python FAQ)")


def _run(chosen: argparse.Namespace) -> int:
    raise NotImplementedError
