"""Mutates envelopes and checks what the codec makes of them: a CodecError, or an exact round trip, never anything else.

Every answer is compared with an independent reading: the standard library's parser, made strict, and a validator of
its own. So the codec may neither take what is wrong, nor refuse what is right, nor change what it takes.

    python -m tests.fuzz_codec --count 200000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np

from kit.codec import CodecError, decode, encode, message_types, versions

ROOT = Path(__file__).resolve().parent.parent
_TOKENS = """
    1e400 -1e400 NaN Infinity -Infinity 1.0 -0 -0.0 1e5 18446744073709551615 18446744073709551616 9223372036854775808
    -9223372036854775809 123456789012345678901234567890 0.1000000000000000055511151231257827 1e-400 01 +1 'x' 1. .5
    null true [] {} "" {"a":1,"a":2} "\\ud800" "\\udc00\\ud800" "\\ud83d\\ude00" "\\u0000" "\u2028\U0001f600" "acme\\n"
    "2025-06-01T12:00:00Z" "2025-06-01T12:00:00.5+00:00" "2025-06-01T24:00:00Z" "2025-06-01T12:00:60Z"
    "2025-W22-7T12:00:00.000000Z" "2025-06-01T12:00:00,000000Z" "2025-06-01t12:00:00z" "20250601T120000.0000000000Z"
    "2025-06-01T12:00:00.1234.6Z" "2025-06-31T12:00:00.000000Z" "2025-06-01T12:00:00.00000\u0663Z"
    "0000-06-01T12:00:00.000000Z"
    {"offset":0,"shape":[4]} {"offset":4,"shape":[0]} {"offset":0.0,"shape":[4.0]} {"offset":0,"shape":[2147483647]}
"""
NASTY = [token.encode() for token in _TOKENS.split()]
NASTY += [b'"\x00"', b'"\xff"', b'"\xed\xa0\x80"', b'"' + b"a" * 64 + b'"']
NASTY += [b"[" * 300 + b"]" * 300, b"[" * 253 + b"]" * 253, b"[" * 2000, b'{"a":' * 300, b'{"a":' * 3 + b"1" + b"}" * 3]


class Strict(ValueError):
    """The independent reading refuses."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise Strict("a key stands twice")
    return dict(pairs)


