"""Tensors beside JSON: the fields that a schema marks ``x-kit-tensor`` travel as raw little-endian float32.

On the wire a message with tensors is ``JSON, NUL, tail``. In the JSON each tensor is replaced by
``{"offset": byte, "shape": [n, …]}``; its numbers begin ``offset`` bytes after the NUL. The tensors follow one
another without gap or overlap, in the order in which they stand in the document. A NUL byte cannot stand in JSON, so
the form describes itself; a message without tensors is plain JSON.

In Python a tensor is a ``numpy.ndarray`` of float32, always. NaN and infinity are refused on both sides: JSON could
not say them, and one NaN in an index spoils its distances without a sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from kit.errors import ContractViolation, MalformedEnvelope

from .exact import pointer

KEYWORD = "x-kit-tensor"
EACH = "*"
Path = tuple[str, ...]
_DEEPEST = 16  # names on a path; a schema may refer to itself
_DTYPE = np.dtype("<f4")


def find(schema: dict[str, Any]) -> dict[Path, int]:
    """Return the path of every tensor that a schema allows, and its rank; ``*`` stands for each element of an array.

    Raises:
        ValueError: the schema marks a tensor with another dtype than float32.
    """
    found: dict[Path, int] = {}
    _find(schema, schema, (), found)
    return found


def _find(node: Any, root: dict[str, Any], path: Path, found: dict[Path, int]) -> None:
    if not isinstance(node, dict) or len(path) > _DEEPEST:
        return
    if "$ref" in node:
        _find(root["$defs"][node["$ref"].split("/")[-1]], root, path, found)
    if KEYWORD in node:
        if node[KEYWORD]["dtype"] != "float32":
            raise ValueError(f"{'/'.join(path)}: only float32 tensors are known")
        found[path] = node[KEYWORD]["rank"]
        return
    for name, child in node.get("properties", {}).items():
        _find(child, root, (*path, name), found)
    _find(node.get("items"), root, (*path, EACH), found)


class _NotATensor(Exception):
    """Something else than a float32 array of the rank stands in a tensor's place; where, is looked up afterwards."""


