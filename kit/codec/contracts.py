"""Schema files -> compiled contracts, looked up by message type and version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jsonschema_rs

from kit.errors import CodecError, ContractViolation, UnknownContract

from . import exact, tensors

_VERSION = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")
_MASK = "the value"


def parse_version(version: object) -> tuple[int, int] | None:
    """Return (major, minor) of a version such as ``"1.0"``, or None when it is not one."""
    match = _VERSION.fullmatch(version) if issubclass(type(version), str) else None  # type: ignore[call-overload]
    return (int(match[1]), int(match[2])) if match else None


def schemas_folder() -> Path:
    """Return the folder of the schema files: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "schemas"
    return checkout if checkout.is_dir() else package / "_schemas"


def compile_schema(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Compile a schema: formats asserted, patterns in linear time, values kept out of messages."""
    return jsonschema_rs.Draft202012Validator(
        schema, validate_formats=True, pattern_options=jsonschema_rs.RegexOptions(), mask=_MASK
    )


def opened(schema: Any) -> Any:
    """Return a copy of a schema in which every closed object takes unknown fields."""
    if isinstance(schema, list):
        return [opened(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: True if key == "additionalProperties" and value is False else opened(value)
        for key, value in schema.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """One version of one message type, compiled.

    Attributes:
        version: as written, e.g. ``"1.0"``.
        schema: the parsed file.
        tensors: path and rank of each tensor field.
        is_opened: whether unknown fields pass (for a newer minor than any known).
        prefix: the envelope's bytes before its data.
    """

    message_type: str
    version: str
    schema: dict[str, Any]
    validator: jsonschema_rs.Draft202012Validator
    tensors: dict[tensors.Path, int]
    is_opened: bool
    prefix: bytes

    def check(self, data: Any) -> None:
        """Validate data in which tensors are described.

        Raises:
            ContractViolation: they break the schema; the path is that of the first fault.
        """
        try:
            if self.validator.is_valid(data):
                return
            self.validator.validate(data)
        except jsonschema_rs.ValidationError as error:
            path, reason = _explain(error)
        except ValueError as error:  # a Python type that JSON has not
            path, reason = exact.fault(data) or ("", str(error))
        else:
            return
        raise ContractViolation(reason, message_type=self.message_type, path=f"/data{path}") from None


_UTC = "(Z|\\+00:00)$"
"""The pattern that schemas use besides the format of a time."""


def _explain(error: jsonschema_rs.ValidationError) -> tuple[str, str]:
    """Return the path and the reason of a fault; names of fields are shown, values never."""
    parts = [exact.shorten(part) if isinstance(part, str) else part for part in error.instance_path]
    kind = error.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
        name = next((field for field in _ENVELOPE if field in kind.unexpected), sorted(kind.unexpected)[0])
        hint = _ENVELOPE.get(name, "") if not parts else ""
        return exact.pointer([*parts, exact.shorten(name)]), f"the field is not in the schema{hint}"
    if _is_time(kind):
        return exact.pointer(parts), "not a time in UTC, as in 2026-01-31T12:00:00Z: use kit.codec.now()"
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.FalseSchema):
        return exact.pointer(parts), "the field is not in the schema"
    return exact.pointer(parts), exact.shorten(error.message, 300)


_ENVELOPE = {
    "schema_version": ": it belongs in the envelope: encode(…, version=…) sets it, and the bus uses the latest version",
    "message_type": ": it belongs in the envelope: encode(message_type, …) sets it, and the bus takes it from the row",
}
"""Fields of the envelope that people put into the data, with where they belong."""


def _is_time(kind: Any) -> bool:
    """Return whether a fault is about a time: its format, or the pattern that requires UTC."""
    kinds = jsonschema_rs.ValidationErrorKind
    if isinstance(kind, kinds.Format):
        return kind.format == "date-time"
    return isinstance(kind, kinds.Pattern) and kind.pattern == _UTC


def _compile(message_type: str, version: str, schema: dict[str, Any], *, is_opened: bool = False) -> Contract:
    prefix = b'{"schema_version":"%b","message_type":"%b","data":' % (version.encode(), message_type.encode())
    return Contract(
        message_type=message_type,
        version=version,
        schema=schema,
        validator=compile_schema(opened(schema) if is_opened else schema),
        tensors=tensors.find(schema),
        is_opened=is_opened,
        prefix=prefix,
    )


class Registry:
    """All schemas of a folder; each is compiled when first used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, list[tuple[int, int]]] = {}
        self._contracts: dict[tuple[str, str], Contract] = {}
        self._opened: dict[tuple[str, str], Contract] = {}
        for file in folder.glob("*/*.json"):
            if (version := parse_version(file.stem)) is not None:
                self._known.setdefault(file.parent.name, []).append(version)
        for versions in self._known.values():
            versions.sort()

    def message_types(self) -> tuple[str, ...]:
        """Return every known message type, in order."""
        return tuple(sorted(self._known))

    def versions(self, message_type: str) -> tuple[str, ...]:
        """Return the known versions of a message type, oldest first.

        Raises:
            UnknownContract: nobody here knows the message type.
        """
        if not issubclass(type(message_type), str) or message_type not in self._known:
            raise UnknownContract(f"no schema for message type {_quote(message_type)}")
        return tuple(f"{major}.{minor}" for major, minor in self._known[message_type])

    def latest(self, message_type: str) -> str:
        """Return the newest known version of a message type.

        Raises:
            UnknownContract: nobody here knows the message type.
        """
        return self.versions(message_type)[-1]

    def contract(self, message_type: str, version: str) -> Contract:
        """Return the contract of a known version.

        Raises:
            UnknownContract: nobody here knows the message type or the version.
        """
        try:
            return self._contracts[message_type, version]
        except (KeyError, TypeError):
            pass
        known = self.versions(message_type)
        if version not in known:
            raise UnknownContract(
                f"version {_quote(version)} is not known; known are {', '.join(known)}", message_type=message_type
            )
        schema = exact.loads((self.folder / message_type / f"{version}.json").read_bytes())
        contract = _compile(message_type, version, schema)
        self._contracts[message_type, version] = contract
        return contract

    def reader(self, message_type: str, version: str) -> Contract:
        """Return the contract to read a version with: its own, or for a newer minor the newest known, opened.

        Raises:
            UnknownContract: an unknown message type, a newer major, or a version that never was.
        """
        try:
            return self.contract(message_type, version)
        except UnknownContract as error:
            wanted = parse_version(version)
            known = self._known.get(message_type, []) if issubclass(type(message_type), str) else []
            if wanted is None or not known:
                raise
            newest = max((candidate for candidate in known if candidate[0] == wanted[0]), default=None)
            if newest is None or newest > wanted:
                raise error
        text = f"{newest[0]}.{newest[1]}"
        if (message_type, text) not in self._opened:
            known_contract = self.contract(message_type, text)
            self._opened[message_type, text] = _compile(message_type, text, known_contract.schema, is_opened=True)
        return self._opened[message_type, text]

    def schema(self, message_type: str, version: str) -> Mapping[str, Any]:
        """Return the schema of a known version, read-only at its top."""
        return MappingProxyType(self.contract(message_type, version).schema)


def _quote(value: object) -> str:
    return f"'{exact.shorten(value, 60)}'" if issubclass(type(value), str) else f"of type {type(value).__name__}"  # type: ignore[arg-type]


@cache
def registry() -> Registry:
    """Return the registry of the kit's own schemas.

    Raises:
        CodecError: the schemas are not where they belong.
    """
    folder = schemas_folder()
    if not folder.is_dir():
        raise CodecError(f"no schemas at {folder}: install the kit again")
    return Registry(folder)
