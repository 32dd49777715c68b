"""Foreign schemas, checked within bounds on size, depth and work, without fetching anything.

Patterns run in linear time. The maximum cost of a check is computed first, because branches that refer to branches
multiply: a schema of 1 KB can take a day to check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any

import jsonschema_rs

from kit.errors import CodecError

from . import exact

_MOST_NODES = 5_000  # of a schema: objects, arrays and values
_MOST_DEPTH = 64
_MOST_STEPS = 5_000_000  # about 0.1 s
_MOST_COSTS = 20_000  # to be worked out before it: about 0.1 s
_MOST_READ = 50_000  # characters by patterns: about 0.5 s for the worst of patterns
_MOST_NAMED = 20_000  # steps up to which the fault is located, whatever branches there are
_BRANCHING = frozenset(("anyOf", "oneOf", "not", "contains", "unevaluatedItems", "unevaluatedProperties"))
_REBASING = ("$id", "$anchor", "$dynamicAnchor", "$dynamicRef")
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1 << 18, dfa_size_limit=1 << 20)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Where a value breaks a schema; it never quotes the value.

    Attributes:
        path: names and positions that lead to it; ``declared``: as far as the schema itself names them.
        rule: the keyword that it breaks, empty if finding it would cost too much.
        reason: a sentence.
    """

    path: tuple[str | int, ...] = ()
    declared: tuple[str | int, ...] = ()
    rule: str = ""
    reason: str = "it breaks the schema"


class ForeignSchema:
    """A JSON Schema (2020-12) that came from outside.

    Raises:
        CodecError: it is too large or too deep, or refers to anything outside itself.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = dict(schema)
        self._targets: dict[str, Any] = {}
        self._costs: dict[tuple[int, int], tuple[int, int]] = {}
        self._branches = False
        for node in _objects(self._schema):
            self._admit(node)

    @cached_property
    def _validator(self) -> jsonschema_rs.Draft202012Validator:
        try:
            return jsonschema_rs.Draft202012Validator(
                self._schema, validate_formats=False, pattern_options=_PATTERNS, mask="the value", offline=True
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            raise CodecError(f"it is not a usable JSON Schema: {exact.shorten(_why(error), 200)}") from None

    def _admit(self, node: dict[str, Any]) -> None:
        self._branches |= not _BRANCHING.isdisjoint(node)
        for name in _REBASING:
            if isinstance(node.get(name), str) and not (name == "$id" and node is self._schema):
                raise CodecError(f"{name} is not supported: use '$ref' with '#/$defs/…'")
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return
        target: Any = self._schema
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        if not f"{reference}/".startswith("#/") or not isinstance(target, dict | bool):
            raise CodecError("it refers to another schema: include that one under $defs")
        self._targets[reference] = target

    def compile(self) -> ForeignSchema:
        """Compile it now and return it.

        Raises:
            CodecError: it is not a JSON Schema, or has patterns that need more than linear time.
        """
        _ = self._validator
        return self

    def fault(self, value: Any) -> Fault | None:
        """Return how a JSON value breaks the schema, or None.

        Raises:
            CodecError: it is not a JSON Schema, or the check might take too long.
        """
        nodes, characters, depth = _measure(value)
        if depth > exact.MAX_DEPTH:
            raise CodecError(f"what is to be checked is nested deeper than {exact.MAX_DEPTH} levels")
        try:
            steps, patterns = self._cost(self._schema, depth + 1 + len(self._targets))
        except RecursionError:
            steps, patterns = _MOST_STEPS, _MOST_READ
        if steps * nodes >= _MOST_STEPS or patterns * characters >= _MOST_READ:
            raise CodecError("the check might take too long: its schema has too many branches or patterns for this")
        if self._validator.is_valid(value):
            return None
        if self._branches and steps * nodes > _MOST_NAMED:
            return Fault()
        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            path = tuple(error.instance_path)
            named = {name for rule, name in pairwise(error.schema_path) if rule == "properties"}
            declared = takewhile(lambda part: isinstance(part, int) or part in named, path)
            reason = exact.shorten(error.message, 200)
            return Fault(path=path, declared=tuple(declared), rule=error.kind.name, reason=reason)
        return None

    def _cost(self, node: Any, turns: int) -> tuple[int, int]:
        """Return the maximum of steps and of patterns for one value, following this many references."""
        if not isinstance(node, dict | list):
            return 1, 0
        key, known = (id(node), turns), self._costs
        if len(known) > _MOST_COSTS:
            return _MOST_STEPS, _MOST_READ
        if key not in known:
            steps, patterns = 1, 0
            costs = [self._cost(part, turns) for part in (node.values() if isinstance(node, dict) else node)]
            if isinstance(node, dict):
                named = node.get("patternProperties")
                patterns = isinstance(node.get("pattern"), str) + (len(named) if isinstance(named, dict) else 0)
                if turns > 0 and isinstance(node.get("$ref"), str):
                    costs.append(self._cost(self._targets[node["$ref"]], turns - 1))
            for more, read in costs:
                steps, patterns = steps + more, patterns + read
            known[key] = min(steps, _MOST_STEPS), min(patterns, _MOST_READ)
        return known[key]


def _why(error: Exception) -> str:
    if not isinstance(error, jsonschema_rs.ValidationError):
        return str(error)
    return f"{exact.pointer(error.instance_path) or 'the schema'}: {error.message}"


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of a schema.

    Raises:
        CodecError: it is too large or too deep.
    """
    left: list[tuple[Any, int]] = [(schema, 1)]
    seen = 0
    while left:
        node, depth = left.pop()
        seen += 1
        if seen > _MOST_NODES or depth > _MOST_DEPTH:
            raise CodecError(f"it is too large: it may have at most {_MOST_NODES:,} values, nested {_MOST_DEPTH} deep")
        if isinstance(node, dict):
            yield node
        if isinstance(node, dict | list):
            left += ((part, depth + 1) for part in (node.values() if isinstance(node, dict) else node))


def _measure(value: Any) -> tuple[int, int, int]:
    """Return the nodes, the characters and the depth of a value."""
    left: list[tuple[Any, int]] = [(value, 0)]
    nodes = characters = deepest = 0
    while left:
        node, depth = left.pop()
        nodes, deepest = nodes + 1, max(deepest, depth)
        if isinstance(node, str):
            characters += len(node)
        elif isinstance(node, dict):
            characters += sum(map(len, node))
            left += ((part, depth + 1) for part in node.values())
        elif isinstance(node, list):
            left += ((part, depth + 1) for part in node)
    return nodes, characters, deepest
