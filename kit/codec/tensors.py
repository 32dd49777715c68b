"""Tensors beside JSON: the fields that a schema marks ``x-kit-tensor`` travel as raw little-endian float32.

On the wire a message with tensors is ``JSON, NUL, tail``. In the JSON each tensor is replaced by
``{"offset": byte, "shape": [n, …]}``; its numbers begin ``offset`` bytes after the NUL. The tensors follow one
another without gap or overlap, in the order in which they stand in the document. A NUL byte cannot stand in JSON, so
the form describes itself; a message without tensors is plain JSON.

In Python a tensor is a ``numpy.ndarray`` of float32, always. NaN and infinity are refused on both sides: JSON could
not say them, and one NaN in an index spoils its distances without a sound.
"""

from __future__ import annotations

import math
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


def _bytes_of(value: Any, rank: int, path: tuple[str | int, ...], message_type: str) -> np.ndarray[Any, Any]:
    """Check one tensor and return it as contiguous float32.

    Raises:
        ContractViolation: not a float32 array of that rank.
    """
    if type(value) is not np.ndarray or value.dtype != _DTYPE or value.ndim != rank:
        found = f"{value.dtype} array of rank {value.ndim}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ContractViolation(
            f"a numpy float32 array of rank {rank} is needed, not {found}",
            message_type=message_type,
            path=pointer(("data", *path)),
        )
    return np.ascontiguousarray(value) if not value.flags.c_contiguous else value


class Detacher:
    """Takes the tensors out of data: leaves the data untouched, and collects the bytes of the tail."""

    def __init__(self, message_type: str) -> None:
        self.message_type = message_type
        self.parts: list[np.ndarray[Any, Any]] = []
        self.size = 0

    def detach(self, node: Any, path: Path, rank: int, at: tuple[str | int, ...] = ()) -> Any:
        """Return a copy of the node in which the tensors at ``path`` are described instead.

        Raises:
            ContractViolation: something else than a float32 array stands there.
        """
        if not path:
            array = _bytes_of(node, rank, at, self.message_type)
            described = {"offset": self.size, "shape": list(array.shape)}
            self.parts.append(array)
            self.size += array.nbytes
            return described
        name, rest = path[0], path[1:]
        if name == EACH:
            if type(node) is not list:
                return node
            return [self.detach(child, rest, rank, (*at, index)) for index, child in enumerate(node)]
        if type(node) is not dict or name not in node:
            return node
        return {**node, name: self.detach(node[name], rest, rank, (*at, name))}

    def tail(self) -> bytes:
        """Return the bytes after the NUL.

        Raises:
            ContractViolation: a number is NaN or infinite.
        """
        tail = b"".join(part.data for part in self.parts)
        if not finite(np.frombuffer(tail, _DTYPE)):
            raise ContractViolation("a tensor holds NaN or infinity", message_type=self.message_type, path="/data")
        return tail


def finite(numbers: np.ndarray[Any, Any]) -> bool:
    """Whether all numbers are finite."""
    return bool(np.isfinite(numbers).all())


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

    def attach(self, node: Any, path: Path) -> Any:
        """Return the node with arrays in place of their descriptions.

        Raises:
            MalformedEnvelope: descriptions and tail do not fit.
        """
        if not path:
            # int(), because JSON Schema takes 4.0 for an integer.
            return self._array(int(node["offset"]), [int(length) for length in node["shape"]])
        name, rest = path[0], path[1:]
        if name == EACH:
            for index, child in enumerate(node):
                node[index] = self.attach(child, rest)
        elif name in node:
            node[name] = self.attach(node[name], rest)
        return node

    def _array(self, offset: int, shape: list[int]) -> np.ndarray[Any, Any]:
        begin, count = offset // 4, math.prod(shape)
        if offset % 4 or (self.strict and begin != self.at) or begin + count > len(self.numbers):
            raise self._refused("the tail does not hold the tensors described")
        self.at, self.found = begin + count, True
        array = self.numbers[begin : begin + count].reshape(shape)
        if not self.strict and not finite(array):
            raise self._refused("a tensor holds NaN or infinity")
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
