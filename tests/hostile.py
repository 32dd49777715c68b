"""Every regular expression of the kit, and the texts that make careless ones take for ever."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import kit
from kit.components.gateway.litellm_calls import load_litellm

ROOT = Path(kit.__file__).parent
_CALLS = {"compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn"}

_UNITS = [
    " ", "\n", "\t", "\r\n", "\xa0", "\u2028", "a", "A", "1", "é", "_", "-", ".", ",", ":", ";", "!", "?", "。", "'",
    '"', "`", "~", "#", "*", "=", "+", "/", "\\", "|", "<", ">", "[", "]", "(", ")", "{", "@", "&", "$", "\x1b[", "^",
    "a ", "A ", "Ab ", "a.", "a-", "a_", "a/", "a@", "1.", "1 ", "1,", "1-", "a\n", "\n ", " \n", "```\n", "``a", "[1]",
    "](", "<a>", "<!--", "<text>", "# a  \n", "- ", "* a\n", "e.g. ", "http://a.", "'a'", "<context", "question: ",
    "\nanswer ", "title: \n", "---\n", "for (a)", "href=\"", "e9", "no ", "does not ", "in a",
]  # fmt: skip
_AROUND = [
    ("# Release notes", " ", "v2"), ("```", "\n", "x"), ("---\n", "\n", "x"), ("---\ntitle:", " ", "x"),
    ("# ", "#", "x"), ("<meta", " ", "x"), ("[", "1", "x"),
]  # fmt: skip


def shapes(length: int) -> list[str]:
    """Return 88 texts of about so many characters."""
    texts = [unit * (length // len(unit)) for unit in _UNITS]
    return texts + [before + unit * (length - len(before) - len(after)) + after for before, unit, after in _AROUND]


def modules() -> Iterator[ModuleType]:
    """Yield every module of the kit."""
    load_litellm()  # as the gateway does: by itself it fetches a list of prices
    for found in pkgutil.walk_packages([str(ROOT)], "kit."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def patterns() -> dict[str, re.Pattern[Any]]:
    """Return every pattern of the kit by where it stands: compiled in a module, or written in a function."""
    found: dict[str, re.Pattern[Any]] = {}
    for module in modules():
        for name, value in vars(module).items():
            for pattern in _within(value, 0):
                found.setdefault(f"{module.__name__}.{name} {pattern.pattern!r}", pattern)
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Call) and _is_re(node.func) and node.args:
                for pattern in _written(node, module):
                    found.setdefault(f"{module.__name__}:{node.lineno} {pattern.pattern!r}", pattern)
    once = {pattern: where for where, pattern in reversed(found.items())}
    return {where: pattern for pattern, where in once.items()}


def _within(value: Any, depth: int) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif depth < 5 and isinstance(value, dict):
        for part in (*value.keys(), *value.values()):
            yield from _within(part, depth + 1)
    elif depth < 5 and isinstance(value, tuple | list | set | frozenset):
        for part in value:
            yield from _within(part, depth + 1)
    elif isinstance(value, type) and value.__module__.startswith("kit."):
        for part in vars(value).values():
            yield from _within(part, 5)


def _is_re(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "re"
        and function.attr in _CALLS
    )


def _written(call: ast.Call, module: ModuleType) -> Iterator[re.Pattern[Any]]:
    """Yield the pattern of a call of ``re``, if it can be known without running the function around it."""
    flags: Any = 0
    position = {"sub": 4, "subn": 4, "split": 3, "compile": 1}.get(call.func.attr, 2)  # type: ignore[attr-defined]
    given = [k.value for k in call.keywords if k.arg == "flags"] + call.args[position : position + 1]
    try:
        text = eval(compile(ast.Expression(call.args[0]), "", "eval"), vars(module))
        if given:
            flags = eval(compile(ast.Expression(given[0]), "", "eval"), vars(module))
    except NameError:
        return
    if isinstance(text, str | bytes):
        yield re.compile(text, flags)
