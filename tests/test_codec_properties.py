"""Over every schema: what is valid is read back equal, by the fast way and the long one; what is not, by neither."""

from __future__ import annotations

import copy
import json
import math
import os
from typing import Any

import fuzz_codec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from kit.codec import (
    CodecError,
    contracts,
    decode,
    encode,
    envelope,
    exact,
    message_types,
    migrate,
    shapes,
    tensors,
    versions,
)
from kit.errors import MigrationError

EXAMPLES = int(os.environ.get("KIT_EXAMPLES", "0"))
VERSIONS = [(name, version) for name in message_types() for version in versions(name)]
given_some = settings(
    phases=(Phase.generate,),
    max_examples=EXAMPLES or 8,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
times = st.one_of(
    st.datetimes().map(lambda time: time.isoformat(timespec="microseconds") + "Z"),
    st.datetimes().map(lambda time: time.isoformat() + "Z"),
    st.datetimes().map(lambda time: time.isoformat(timespec="milliseconds") + "+00:00"),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
python_values = st.recursive(
    json_values
    | st.floats()
    | st.integers()
    | st.binary()
    | st.text(st.characters())
    | st.uuids()
    | st.decimals()
    | st.datetimes()
    | st.sampled_from([np.float32(1), np.int64(1), np.zeros(1), shapes.Unsupported, fuzz_codec.Strict()]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), inner, max_size=2)
        | st.frozensets(st.integers(), max_size=1)
    ),
    max_leaves=4,
)


def generated(node: Any) -> Any:
    """The schema as a generator likes it: times and tensors by names of their own."""
    if isinstance(node, list):
        return [generated(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("pattern") == shapes.UTC_PATTERN:
        return {"type": "string", "format": "kit-utc"}
    if tensors.KEYWORD in node:
        lengths = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 3}}
        rank = node[tensors.KEYWORD]["rank"]
        return {
            "type": "object",
            "properties": {"shape": {**lengths, "minItems": rank, "maxItems": rank}},
            "required": ["shape"],
            "additionalProperties": False,
        }
    return {
        key: generated(value) for key, value in node.items() if key not in ("description", "title", "$id", "$schema")
    }


def array(node: dict[str, Any]) -> Any:
    shape = node["shape"]
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


def valid_data(name: str, version: str) -> st.SearchStrategy[Any]:
    schema = generated(dict(contracts.registry().schema(name, version)))

    def with_arrays(data: Any) -> Any:
        if name in fuzz_codec.PATHS:
            fuzz_codec._walk(data, fuzz_codec.PATHS[name], array)
        return data

    # JSON Schema knows no largest integer; the wire has 64 bits.
    drawn = from_schema(schema, custom_formats={"kit-utc": times}).filter(lambda data: exact.fault(data) is None)
    return drawn.map(with_arrays)


def described(name: str, data: Any) -> Any:
    contract = contracts.registry().contract(name, versions(name)[0])
    return envelope._detach(contract, data)[0]


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_valid_data_are_read_back_equal_and_invalid_ones_by_no_way(name: str, version: str) -> None:
    """One test for three properties, because drawing the data is what takes the time."""
    contract = contracts.registry().contract(name, version)
    read = shapes.compile_reader(contract.schema, contract.prefix)
    write = shapes.compile_writer(contract.schema, contract.prefix)
    assert shapes.never not in (read, write), "the schema holds something that a shape cannot express"
    encode_once = valid_data(name, version)

    @given_some
    @given(data=encode_once, place=st.randoms(use_true_random=False), value=python_values, wild=json_values)
    def check(data: Any, place: Any, value: Any, wild: Any) -> None:
        payload = encode(name, data, version)
        assert payload == envelope._encode(name, data, version)
        for found in (decode(payload), envelope._decode(payload)):
            assert (found.message_type, found.schema_version) == (name, version)
            assert fuzz_codec.same(found.data, data)
        text = described(name, data)
        assert_agree(contract, read, write, mutated(text, place, wild))
        assert_exact(name, version, mutated(data, place, value))

    check()


