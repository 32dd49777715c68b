"""JSON Schema -> a msgspec shape that reads and checks in one pass: the fast way through a contract.

A shape never decides against data. It says "surely valid", or it passes, and the validator speaks: about faults, about
layouts that this kit does not write, and about schemas that hold something a shape cannot express. So a shape may be
incomplete (it refuses the integer ``1.0``, which JSON Schema takes), but whatever it lets through, the schema lets
through; property tests compare the two.

Patterns and times are looked at after the parsing, by a function written for the schema, as ``dataclasses`` does it:
msgspec would call Python's regular expressions for each, which costs more than all the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict, Union

import msgspec

from . import exact, tensors

UTC_PATTERN = "(Z|\\+00:00)$"
"""How the schemas say, beside ``format: date-time``, that a time is UTC."""

_ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$defs", "$comment", tensors.KEYWORD}
_ALLOWED = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties", "anyOf", "oneOf"},
}
_SIMPLE_PATTERN = re.compile(r"\^(?:\[[\w-]+\](?:\{\d+(?:,\d+)?\}|[+*])?)+\$", re.ASCII)
_REMEMBERED = 4096


class Unsupported(ValueError):
    """A schema holds something that a shape cannot express."""


Read = Callable[[bytes], Any]
"""JSON text of an envelope -> what it holds, or None (or an error of ``UNSURE``) when the shape is not sure of it."""

Write = Callable[[Any], bytes | None]
"""Data -> JSON text of their envelope, or None (or an error of ``UNSURE``) likewise."""

UNSURE = (msgspec.MsgspecError, ValueError, TypeError, AttributeError, LookupError, RecursionError, BufferError)
"""What the fast way may raise when data do not fit it: the long way then says whether, and what, is wrong."""


def never(argument: Any) -> None:
    """Be sure of nothing: the fast way of a schema that has none."""


def compile_reader(schema: dict[str, Any], prefix: bytes, wrap: tuple[Any, ...] = ()) -> Read:
    """Return the fast way to read: ``never`` when the schema holds something that a shape cannot express.

    Args:
        schema: of the data, in which tensors are described.
        prefix: the bytes of an envelope before its data.
        wrap: what makes the result, and its arguments before the data; nothing returns the data.
    """
    checks = _Checks(schema, exactly=False)
    try:
        parse = msgspec.json.Decoder(_Types(schema, structs=False).of(schema)).decode
        lines = checks.node(schema, "v")
    except Unsupported:
        return never
    names = {f"wrap{number}": value for number, value in enumerate(wrap)}
    return checks.function(
        "v = parse(argument[body])",
        # What is read and rendered again as the same text has lost nothing: no field, no second key, no digit.
        "if argument != join((prefix, render(v), end)): return None",
        *lines,
        f"return wrap0({', '.join([*list(names)[1:], 'v'])})" if wrap else "return v",
        names={**_wire(prefix), "body": slice(len(prefix), -1), "parse": parse, **names},
    )


def compile_writer(schema: dict[str, Any], prefix: bytes) -> Write:
    """Return the fast way to write: ``never`` when the schema holds something that a shape cannot express.

    Args:
        schema: of the data, in which tensors are described.
        prefix: the bytes of an envelope before its data.
    """
    checks = _Checks(schema, exactly=True)
    try:
        kind = _Types(schema, structs=True).of(schema)
        lines = checks.node(schema, "argument")
    except Unsupported:
        return never
    return checks.function(
        "text = render(argument, None, options)",
        "convert(argument, kind)",
        *lines,
        "return join((prefix, text, end))",
        names={**_wire(prefix), "options": exact.OPTIONS, "kind": kind},
    )


def _wire(prefix: bytes) -> dict[str, Any]:
    return {"join": b"".join, "prefix": prefix, "end": b"}", "render": exact.render}


def _resolve(node: Any, root: dict[str, Any]) -> dict[str, Any]:
    """Follow references within the schema."""
    for _ in range(8):
        if not isinstance(node, dict):
            raise Unsupported(f"{node!r} is no schema object")
        if "$ref" not in node:
            return node
        name = str(node["$ref"]).removeprefix("#/$defs/")
        if set(node) - {"$ref"} - _ANNOTATIONS or name not in root.get("$defs", {}):
            raise Unsupported(node["$ref"])
        node = root["$defs"][name]
    raise Unsupported("references without end")


def _kinds(node: dict[str, Any]) -> tuple[str, ...]:
    """Return the JSON types of a node, after checking that each of its keywords is understood; () is any value."""
    types = node.get("type", ())
    kinds = (types,) if isinstance(types, str) else tuple(types)
    allowed = set().union(_ANNOTATIONS, {"type", "enum"}, *(_ALLOWED[kind] for kind in kinds))
    if unknown := set(node) - allowed:
        raise Unsupported(sorted(unknown)[0])
    if "enum" in node and (not kinds or set(node) - _ANNOTATIONS - {"type", "enum"}):
        raise Unsupported("an enum without a type, or with more")
    return kinds


def _is_open(node: dict[str, Any]) -> bool:
    return node.get("additionalProperties", True) is True


class _Types:
    """Turns schema nodes into types for msgspec."""

    def __init__(self, root: dict[str, Any], *, structs: bool) -> None:
        self.root, self.structs, self.depth = root, structs, 0

    def of(self, node: Any) -> Any:
        """Return the type of a node.

        Raises:
            Unsupported: a keyword, or a recursion, that a type cannot express.
        """
        if node is True:
            return Any
        node = _resolve(node, self.root)
        kinds = _kinds(node)
        if not kinds:
            return Any
        if "enum" in node:
            return self._enum(node, kinds)
        self.depth += 1
        if self.depth > 16:
            raise Unsupported("too deep for a type")
        members = tuple(self._member(kind, node) for kind in kinds if kind != "number" or "integer" not in kinds)
        self.depth -= 1
        return Union[members]  # noqa: UP007 - a tuple of members, not known here

    def _enum(self, node: dict[str, Any], kinds: tuple[str, ...]) -> Any:
        for value in node["enum"]:
            if not (isinstance(value, str) and "string" in kinds) and not (value is None and "null" in kinds):
                raise Unsupported("an enum of other values than text and null")
        return Literal[tuple(node["enum"])]

    def _member(self, kind: str, node: dict[str, Any]) -> Any:
        if kind == "string" and "format" in node and self.structs:
            return _time(node)
        if kind == "string":
            return _bounded(str, min_length=node.get("minLength"), max_length=node.get("maxLength"))
        if kind == "integer":
            return _bounded(int, **_int_bounds(node))
        if kind == "number":
            if "minimum" not in node or "maximum" not in node:
                raise Unsupported("a number without bounds")
            limits = {"ge": float(node["minimum"]), "le": float(node["maximum"])}
            if limits["ge"] != node["minimum"] or limits["le"] != node["maximum"]:
                raise Unsupported("a bound that is no double")
            return Union[_bounded(int, **_int_bounds(node)), _bounded(float, **limits)]  # noqa: UP007 - as below
        if kind == "array":
            item = self.of(node.get("items", True))
            return _bounded(list[item], min_length=node.get("minItems"), max_length=node.get("maxItems"))  # type: ignore[valid-type]
        if kind == "object":
            return self._object(node)
        return bool if kind == "boolean" else None

    def _object(self, node: dict[str, Any]) -> Any:
        extra = node.get("additionalProperties", True)
        if not node.get("properties"):
            if extra is False:
                raise Unsupported("an object that is always empty")
            return dict[str, self.of(extra)]  # type: ignore[misc]
        if _is_open(node):
            return dict[str, Any]  # its properties are looked at afterwards
        if extra is not False:
            raise Unsupported("properties beside a map")
        return self.closed(node)

    def closed(self, node: dict[str, Any], *, forbid: bool = True) -> Any:
        """Return the type of an object with named properties."""
        required = set(node.get("required", ()))
        if required - set(node["properties"]):
            raise Unsupported("a required field without a schema")
        fields = {name: self.of(child) for name, child in node["properties"].items()}
        if not self.structs:
            entries = {n: Required[t] if n in required else NotRequired[t] for n, t in fields.items()}
            return TypedDict("Data", entries)  # type: ignore[operator]
        if not all(name.isidentifier() for name in fields):
            raise Unsupported("a field whose name is no identifier")
        rows: list[Any] = [(n, t) for n, t in fields.items() if n in required]
        unset = msgspec.UnsetType
        rows += [(n, Union[t, unset], msgspec.UNSET) for n, t in fields.items() if n not in required]  # noqa: UP007
        return msgspec.defstruct("Data", rows, forbid_unknown_fields=forbid, gc=False)


def _time(node: dict[str, Any]) -> Any:
    """Return the type that takes a text for a time when it is one of RFC 3339."""
    if "minLength" in node or "maxLength" in node:
        raise Unsupported("a time of a given length")
    return Annotated[datetime, msgspec.Meta(tz=True)]


def _bounded(kind: Any, **limits: float | None) -> Any:
    given: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    return Annotated[kind, msgspec.Meta(**given)] if given else kind


def _int_bounds(node: dict[str, Any]) -> dict[str, int]:
    """Return the bounds of integers; those beyond 64 bits bind nothing that can be read."""
    found = {"ge": node.get("minimum"), "le": node.get("maximum")}
    for value in found.values():
        if value is not None and value != int(value):
            raise Unsupported("a fractional bound")
    return {name: int(value) for name, value in found.items() if value is not None and abs(value) < 2**63}


def _matcher(pattern: str) -> tuple[set[str], Callable[[str], bool]]:
    """Return the texts that matched of late, and a function that matches and remembers: ids repeat."""
    if not _SIMPLE_PATTERN.fullmatch(pattern):
        raise Unsupported(f"pattern {pattern}")
    fullmatch = re.compile(pattern[1:-1], re.ASCII).fullmatch
    seen: set[str] = set()

    def matches(text: str) -> bool:
        if fullmatch(text) is None:
            return False
        if len(seen) < _REMEMBERED and len(text) <= 64:
            seen.add(text)
        return True

    return seen, matches


class _Checks:
    """Writes the function that looks at what a type cannot say.

    Attributes:
        exactly: whether the data come from Python, where tuples and others must be told from what JSON carries.
    """

    def __init__(self, root: dict[str, Any], *, exactly: bool) -> None:
        self.root, self.exactly = root, exactly
        self.names: dict[str, Any] = {
            "keeps": exact.keeps,
            "plain": exact.PLAIN,
            "marks": slice(4, 20, 3),
            "end_of_time": slice(26, None),
            "after_seconds": slice(20, None),
            "parse_time": datetime.fromisoformat,
            "convert": msgspec.convert,
        }
        self.patterns: dict[str, int] = {}
        self.count = 0

    def function(self, *lines: str, names: dict[str, Any]) -> Callable[[Any], Any]:
        """Return the function of one ``argument`` that these lines are the body of."""
        self.names.update(names)
        exec("\n".join(["def function(argument):", *_indented(list(lines))]), self.names)
        return self.names["function"]  # type: ignore[no-any-return]

    def node(self, node: Any, name: str) -> list[str]:
        """Return the lines that check the value called ``name``, which fits its type already.

        Raises:
            Unsupported: the schema holds something that no line could check.
        """
        node = _resolve({} if node is True else node, self.root)
        kinds = _kinds(node)
        if not kinds:
            return _anything(name) if self.exactly else []
        if "enum" in node:
            return []
        lines: list[str] = []
        for kind, python, found in self._kinds:
            if kind in kinds and (inner := found(node, name)):
                several = len(set(kinds) - {"null"}) > 1
                lines += [f"if type({name}) is {python}:", *_indented(inner)] if several else inner
        if lines and "null" in kinds:
            lines = [f"if {name} is not None:", *_indented(lines)]
        if self.exactly and "array" in kinds:
            lines = [f"if type({name}) is tuple: return None", *lines]
        return lines

    @property
    def _kinds(self) -> tuple[tuple[str, str, Callable[[dict[str, Any], str], list[str]]], ...]:
        return ("string", "str", self._string), ("array", "list", self._array), ("object", "dict", self._object)

    def _string(self, node: dict[str, Any], name: str) -> list[str]:
        pattern = node.get("pattern")
        if "format" in node:
            if (node["format"], pattern) != ("date-time", UTC_PATTERN):
                raise Unsupported(f"format {node['format']}")
            return _utc_again(name) if self.exactly else _utc(name)
        if pattern is None:
            return []
        if pattern not in self.patterns:
            number = self.patterns[pattern] = len(self.patterns)
            self.names[f"seen{number}"], self.names[f"matches{number}"] = _matcher(pattern)
        number = self.patterns[pattern]
        return [f"if {name} not in seen{number} and not matches{number}({name}): return None"]

    def _array(self, node: dict[str, Any], name: str) -> list[str]:
        return self._each(node.get("items", True), name)

    def _each(self, child: Any, values: str) -> list[str]:
        self.count += 1
        item = f"v{self.count}"
        inner = self.node(child, item)
        return [f"for {item} in {values}:", *_indented(inner)] if inner else []

    def _object(self, node: dict[str, Any], name: str) -> list[str]:
        if not node.get("properties"):
            if _is_open(node):
                return self._each(True, f"{name}.values()")
            return self._each(node["additionalProperties"], f"{name}.values()")
        lines: list[str] = []
        if _is_open(node):
            self.count += 1
            self.names[f"type{self.count}"] = _Types(self.root, structs=True).closed(node, forbid=False)
            lines += [f"convert({name}, type{self.count})"]
            lines += [f"if not keeps({name}): return None"] if self.exactly else []
        for field, child in node["properties"].items():
            lines += self._field(field, child, name, required=field in node.get("required", ()))
        for keyword in ("anyOf", "oneOf"):
            if keyword in node:
                lines += _conditions(keyword, node[keyword], name)
        return lines

    def _field(self, field: str, child: Any, name: str, *, required: bool) -> list[str]:
        self.count += 1
        value = f"v{self.count}"
        inner = self.node(child, value)
        if not inner:
            return []
        inner = [f"{value} = {name}[{field!r}]", *inner]
        return inner if required else [f"if {field!r} in {name}:", *_indented(inner)]


def _anything(name: str) -> list[str]:
    """Return the lines that check a value of which the schema says nothing.

    They look through a list of plain values themselves, which a call would take twice as long for.
    """
    return [
        f"if type({name}) not in plain:",
        f"    for inner in {name} if type({name}) is list else ({name},):",
        "        if type(inner) not in plain:",
        f"            if not keeps({name}): return None",
        "            break",
    ]


def _utc(name: str) -> list[str]:
    """Return the lines that check a time as ``now()`` writes it, or in whole seconds; the validator looks at any other.

    The slices leave only digits to `fromisoformat`, which takes much that RFC 3339 does not.
    """
    return [
        f"if {name}[marks] != '--T::.' or {name}[end_of_time] != 'Z':",
        f"    if {name}[marks] != '--T::Z' or {name}[after_seconds]: return None",
        f"parse_time({name})",  # raises ValueError
    ]


def _utc_again(name: str) -> list[str]:
    """Return the lines that check that a time, which its type has read, is written as the schema wants it."""
    return [f"if {name}[10] != 'T' or {name}[-1] != 'Z': return None"]


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _conditions(keyword: str, branches: list[dict[str, Any]], name: str) -> list[str]:
    """Return the lines that check ``anyOf`` or ``oneOf`` over "this field is there" or "that field is so"."""
    terms: list[str] = []
    for branch in branches:
        fixed = branch.get("properties", {})
        if set(branch) - {"required", "properties"} or set(fixed) - set(branch.get("required", ())):
            raise Unsupported(keyword)
        parts = [f"{field!r} in {name}" for field in branch.get("required", ())]
        for field, child in fixed.items():
            if set(child) != {"const"} or not isinstance(child["const"], str):
                raise Unsupported(keyword)
            parts.append(f"{name}[{field!r}] == {child['const']!r}")
        if not parts:
            raise Unsupported(keyword)
        terms.append(f"({' and '.join(parts)})")
    if keyword == "anyOf":
        return [f"if not ({' or '.join(terms)}): return None"]
    return [f"if {' + '.join(terms)} != 1: return None"]
