"""Whether versions of a contract get along: schema by schema, and over every stored fixture. Needs no server.

A pair is judged by inclusion: does the reader's schema take everything that the writer's lets through? A newer reader
of older data (BACKWARD) reads with its own, closed schema; an older reader of newer data (FORWARD) opens its schema, as
``decode`` does for a newer minor. What cannot be shown to be included is reported: the check may be too strict, never
too lax.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from kit.errors import CodecError, ConfigurationError, MigrationError

from . import exact, tensors
from .contracts import Registry, compile_schema, opened, parse_version, registry
from .envelope import decode
from .migrations import migrate

Found = Iterator[tuple[str, str]]
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "$schema", "$id", "$defs", "$comment"}
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_LOWER = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_UPPER = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_IMPLIED = {"minLength": 0, "minItems": 0, "minProperties": 0}
_HANDLED = {
    "type",
    "enum",
    "const",
    "$ref",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "anyOf",
    "oneOf",
}


class Compatibility(StrEnum):
    """Who must be able to read whom. TRANSITIVE: in every pair of versions, else in neighbours only."""

    NONE = "NONE"
    BACKWARD = "BACKWARD"  # a newer reader, older data
    BACKWARD_TRANSITIVE = "BACKWARD_TRANSITIVE"
    FORWARD = "FORWARD"  # an older reader, newer data
    FORWARD_TRANSITIVE = "FORWARD_TRANSITIVE"
    FULL = "FULL"  # both
    FULL_TRANSITIVE = "FULL_TRANSITIVE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Incompatibility:
    """One reason why a reader may refuse what a writer sends.

    Attributes:
        reader / writer: their versions.
        path: JSON pointer into the data; ``*`` stands for each element.
        fixture: the stored fixture that shows it, or None when the schemas do.
    """

    message_type: str
    reader: str
    writer: str
    path: str
    reason: str
    fixture: str | None = None

    def __str__(self) -> str:
        shown = f" ({self.fixture})" if self.fixture else ""
        where = f" at {self.path}" if self.path else ""
        return f"{self.message_type}: {self.reader} cannot read {self.writer}{where}: {self.reason}{shown}"


def declared(message_type: str, folder: Path | None = None) -> Compatibility:
    """Return what a message type promises: ``schemas/compatibility.json`` names the exceptions from its default."""
    file = (folder or registry().folder) / "compatibility.json"
    if not file.is_file():
        return Compatibility.FULL_TRANSITIVE
    rules = exact.loads(file.read_bytes())
    exception = rules["exceptions"].get(message_type)
    return Compatibility(exception["mode"] if exception else rules["default"])


def check_compatibility(
    message_type: str | None = None,
    mode: str | None = None,
    *,
    candidate: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    fixtures: Path | None = None,
) -> tuple[Incompatibility, ...]:
    """Return every reason why versions within a major do not get along; none means they do.

    Args:
        message_type: None for all of them.
        mode: a ``Compatibility``; None is what the message type declares (FULL_TRANSITIVE unless it says otherwise).
        candidate: a schema that is not stored yet, to be judged as the next minor version of ``message_type``.
        folder: of other schemas than the kit's; fixtures are then looked at only where ``fixtures`` names theirs.
        fixtures: folder of fixtures; None is the checkout's ``data/contracts``, where there is one.

    Raises:
        ConfigurationError: an unknown mode.
        UnknownContract: an unknown message type.
    """
    known = Registry(folder) if folder else registry()
    if fixtures is None and folder is None:
        fixtures = known.folder.parent / "data" / "contracts"
    found: list[Incompatibility] = []
    for name in known.message_types() if message_type is None else (message_type,):
        chosen = _mode(mode) if mode is not None else declared(name, known.folder)
        schemas = {version: dict(known.schema(name, version)) for version in known.versions(name)}
        if candidate is not None:
            major, minor = parse_version(known.latest(name)) or (0, 0)
            schemas[f"{major}.{minor + 1}"] = dict(candidate)
        for reader, writer in _pairs(tuple(schemas), chosen):
            judged = _Judged(name, reader, writer, schemas)
            found += judged.by_schema()
            if fixtures is not None and folder is None:
                found += judged.by_fixture(fixtures, migrated=candidate is None)
    return tuple(found)


def _mode(mode: str) -> Compatibility:
    try:
        return Compatibility(mode)
    except ValueError:
        raise ConfigurationError(f"mode {mode!r} is none of {', '.join(Compatibility)}") from None


def _pairs(versions: tuple[str, ...], mode: Compatibility) -> Iterator[tuple[str, str]]:
    """Yield (reader, writer) for each pair of versions of one major that the mode is about."""
    majors: dict[str, list[str]] = {}
    for version in versions:
        majors.setdefault(version.split(".")[0], []).append(version)
    for members in majors.values():
        pairs = combinations(members, 2) if mode.endswith("_TRANSITIVE") else pairwise(members)
        for older, newer in pairs:
            if mode.startswith(("BACKWARD", "FULL")):
                yield newer, older
            if mode.startswith(("FORWARD", "FULL")):
                yield older, newer


class _Judged:
    """One pair of a reader and a writer."""

    def __init__(self, message_type: str, reader: str, writer: str, schemas: dict[str, dict[str, Any]]) -> None:
        self.message_type, self.reader, self.writer = message_type, reader, writer
        ahead = parse_version(writer) or (0, 0)
        own = schemas[reader]
        self.schema = opened(own) if ahead > (parse_version(reader) or (0, 0)) else own
        self.written = schemas[writer]

    def _found(self, path: str, reason: str, fixture: str | None = None) -> Incompatibility:
        return Incompatibility(
            message_type=self.message_type,
            reader=self.reader,
            writer=self.writer,
            path=path,
            reason=reason,
            fixture=fixture,
        )

    def by_schema(self) -> Iterator[Incompatibility]:
        """Yield what the schemas alone show."""
        for path, reason in breaks(reader=self.schema, writer=self.written):
            yield self._found(path, reason)

    def by_fixture(self, folder: Path, *, migrated: bool) -> Iterator[Incompatibility]:
        """Yield what the writer's stored fixtures show: read by the reader's schema, and brought to its version."""
        validator = compile_schema(self.schema)
        for file in sorted((folder / self.message_type / self.writer / "valid").glob("*.*")):
            name = f"{self.message_type}/{self.writer}/valid/{file.name}"
            payload = file.read_bytes()
            data = exact.loads(payload.split(b"\0")[0])["data"]
            for error in validator.iter_errors(data):
                yield self._found(exact.pointer(error.instance_path), error.message, name)
            if not migrated:
                continue
            try:
                migrate(decode(payload), self.reader)
            except MigrationError as error:
                # Down a step may be refused, by name; up nothing may be lost.
                if (parse_version(self.reader) or (0, 0)) > (parse_version(self.writer) or (0, 0)):
                    yield self._found(error.path or "", error.reason, name)
            except CodecError as error:
                yield self._found(error.path or "", error.reason, name)


def breaks(*, reader: dict[str, Any], writer: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (path, reason) for everything that the writer's schema lets through and the reader's may refuse."""
    return list(_Inclusion(reader, writer).schema(reader, writer, ""))