def _integer(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**64:
        raise Strict("the integer exceeds 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Strict("the number is not finite")
    return value


def _constant(text: str) -> Any:
    raise Strict(text)


def depth(value: Any) -> int:
    """Containers around the innermost one, itself included."""
    level, items = 0, [value]
    while items := [item for item in items if isinstance(item, dict | list)]:
        level += 1
        items = [child for item in items for child in (item.values() if isinstance(item, dict) else item)]
    return level


def strictly(text: bytes) -> Any:
    """Read JSON exactly, or raise ValueError: the oracle."""
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_pairs,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates
    except RecursionError as error:
        raise Strict("too deep") from error
    if text.startswith(b"\xef\xbb\xbf") or b"\0" in text:
        raise Strict("a byte that is no JSON")
    return value


def _open(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {k: True if k == "additionalProperties" and v is False else _open(v) for k, v in schema.items()}
    return [_open(item) for item in schema] if isinstance(schema, list) else schema


class Oracle:
    """Says of a payload, without the codec, what must come of it."""

    def __init__(self) -> None:
        self.validators: dict[tuple[str, str, bool], Any] = {}
        for name in message_types():
            for version in versions(name):
                schema = json.loads((ROOT / "schemas" / name / f"{version}.json").read_text())
                for opened in (False, True):
                    self.validators[name, version, opened] = jsonschema_rs.Draft202012Validator(
                        _open(schema) if opened else schema, validate_formats=True
                    )

    def expected(self, payload: bytes) -> tuple[str, str, Any, bytes | None] | None:
        """Return message type, version, data with tensors described, and tail; None when it must be refused."""
        head, nul, tail = payload.partition(b"\0")
        try:
            document = strictly(head)
        except ValueError:
            return None
        if not isinstance(document, dict) or document.keys() != {"schema_version", "message_type", "data"}:
            return None
        name, version, data = document["message_type"], document["schema_version"], document["data"]
        if not isinstance(name, str) or not isinstance(version, str) or name not in message_types():
            return None
        known = [tuple(map(int, text.split("."))) for text in versions(name)]
        parts = version.split(".")
        if len(parts) != 2 or not all(p.isascii() and p.isdigit() and str(int(p)) == p and len(p) <= 6 for p in parts):
            return None
        wanted = (int(parts[0]), int(parts[1]))
        newest = max((k for k in known if k[0] == wanted[0]), default=None)
        if newest is None or (wanted not in known and newest > wanted):
            return None
        opened = wanted not in known
        key = (name, f"{newest[0]}.{newest[1]}" if opened else version, opened)
        if depth(data) > 254 or not self.validators[key].is_valid(data):
            return None
        found = described(data, name)
        size = 0
        for tensor in found:
            count = 4 * math.prod(int(length) for length in tensor["shape"])
            if tensor["offset"] != size and not opened:
                return None
            if tensor["offset"] % 4 or tensor["offset"] + count > len(tail):
                return None
            size = int(tensor["offset"]) + count
        if not opened and (size != len(tail) or bool(nul) != bool(found)):
            return None
        if opened and found and not nul:
            return None
        if not opened and not np.isfinite(np.frombuffer(tail, "<f4")).all():
            return None
        return name, version, data, tail if nul else None


PATHS = {
    "memory_item": ["embedding"],
    "rag_query": ["embedding"],
    "embedding_response": ["embeddings"],
    "rag_document": ["chunks", "*", "embedding"],
}


def _walk(node: Any, path: list[str], change: Callable[[Any], Any]) -> None:
    name, *rest = path
    if name == "*":
        for child in node:
            _walk(child, rest, change)
    elif name in node:
        if rest:
            _walk(node[name], rest, change)
        else:
            node[name] = change(node[name])


def described(data: Any, name: str) -> list[dict[str, Any]]:
    """Return the descriptions of all tensors, in their order."""
    found: list[dict[str, Any]] = []
    if name in PATHS:
        _walk(data, PATHS[name], lambda node: found.append(node) or node)
    return found


def same(left: Any, right: Any) -> bool:
    """Equality that tells True from 1, and compares arrays by their numbers."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return type(left) is type(right) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def attached(data: Any, name: str, tail: bytes | None) -> Any:
    """Return the data with arrays in place of descriptions."""

    def array(node: dict[str, Any]) -> Any:
        shape = [int(length) for length in node["shape"]]
        return np.frombuffer(tail or b"", "<f4", math.prod(shape), int(node["offset"])).reshape(shape)

    if name in PATHS and tail is not None:
        _walk(data, PATHS[name], array)
    return data


def check(payload: bytes, oracle: Oracle) -> str:
    """Decode a payload, compare with the oracle, and return what came of it; AssertionError when it is wrong."""
    expected = oracle.expected(payload)
    try:
        envelope = decode(payload)
    except CodecError as error:
        # An opened contract may hold a tensor of NaN, which the oracle does not look at.
        if expected is not None and "NaN" not in error.reason:
            raise AssertionError(f"refused, though right: {error}") from error
        return type(error).__name__
    assert expected is not None, "taken, though wrong"
    name, version, data, tail = expected
    assert (envelope.message_type, envelope.schema_version) == (name, version)
    assert same(envelope.data, attached(data, name, tail)), "changed"
    if version not in versions(name):
        return "newer"
    again = decode(encode(name, envelope.data, version))
    assert same(again.data, envelope.data), "changed by a round trip"
    return "exact"


class Mutator:
    """Draws mutated envelopes from a corpus, reproducibly."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.corpus = [self._bytes(file) for file in sorted((ROOT / "data" / "contracts").glob("*/*/valid/*"))]

    @staticmethod
    def _bytes(file: Path) -> bytes:
        raw = file.read_bytes()
        if file.suffix == ".bin":
            return raw
        return json.dumps(json.loads(raw), ensure_ascii=False, separators=(",", ":")).encode()

    def draw(self) -> bytes:
        """Return one mutated payload."""
        payload = self.random.choice(self.corpus)
        operations = [
            self._flip,
            self._cut,
            self._double,
            self._swap,
            self._token,
            self._token,
            self._field,
            self._field,
        ]
        operations += [self._space, self._splice, self._tail, self._digit, self._version]
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            payload = self.random.choice(operations)(payload)
        return payload

    def _span(self, payload: bytes) -> tuple[int, int]:
        begin = self.random.randrange(len(payload) + 1)
        return begin, min(len(payload), begin + self.random.choice([1, 1, 2, 4, 16, 64]))

    def _flip(self, payload: bytes) -> bytes:
        begin, _ = self._span(payload)
        return payload[:begin] + bytes([self.random.randrange(256)]) + payload[begin + 1 :]

    def _cut(self, payload: bytes) -> bytes:
        begin, end = self._span(payload)
        return payload[:begin] if self.random.random() < 0.3 else payload[:begin] + payload[end:]

    def _double(self, payload: bytes) -> bytes:
        begin, end = self._span(payload)
        return payload[:end] + payload[begin:end] + payload[end:]

    def _swap(self, payload: bytes) -> bytes:
        begin, end = self._span(payload)
        return payload[:begin] + payload[begin:end][::-1] + payload[end:]

    def _splice(self, payload: bytes) -> bytes:
        other = self.random.choice(self.corpus)
        return payload[: self.random.randrange(len(payload) + 1)] + other[self.random.randrange(len(other)) :]

    def _space(self, payload: bytes) -> bytes:
        at = self.random.choice([i for i, byte in enumerate(payload) if byte in b"{}[]:,"] or [0])
        return payload[:at] + self.random.choice([b" ", b"\n", b"\t\r", b"\x0b", b"\xc2\xa0"]) + payload[at:]

    def _tail(self, payload: bytes) -> bytes:
        kind = self.random.randrange(4)
        if kind == 0:
            return payload + b"\0"
        if kind == 1:
            return payload + bytes(self.random.choice([1, 4, 8]))
        return payload[: -self.random.choice([1, 4, 8])] if kind == 2 else payload + b"\x00\x00\xc0\x7f"

    def _digit(self, payload: bytes) -> bytes:
        at = self.random.choice([i for i, byte in enumerate(payload) if byte in b"0123456789"] or [0])
        return (
            payload[:at]
            + self.random.choice([b"9", b"0", b"-1", b"1.5", b"e9", b"00000000000000000000"])
            + payload[at + 1 :]
        )

    def _version(self, payload: bytes) -> bytes:
        new = self.random.choice(
            [b"1.0", b"1.1", b"1.2", b"1.999999", b"1.1000000", b"2.0", b"0.9", b"1", b"01.0", b"1.0\\n"]
        )
        return payload.replace(b'"schema_version":"1.', b'"schema_version":"' + new + b'","ignored":"', 1).replace(
            b'","ignored":"0"' if self.random.random() < 0.9 else b"?", b'"', 1
        )

    def _document(self, payload: bytes) -> tuple[Any, bytes]:
        head, nul, tail = payload.partition(b"\0")
        return json.loads(head), nul + tail

    def _place(self, document: Any) -> tuple[Any, Any]:
        """Return a container of the document and a key in it."""
        places: list[tuple[Any, Any]] = []
        stack = [document]
        while stack:
            node = stack.pop()
            items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            for key, child in items:
                places.append((node, key))
                stack.append(child)
        return self.random.choice(places)

    def _token(self, payload: bytes) -> bytes:
        """Replace any value, declared or free, by a nasty one."""
        return self._replaced(payload, self.random.choice(NASTY))

    def _replaced(self, payload: bytes, token: bytes) -> bytes:
        try:
            document, rest = self._document(payload)
            container, key = self._place(document)
        except (ValueError, IndexError, RecursionError):
            return self._flip(payload)
        container[key] = "@@token@@"
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        return text.replace(b'"@@token@@"', token, 1) + rest

    def _field(self, payload: bytes) -> bytes:
        """Remove, rename, add or double a field, or exchange two values."""
        try:
            document, rest = self._document(payload)
            container, key = self._place(document)
            other, second = self._place(document)
        except (ValueError, IndexError, RecursionError):
            return self._flip(payload)
        kind = self.random.randrange(5)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[self.random.choice(["new", "data", "", "\x7f", "a/b~c", "é"])] = container.pop(key)
        elif kind == 2 and isinstance(container, dict):
            container["zz" + key] = container[key]
        elif kind == 3:
            value, container[key] = container[key], other[second] if not _inside(container[key], other) else None
            if not _inside(value, other) and isinstance(other, dict) and second in other:
                other[second] = value
        try:
            text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            return payload
        if kind == 4 and isinstance(container, dict):
            pair = f"{json.dumps(key, ensure_ascii=False)}:".encode("utf-8", "surrogatepass")
            text = text.replace(pair, pair + self.random.choice([b"1,", b'"x",', b"null,"]) + pair, 1)
        return text + rest


def _inside(value: Any, wanted: Any) -> bool:
    stack = [value]
    while stack:
        node = stack.pop()
        if node is wanted:
            return True
        stack.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
    return False


def run(count: int, seed: int) -> Counter[str]:
    """Check ``count`` mutated envelopes and return what came of them.

    Raises:
        AssertionError: one was taken, refused or changed wrongly; the note holds the payload.
    """
    oracle, mutator, outcomes = Oracle(), Mutator(seed), Counter[str]()
    for number in range(count):
        payload = mutator.draw()
        try:
            outcomes[check(payload, oracle)] += 1
        except BaseException as error:
            error.add_note(f"seed {seed}, number {number}: {payload[:2000]!r}")
            raise
    return outcomes


def main() -> int:
    """Run the fuzzing from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000, help="mutated envelopes to check")
    parser.add_argument("--seed", type=int, default=1, help="draws the same envelopes again")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    outcomes = run(arguments.count, arguments.seed)
    seconds = time.perf_counter() - begin
    shares = ", ".join(f"{name} {number:,}" for name, number in outcomes.most_common())
    sys.stdout.write(f"{arguments.count:,} mutated envelopes in {seconds:.1f} s: {shares}; nothing else\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