class Detacher:
    """Takes the tensors out of data: leaves the data untouched, and puts them behind the JSON."""

    def __init__(self, message_type: str) -> None:
        self.message_type = message_type
        self.rank = 1
        self.parts: list[Any] = []
        self.size = 0

    def describe(self, value: Any) -> dict[str, Any]:
        """Take one tensor, and return what stands for it in the JSON."""
        if type(value) is not np.ndarray or value.ndim != self.rank:
            raise _NotATensor
        if value.dtype is not _DTYPE and value.dtype != _DTYPE:
            raise _NotATensor
        begin = self.size
        self.parts.append(value)
        self.size = begin + value.nbytes
        return {"offset": begin, "shape": list(value.shape)}

    def detach(self, data: Any, path: Path, rank: int) -> Any:
        """Return a copy of the data in which the tensors at ``path`` are described instead.

        Raises:
            ContractViolation: something else than a float32 array of that rank stands there.
        """
        self.rank = rank
        try:
            return self._copy(data, path)
        except _NotATensor:
            at, value = next(self._wrong(data, path, ()))
        found = (
            f"{value.dtype} array of rank {value.ndim}" if issubclass(type(value), np.ndarray) else type(value).__name__
        )
        raise ContractViolation(
            f"a numpy float32 array of rank {self.rank} is needed, not {found}",
            message_type=self.message_type,
            path=pointer(("data", *at)),
        )

    def _copy(self, node: Any, path: Path) -> Any:
        if not path:
            return self.describe(node)
        name, rest = path[0], path[1:]
        if name == EACH:
            return [self._copy(child, rest) for child in node] if type(node) is list else node
        if type(node) is not dict or name not in node:
            return node  # The validator says what is wrong with it, if anything.
        copied = node.copy()
        copied[name] = self._copy(node[name], rest) if rest else self.describe(node[name])
        return copied

    def _wrong(self, node: Any, path: Path, at: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
        """Yield the path and the value of everything in a tensor's place that is none."""
        if not path:
            try:
                self.describe(node)
            except _NotATensor:
                yield at, node
        elif path[0] == EACH:
            for index, child in enumerate(node) if type(node) is list else ():
                yield from self._wrong(child, path[1:], (*at, index))
        elif type(node) is dict and path[0] in node:
            yield from self._wrong(node[path[0]], path[1:], (*at, path[0]))

    def behind(self, text: bytes) -> bytes:
        """Return the text, and behind it a NUL and the tensors: the text alone where there are none.

        They are copied once, to where they travel, and looked at there, where they may begin at any byte: with a second
        copy of a few hundred kilobytes, the system is asked for new pages message after message.

        Raises:
            ContractViolation: a number is NaN or infinite.
        """
        if not self.parts:
            return text
        try:
            payload = b"".join((text, b"\0", *self.parts))
        except TypeError:  # an array that is not contiguous has no buffer
            payload = b"".join((text, b"\0", *[np.ascontiguousarray(part).data for part in self.parts]))
        if not finite(np.frombuffer(payload, _DTYPE, offset=len(text) + 1)):
            raise ContractViolation("a tensor holds NaN or infinity", message_type=self.message_type, path="/data")
        return payload


def finite(numbers: np.ndarray[Any, Any]) -> bool:
    """Whether all numbers are finite."""
    return bool(np.logical_and.reduce(np.isfinite(numbers), axis=None))


class Attacher:
    """Puts the tensors of a tail into decoded data, in place.

    Attributes:
        strict: whether the tensors must cover the tail without gap; a newer minor may hold some that are unknown here.
    """

    def __init__(self, message_type: str, tail: bytes | memoryview, *, strict: bool) -> None:
        self.message_type = message_type
        self.strict = strict
        # One copy: aligned, writable, and independent of the payload.
        self.numbers = np.frombuffer(bytearray(tail[: len(tail) // 4 * 4]), _DTYPE)
        self.at = 0
        self.found = False
        if strict and len(tail) % 4:
            raise self._refused(f"a tail of {len(tail)} bytes is not float32")
        if strict and not finite(self.numbers):
            raise self._refused("a tensor holds NaN or infinity")

    def _refused(self, reason: str) -> MalformedEnvelope:
        return MalformedEnvelope(reason, message_type=self.message_type, path="/data")

    def attach(self, node: Any, path: Path) -> None:
        """Put arrays in place of their descriptions at ``path``.

        Raises:
            MalformedEnvelope: descriptions and tail do not fit.
        """
        name, rest = path[0], path[1:]
        for key in range(len(node)) if name == EACH else (name,) if name in node else ():
            if rest:
                self.attach(node[key], rest)
            else:
                described = node[key]
                node[key] = self._array(described["offset"], described["shape"])

    def _array(self, offset: int, shape: list[int]) -> np.ndarray[Any, Any]:
        begin, count = offset // 4, prod(shape)
        end = begin + count
        if (begin != self.at and self.strict) or offset % 4 or end > len(self.numbers):
            raise self._refused("the tail does not hold the tensors described")
        # JSON Schema takes 4.0 for an integer; a slice does not.
        array = self.numbers[begin:end] if end.__class__ is int else self.numbers[int(begin) : int(end)]
        if len(shape) != 1:
            array = array.reshape([int(length) for length in shape])
        if not self.strict and not finite(array):
            raise self._refused("a tensor holds NaN or infinity")
        self.at, self.found = end, True
        return array

    def finish(self, *, has_tail: bool) -> None:
        """Check that a tail and tensors came together, and that nothing of the tail is left over.

        Raises:
            MalformedEnvelope: they did not, or something is.
        """
        if not has_tail and self.found:
            raise self._refused("tensors without a tail")
        if self.strict and (has_tail > self.found or self.at != len(self.numbers)):
            raise self._refused("the tail is longer than its tensors")