class _Inclusion:
    """Shows, keyword by keyword, that the reader's schema includes the writer's."""

    def __init__(self, reader_root: dict[str, Any], writer_root: dict[str, Any]) -> None:
        self.reader_root, self.writer_root = reader_root, writer_root
        self.depth = 0

    def schema(self, reader: Any, writer: Any, path: str) -> Found:
        """Yield what the reader may refuse."""
        reader, writer = _resolved(reader, self.reader_root), _resolved(writer, self.writer_root)
        if reader == {} or writer is None:
            return  # The reader takes anything, or the writer writes nothing.
        if reader is None:
            yield path, "the reader takes nothing there"
            return
        self.depth += 1
        if self.depth > 64:
            yield path, "nested too deep to be compared"
        elif "enum" in writer or "const" in writer:
            yield from self._values(reader, writer, path)
        else:
            yield from self._types(reader, writer, path)
        self.depth -= 1

    def _values(self, reader: dict[str, Any], writer: dict[str, Any], path: str) -> Found:
        """Look at each value that the writer may write."""
        validator = compile_schema({**reader, "$defs": self.reader_root.get("$defs", {})})
        for value in writer.get("enum", [writer.get("const")]):
            if not validator.is_valid(value):
                yield path, f"{json.dumps(value)} is not taken"

    def _types(self, reader: dict[str, Any], writer: dict[str, Any], path: str) -> Found:
        if "enum" in reader or "const" in reader:
            yield path, "only listed values are taken"
            return
        taken = _kinds(reader)
        for kind in _kinds(writer):
            if kind not in taken and not (kind == "integer" and "number" in taken):
                yield path, f"the type {kind} is not taken"
        yield from _bounds(reader, writer, path)
        written = _kinds(writer)
        if "array" in written and "array" in taken:
            yield from self.schema(reader.get("items", True), writer.get("items", True), f"{path}/*")
        if "object" in written and "object" in taken:
            yield from self._object(reader, writer, path)
        for keyword in ("anyOf", "oneOf"):
            if keyword in reader and not _branches(keyword, reader[keyword], writer):
                yield path, f"{keyword} may not hold"

    def _object(self, reader: dict[str, Any], writer: dict[str, Any], path: str) -> Found:
        written, taken = writer.get("properties", {}), reader.get("properties", {})
        for name in reader.get("required", ()):
            if name not in writer.get("required", ()):
                yield f"{path}{exact.pointer([name])}", "the field is required, and may be missing"
        rest = reader.get("additionalProperties", True)
        more = writer.get("additionalProperties", True)
        for name, child in written.items():
            at = f"{path}{exact.pointer([name])}"
            if name not in taken and rest is False:
                yield at, "the field is not known"
            else:
                yield from self.schema(taken.get(name, rest), child, at)
        if more is False:
            return
        for name, child in taken.items():
            if name not in written:
                yield from self.schema(child, more, f"{path}{exact.pointer([name])}")
        if rest is False:
            yield path, "other fields are not taken, and may be there"
        else:
            yield from self.schema(rest, more, f"{path}/*")


