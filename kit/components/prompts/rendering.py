"""Rendering with bounds: declared variables are checked here, the template runs in the sandbox process."""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.components.prompts.errors import (
    ForbiddenInTemplate,
    MissingVariable,
    PromptError,
    RenderFailed,
    RenderTooLarge,
    RenderTooLong,
    SuperfluousVariable,
    TemplateRefused,
    WrongVariableType,
)

MAX_TEMPLATE = 64 * 1024  # characters of one template
MAX_INPUT = 4 * 2**20  # bytes of all values of one rendering, as JSON
QUICK = 0.25  # seconds in which nearly all templates are rendered
START = 30.0  # seconds a sandbox process may take to start on a busy machine
# What a sandbox process may know of its owner's surroundings: enough to find Python, no credentials.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "SYSTEMROOT", "VIRTUAL_ENV")

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
}
_NAMES: dict[type, str] = {
    str: "string", int: "integer", float: "number", bool: "boolean", list: "array", tuple: "array", dict: "object"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A variable that a template declares.

    Attributes:
        type: JSON type: string, integer, number, boolean, array or object.
        required: whether it must be given; a variable with a default need not be.
        default: what stands in for it; None: nothing, it is false and prints nothing.
    """

    name: str
    type: str
    required: bool = True
    default: Any = None
    description: str = ""

    def document(self) -> dict[str, Any]:
        """Return the declaration as it travels."""
        document: dict[str, Any] = {"type": self.type, "required": self.required}
        if not self.required:
            document["default"] = self.default
        if self.description:
            document["description"] = self.description
        return document


def declare(template_id: str, variables: Mapping[str, Any]) -> dict[str, Variable]:
    """Return the declared variables by name.

    A declaration is a JSON type name, a Python type (``str``, ``list`` …) or a mapping with ``type`` and, as wanted,
    ``required``, ``default`` and ``description``.

    Raises:
        TemplateRefused: a declaration that is none of these, or a default of another type.
    """
    declared = {}
    for name, given in variables.items():
        fields = dict(given) if isinstance(given, Mapping) else {"type": given}
        kind = fields.pop("type", None)
        kind = _NAMES.get(kind, kind) if isinstance(kind, type) else kind
        unknown = sorted(set(fields) - {"required", "default", "description"})
        if not str(name).isidentifier() or kind not in _TYPES or unknown:
            raise TemplateRefused(
                template_id, f"variable {name!r} is declared as {given!r}: give it one of {', '.join(_TYPES)}"
            )
        required = fields.get("required", "default" not in fields)
        default = fields.get("default")
        if not required and default is not None and not _fits(default, kind):
            raise TemplateRefused(template_id, f"the default of {name!r} is not of type {kind}")
        declared[name] = Variable(
            name=name, type=kind, required=required, default=default, description=fields.get("description", "")
        )
    return declared


def check_values(
    template_id: str, version: str, declared: Mapping[str, Variable], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values with defaults filled in, once they fit the declarations.

    Raises:
        MissingVariable: a required variable was not given.
        SuperfluousVariable: a variable was given that is not declared.
        WrongVariableType: a value of another type, or one that is not JSON.
    """
    if missing := sorted(name for name, variable in declared.items() if variable.required and name not in values):
        raise MissingVariable(template_id, version, missing)
    if superfluous := sorted(str(name) for name in values if name not in declared):
        raise SuperfluousVariable(template_id, version, superfluous)
    checked = {name: variable.default for name, variable in declared.items() if name not in values}
    for name, value in values.items():
        expected = declared[name].type
        if not _fits(value, expected):
            raise WrongVariableType(template_id, version, name, expected=expected, actual=_type_name(value))
        checked[name] = value
    return checked


def _fits(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _type_name(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


class Renderer:
    """Renders templates in sandbox processes, which start when first needed and end with their owner.

    What is not done at once is begun again in a queue of its own, with one process: those that hang wait for each other
    there, and the others for each of them for ``QUICK`` seconds only.

    Args:
        seconds: time one rendering may take.
        max_chars: characters one rendering may yield.
        processes: how many renderings may run at once.
    """

    def __init__(self, *, seconds: float = 1.0, max_chars: int = 200_000, processes: int = 2) -> None:
        self.seconds, self.max_chars = seconds, max_chars
        self._local = threading.local()
        self._children: weakref.WeakSet[_Child] = weakref.WeakSet()
        self._quick = ThreadPoolExecutor(processes, thread_name_prefix="kit-prompt-sandbox")
        self._patient = ThreadPoolExecutor(1, thread_name_prefix="kit-prompt-sandbox-patient")

    async def inspect(self, template_id: str, source: str) -> tuple[str, ...]:
        """Return the names of the variables that a template uses.

        Raises:
            TemplateRefused: a template that is too long, cannot be parsed or loads other templates.
        """
        if len(source) > MAX_TEMPLATE:
            raise TemplateRefused(template_id, f"{len(source):,} characters exceed the limit of {MAX_TEMPLATE:,}")
        reply = await self._ask({"do": "inspect", "source": source})
        if reply is None:
            raise TemplateRefused(template_id, f"it could not be compiled within {self.seconds:g} s")
        if "fault" in reply:
            raise TemplateRefused(template_id, reply["reason"], line=reply["line"])
        return tuple(reply["variables"])

    async def render(self, template_id: str, version: str, source: str, values: Mapping[str, Any]) -> str:
        """Return the rendered text.

        Raises:
            RenderTooLong: it did not end within the time limit and was stopped.
            RenderTooLarge: it needs more characters or memory than it may.
            ForbiddenInTemplate: it reached for what the sandbox denies.
            RenderFailed: it failed in another way.
            WrongVariableType: a value holds something that is not JSON data.
        """
        for name, value in values.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError):
                raise WrongVariableType(
                    template_id, version, name, expected="JSON data", actual=f"{_type_name(value)} of something else"
                ) from None
        request = {"do": "render", "source": source, "variables": dict(values), "max_chars": self.max_chars}
        reply = await self._ask(request, template_id, version)
        if reply is None:
            raise RenderTooLong(template_id, version, seconds=self.seconds)
        if "fault" in reply:
            raise _failure(template_id, version, reply)
        return str(reply["text"])

    async def close(self) -> None:
        """End the sandbox processes."""
        for executor in (self._quick, self._patient):
            executor.shutdown(wait=False, cancel_futures=True)
        for child in list(self._children):
            child.kill()

    async def _ask(self, request: dict[str, Any], template_id: str = "", version: str = "") -> dict[str, Any] | None:
        line = json.dumps(request | {"seconds": self.seconds}).encode()
        if len(line) > MAX_INPUT:
            raise RenderTooLarge(
                template_id, version, what=f"its values have {len(line):,} bytes, the limit is {MAX_INPUT:,}"
            )
        loop, quick = asyncio.get_running_loop(), min(QUICK, self.seconds)
        reply = await loop.run_in_executor(self._quick, self._exchange, line, quick)
        if reply is None and quick < self.seconds:
            reply = await loop.run_in_executor(self._patient, self._exchange, line, self.seconds)
        return reply

    def _exchange(self, line: bytes, seconds: float) -> dict[str, Any] | None:
        """Have this thread's process answer; None when it did not in time."""
        child: _Child | None = getattr(self._local, "child", None)
        if child is None or not child.alive:
            child = self._local.child = _Child()
            self._children.add(child)
        return child.exchange(line, seconds)


def _failure(template_id: str, version: str, reply: dict[str, Any]) -> PromptError:
    if reply["fault"] == "large":
        return RenderTooLarge(template_id, version, what=reply["reason"])
    kind = ForbiddenInTemplate if reply["fault"] == "forbidden" else RenderFailed
    return kind(template_id, version, reply["reason"], line=reply["line"])


class _Child:
    """One sandbox process, used by one thread."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("sandbox.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            start_new_session=True,
        )
        self.kill = weakref.finalize(self, _end, self.process)
        if self._line(time.monotonic() + START) is None:
            self.kill()
            raise PromptError("the sandbox process did not start: is jinja2 installed for this interpreter?")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None and bool(self.kill.alive)

    def exchange(self, line: bytes, seconds: float) -> dict[str, Any] | None:
        """Send one request and return its answer; None, and no process any more, when it is late."""
        assert self.process.stdin is not None
        deadline = time.monotonic() + seconds
        try:
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.kill()
            return {"fault": "failed", "reason": "the sandbox process ended", "line": None}
        answer = self._line(deadline)
        if answer is None:
            late = time.monotonic() >= deadline
            self.kill()
            return None if late else {"fault": "large", "reason": "the sandbox process died of it", "line": None}
        return json.loads(answer)  # type: ignore[no-any-return]

    def _line(self, deadline: float) -> bytes | None:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        received = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                piece = os.read(descriptor, 1 << 16)
                if not piece:
                    return None
                received += piece
        return bytes(received)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
