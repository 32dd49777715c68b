"""SECURITY.md promises nothing without a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_the_test_of_a_promise_exists(file: str, name: str) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, functions)}


def test_every_promise_has_a_test() -> None:
    promises = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise ")]
    assert len(promises) >= 40
    for line in promises:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", line), line
    assert len(re.findall(r"::test_", PAGE)) >= len(NAMED) >= len(promises)
    assert "An account is one trust domain." in PAGE
