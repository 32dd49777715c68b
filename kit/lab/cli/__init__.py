"""The command line: one module a command, loaded with their heavy parts only when the command runs.

Exit codes: 0 done; 1 what was asked for failed (a notebook, a gate, a server that does not answer);
2 the command line itself cannot work; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from kit.errors import ConfigurationError, KitError
from kit.lab.cli import (
    ask,
    catalogue,
    dead_letters,
    drills,
    gates,
    lab,
    local_llm,
    pr,
    progress,
    report,
    server,
    worker,
)
from kit.lab.cli.console import complain, say

COMMANDS = (report, gates, pr, progress, catalogue, ask, server, worker, dead_letters, drills, local_llm, lab)
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_EPILOG = """\
exit codes: 0 done; 1 failed; 2 the command line cannot work; 130 interrupted
`kit COMMAND --help` says more; `--debug` before the command shows where an error came from
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = build_parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given:
        parser.print_help(sys.stderr)
        return USAGE
    chosen = parser.parse_args(given)
    try:
        return int(chosen.run(chosen))
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except KitError as fault:
        if chosen.debug:
            raise
        complain(f"kit {chosen.command}: {fault}")
        return USAGE if isinstance(fault, ConfigurationError) else FAILED
    except BrokenPipeError:  # `kit catalogue | head`
        sys.stderr.close()
        return DONE
    except OSError as fault:  # a path of the command line that cannot be read or written
        if chosen.debug:
            raise
        complain(f"kit {chosen.command}: {fault}")
        return USAGE


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="kit",
        description="AI components that talk through checked, delivered and observed messages.",
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=18),
    )
    parser.add_argument("--version", nargs=0, action=_Version, help="show the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.configure(commands)
    return parser


class _Version(argparse.Action):
    """Shows the version, looked up only when asked for: that takes as long as all the rest of ``kit --help``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        say(f"kit {version('kit')}")
        parser.exit()
