"""The process in which templates run: Jinja2's immutable sandbox, with its memory bounded by the kernel.

It is started by path with ``python -P`` and imports nothing but the standard library and Jinja2. One request, one
answer, each a line of JSON; the process ends when its standard input does, so it never outlives its owner.

Why a process: a template can loop for ever (``range`` in ``range``) or ask for gigabytes (``'x' * 10**10``, or the
``center`` filter), some of it inside one C call and some already while Jinja2 folds constants at compile time. No
check from the inside stops all of that; a deadline, a memory limit and a kill from the outside do.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import types
from collections import OrderedDict
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 512 * 2**20  # bytes of address space; a fresh process needs about a tenth
COMPILED = 256  # templates kept compiled
LOADING = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


def environment() -> ImmutableSandboxedEnvironment:
    """Return the sandbox: strict about the undefined, silent about null, without loaders and without chance."""
    env = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: "" if value is None else value,
    )  # fmt: skip
    env.filters.pop("random")  # the same template and values always give the same text
    env.globals.pop("lipsum")
    return env


class Sandbox:
    """Answers requests, one at a time."""

    def __init__(self) -> None:
        self.env = environment()
        self.compiled: OrderedDict[str, Template] = OrderedDict()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request: ``inspect`` a template, or ``render`` it."""
        source = request["source"]
        try:
            if request["do"] == "inspect":
                return self._inspect(source)
            return {"text": self._render(source, request["variables"], request["max_chars"])}
        except TemplateSyntaxError as error:
            return _fault("syntax", error.message or "syntax error", error.lineno)
        except SecurityError as error:
            return _fault("forbidden", _told(error, source), _line(error))
        except UndefinedError as error:
            return _fault("undefined", _told(error, source), _line(error))
        except (MemoryError, OverflowError):
            self.compiled.clear()
            return _fault("large", f"rendering needs more memory than its {MEMORY // 2**20} MiB", None)
        except _TooLarge as error:
            return _fault("large", str(error), None)
        except RecursionError as error:
            return _fault("failed", "it nests or recurses too deeply", _line(error))
        except Exception as error:  # noqa: BLE001 - whatever a template raises is its own fault; only its type is told
            return _fault("failed", type(error).__name__, _line(error))

    def _inspect(self, source: str) -> dict[str, Any]:
        tree = self.env.parse(source)
        for node in tree.find_all(LOADING):
            return _fault("syntax", f"{type(node).__name__.lower()} has no place here: nothing is loaded", node.lineno)
        self.env.compile(source, filename="<template>")
        return {"variables": sorted(meta.find_undeclared_variables(tree))}

    def _render(self, source: str, variables: dict[str, Any], max_chars: int) -> str:
        template = self.compiled.get(source)
        if template is None:
            template = self.compiled[source] = self.env.from_string(source)
            if len(self.compiled) > COMPILED:
                self.compiled.popitem(last=False)
        # What has no value is false, prints nothing and takes a ``default``; only what is not declared is an error.
        given = {name: Undefined(name=name) if value is None else value for name, value in variables.items()}
        pieces, size = [], 0
        for piece in template.generate(given):
            size += len(piece)
            if size > max_chars:
                raise _TooLarge(f"rendering exceeds {max_chars:,} characters")
            pieces.append(piece)
        return "".join(pieces)


class _TooLarge(Exception):
    """More characters came out than may."""


def _fault(kind: str, reason: str, line: int | None) -> dict[str, Any]:
    return {"fault": kind, "reason": reason, "line": line}


def _told(error: Exception, source: str) -> str:
    """Tell the names in Jinja2's message that stand in the template; what came in as a value is content."""
    message = str(error)
    quoted = re.findall(r"'([^']*)'", message)
    return message if all(name in source or name in _TYPES for name in quoted) else "something undefined was used"


_TYPES = frozenset({"str", "int", "float", "bool", "list", "dict", "None", "str object", "dict object", "list object"})


def _line(error: BaseException) -> int | None:
    trace: types.TracebackType | None = error.__traceback__
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in {"<template>", "<unknown>"}:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _tell(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer requests from standard input until it ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has it; the deadline still holds
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook cell is its owner's business
    sandbox = Sandbox()
    _tell({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if hasattr(signal, "setitimer"):  # ends the process even when its owner died meanwhile
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1.0)
        reply = sandbox.answer(request)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        _tell(reply)


if __name__ == "__main__":
    main()