def _resolved(node: Any, root: dict[str, Any]) -> dict[str, Any] | None:
    """Return a schema without its reference: {} takes anything, None takes nothing."""
    for _ in range(8):
        if isinstance(node, bool):
            return {} if node else None
        if "$ref" not in node:
            break
        node = {**{k: v for k, v in node.items() if k != "$ref"}, **root["$defs"][node["$ref"].split("/")[-1]]}
    return {key: value for key, value in node.items() if key not in _ANNOTATIONS}


def _kinds(node: dict[str, Any]) -> tuple[str, ...]:
    kinds = node.get("type", _TYPES)
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)


def _bounds(reader: dict[str, Any], writer: dict[str, Any], path: str) -> Found:
    """Compare every keyword that is about the value itself; those that are not understood must be equal."""
    for keyword in sorted(set(reader) - _HANDLED):
        limit, own = reader[keyword], writer.get(keyword, _IMPLIED.get(keyword))
        if keyword in _LOWER:
            holds = own is not None and limit <= own
        elif keyword in _UPPER:
            holds = own is not None and limit >= own
        else:
            holds = limit == own
        if not holds:
            was = "not limited" if own is None else json.dumps(own)
            yield path, f"{keyword} is {json.dumps(limit)}, and was {was} when written"
    if tensors.KEYWORD in writer and tensors.KEYWORD not in reader:
        yield path, "a tensor is not taken"


def _branches(keyword: str, branches: list[Any], writer: dict[str, Any]) -> bool:
    """Whether the reader's ``anyOf`` or ``oneOf`` surely holds for what the writer writes."""
    own = writer.get(keyword)
    if own == branches or (keyword == "anyOf" and own is not None and all(branch in branches for branch in own)):
        return True
    required, closed = set(writer.get("required", ())), writer.get("additionalProperties", True) is False
    surely = [set(branch) == {"required"} and required >= set(branch["required"]) for branch in branches]
    never = [
        closed and bool(set(branch.get("required", ())) - set(writer.get("properties", {}))) for branch in branches
    ]
    if keyword == "anyOf":
        return any(surely)
    return sum(surely) == 1 and all(a or b for a, b in zip(surely, never, strict=True))