def mutated(data: Any, place: Any, value: Any) -> Any:
    """A copy of the data in which something is replaced, removed or added."""
    data = copy.deepcopy(data)
    places: list[tuple[Any, Any]] = []
    stack = [data]
    while stack:
        node = stack.pop()
        for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            places.append((node, key))
            stack.append(child)
    container, key = place.choice(places)
    kind = place.randrange(4)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[place.choice(["new", "a/b"])] = value
    else:
        container[key] = value
    return data


def assert_agree(contract: contracts.Contract, read: shapes.Read, write: shapes.Write, data: Any) -> None:
    """Whatever a shape lets through, the schema lets through; and what it reads is what was written."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    payload = b"".join((contract.prefix, text, b"}"))
    for way, argument in ((read, payload), (write, data)):
        try:
            found = way(argument)
        except shapes.UNSURE:
            continue
        if found is not None:
            assert contract.validator.is_valid(data)
            assert fuzz_codec.same(found, data) if way is read else json.loads(found)["data"] == data


def assert_exact(name: str, version: str, data: Any) -> None:
    """Python data are written so that they are read back equal, or refused."""
    try:
        payload = encode(name, data, version)
    except CodecError as error:
        if error.path is None:
            raise
        return
    assert fuzz_codec.same(decode(payload).data, data)


@pytest.mark.parametrize("name", [name for name in message_types() if len(versions(name)) > 1])
def test_migration_up_and_down_again_changes_nothing(name: str) -> None:
    oldest, newest = versions(name)[0], versions(name)[-1]

    @given_some
    @given(valid_data(name, oldest))
    def check(data: Any) -> None:
        before = decode(encode(name, data, oldest))
        up = migrate(before, newest)
        assert up.schema_version == newest
        assert decode(encode(name, up.data, newest)) == up
        assert migrate(up, oldest) == before

    check()


@pytest.mark.parametrize("name", [name for name in message_types() if len(versions(name)) > 1])
def test_migration_down_and_up_again_keeps_the_meaning_or_is_refused(name: str) -> None:
    oldest, newest = versions(name)[0], versions(name)[-1]

    @given_some
    @given(valid_data(name, newest))
    def check(data: Any) -> None:
        before = decode(encode(name, data, newest))
        try:
            down = migrate(before, oldest)
        except MigrationError as error:
            if error.path is None:
                raise
            return
        assert decode(encode(name, down.data, oldest)) == down
        assert migrate(migrate(down, newest), oldest) == down

    check()


@settings(given_some, max_examples=EXAMPLES or 300)
@given(
    st.from_regex(
        r"\A[0-9]{4}-[0-9W]{2}[-0-9]?[0-9]{1,2}[T t_][0-9]{2}:?[0-9]{2}[:.][0-9]{2}[.,:]?[0-9.+\-:]{0,9}(Z|\+00:00|z)\Z"
    )
    | times
)
def test_a_time_that_a_shape_takes_is_one_to_the_schema(text: str) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"t": {"type": "string", "format": "date-time", "pattern": shapes.UTC_PATTERN}},
    }
    schema |= {"required": ["t"], "additionalProperties": False}
    payload = b'{"data":' + json.dumps({"t": text}, separators=(",", ":")).encode() + b"}"
    is_valid = contracts.compile_schema(schema).is_valid({"t": text})
    ways: list[tuple[Any, Any]] = [
        (shapes.compile_reader(schema, b'{"data":'), payload), (shapes.compile_writer(schema, b'{"data":'), {"t": text})
    ]  # fmt: skip
    for take, argument in ways:
        try:
            taken = take(argument) is not None
        except shapes.UNSURE:
            taken = False
        assert is_valid or not taken


def test_every_contract_has_a_head_of_its_own() -> None:
    heads = {(contracts.registry().contract(*version).prefix + b'{"')[envelope._HEAD] for version in VERSIONS}
    assert len(heads) == len(VERSIONS)
