"""Embeddings travel as raw float32 behind the JSON, exactly; a tail that does not fit is refused."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest

from kit.codec import CodecError, ContractViolation, MalformedEnvelope, decode, encode, tensors, validate

NOW = "2025-06-01T12:00:00.000000Z"
RNG = np.random.default_rng(3)


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def document(*embeddings: Any) -> dict[str, Any]:
    chunks = [{"chunk_id": f"c{i}", "content": "ä", "embedding": e} for i, e in enumerate(embeddings)]
    return {"document_id": "d", "tenant_id": "acme", "timestamp": NOW, "chunks": chunks}


def response(embeddings: Any) -> dict[str, Any]:
    return {"request_id": "r", "model": "m", "dimension": 4, "timestamp": NOW, "embeddings": embeddings}


def wire(text: Any, tail: bytes | None, *, version: str = "1.0", message_type: str = "rag_document") -> bytes:
    head = json.dumps({"schema_version": version, "message_type": message_type, "data": text}, separators=(",", ":"))
    return head.encode() if tail is None else head.encode() + b"\0" + tail


def described(offset: Any, shape: Any) -> dict[str, Any]:
    return {"offset": offset, "shape": shape}


def test_embeddings_of_chunks_come_back_as_float32() -> None:
    data = document(floats(7), floats(3), floats(0))
    for _ in range(3):
        found = decode(encode("rag_document", data)).data
        for written, read in zip(data["chunks"], found["chunks"], strict=True):
            assert type(read["embedding"]) is np.ndarray
            assert read["embedding"].dtype == np.float32
            np.testing.assert_array_equal(read["embedding"], written["embedding"])


@pytest.mark.parametrize("shape", [(2, 4), (1, 1), (0, 4), (3, 0), (0, 0), (64, 256)])
def test_a_batch_of_embeddings_keeps_its_shape(shape: tuple[int, int]) -> None:
    array = floats(*shape)
    found = decode(encode("embedding_response", response(array))).data["embeddings"]
    assert found.shape == shape
    np.testing.assert_array_equal(found, array)


def test_arrays_are_aligned_writable_and_independent_of_the_payload() -> None:
    payload = bytearray(encode("embedding_response", response(floats(2, 4))))
    found = decode(payload).data["embeddings"]
    before = found.copy()
    payload[:] = bytes(len(payload))
    np.testing.assert_array_equal(found, before)
    assert found.flags.writeable
    assert found.flags.aligned
    found[0, 0] = 1.0


def test_the_wire_is_json_nul_and_little_endian_float32_in_order() -> None:
    payload = encode("rag_document", document(np.array([1.0, 2.0], np.float32), np.array([-0.5], np.float32)))
    head, nul, tail = payload.partition(b"\0")
    chunks = json.loads(head)["data"]["chunks"]
    assert nul == b"\0"
    assert [chunk["embedding"] for chunk in chunks] == [described(0, [2]), described(8, [1])]
    assert np.frombuffer(tail, "<f4").tolist() == [1.0, 2.0, -0.5]


def test_a_message_without_tensors_is_plain_json() -> None:
    data = {"document_id": "d", "tenant_id": "acme", "timestamp": NOW, "content": "x"}
    assert json.loads(encode("rag_document", data))["data"] == data


def test_the_senders_data_stay_untouched() -> None:
    data = document(floats(3))
    array = data["chunks"][0]["embedding"]
    encode("rag_document", data)
    validate("rag_document", data)
    assert data["chunks"][0]["embedding"] is array


def test_a_view_that_is_not_contiguous_is_written_as_it_reads() -> None:
    array = floats(4, 6).T
    np.testing.assert_array_equal(decode(encode("embedding_response", response(array))).data["embeddings"], array)
    column = floats(5, 2)[:, 1]
    found = decode(encode("rag_document", document(column))).data["chunks"][0]["embedding"]
    np.testing.assert_array_equal(found, column)


@pytest.mark.parametrize(
    "value",
    [
        [0.5, 1.0],
        None,
        3,
        "x",
        np.zeros(3),
        np.zeros(3, np.int32),
        np.zeros(3, ">f4"),
        np.zeros((2, 2), np.float32),
        np.float32(1),
        np.ma.masked_array(np.zeros(3, np.float32)),
        described(0, [0]),
    ],
)
def test_anything_but_a_float32_array_is_refused_by_its_path(value: Any) -> None:
    for _ in range(2):
        with pytest.raises(ContractViolation) as caught:
            encode("rag_document", document(floats(2), value))
        assert caught.value.path == "/data/chunks/1/embedding"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_on_both_sides(value: float) -> None:
    array = np.array([1.0, value], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CodecError, match="NaN"):
            encode("rag_document", document(array))
        with pytest.raises(MalformedEnvelope, match="NaN"):
            decode(wire(document(described(0, [2])), array.tobytes()))


def test_a_wrong_number_is_told_before_what_else_is_wrong() -> None:
    data = document(np.array([1.0, np.nan], np.float32)) | {"tenant_id": "Not A Token", "metadata": {"n": 10**30}}
    for _ in range(2):  # the first message of a type goes the long way
        with pytest.raises(ContractViolation, match="NaN") as caught:
            encode("rag_document", data)
        assert caught.value.path == "/data"


@pytest.mark.parametrize("letters", range(4))
def test_floats_are_looked_at_wherever_they_begin(letters: int) -> None:
    right, wrong = floats(3), np.array([0.0, 1.0, np.inf], np.float32)
    data = document(right, right) | {"document_id": "d" * (letters + 1)}
    assert encode("rag_document", data).endswith(b"\0" + right.tobytes() * 2)
    data["chunks"][1]["embedding"] = wrong
    with pytest.raises(ContractViolation, match="infinity"):
        encode("rag_document", data)


def test_the_largest_floats_pass() -> None:
    array = np.full(100, np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(decode(encode("rag_document", document(array))).data["chunks"][0]["embedding"], array)


@pytest.mark.parametrize(
    ("chunks", "tail"),
    [
        ([described(0, [2])], None),  # no tail
        ([described(0, [2])], b""),  # truncated
        ([described(0, [2])], bytes(7)),
        ([described(0, [2])], bytes(4)),
        ([described(0, [2])], bytes(12)),  # too long
        ([described(4, [2])], bytes(12)),  # a gap
        ([described(0, [2]), described(0, [2])], bytes(8)),  # an overlap
        ([described(8, [2]), described(0, [2])], bytes(16)),  # out of order
        ([described(2, [1])], bytes(8)),
        ([described(0, [2147483647])], bytes(8)),
        ([described(9007199254740991, [1])], bytes(8)),
        ([], b""),  # a tail and no tensor
        ([], bytes(4)),
    ],
)
def test_a_tail_that_does_not_fit_is_refused(chunks: list[Any], tail: bytes | None) -> None:
    for _ in range(2):
        with pytest.raises(MalformedEnvelope) as caught:
            decode(wire(document(*chunks), tail))
        assert caught.value.path == "/data"


@pytest.mark.parametrize(
    "value",
    [
        described(-4, [1]),
        described(0, [-1]),
        described(0, [1, 1]),
        described(0, []),
        described("0", [1]),
        {"shape": [1]},
    ],
)
def test_a_description_that_is_none_is_refused_by_its_path(value: Any) -> None:
    with pytest.raises(ContractViolation) as caught:
        decode(wire(document(value), bytes(4)))
    assert (caught.value.path or "").startswith("/data/chunks/0/embedding")


def test_whole_floats_in_a_description_are_integers_as_json_schema_has_it() -> None:
    tail = np.array([1.0, 2.0], np.float32).tobytes()
    found = decode(wire(document(described(0.0, [2.0])), tail)).data["chunks"][0]["embedding"]
    assert found.tolist() == [1.0, 2.0]


def test_an_array_of_tensors_beside_another_keeps_both_in_order() -> None:
    tensor = {"type": "object", tensors.KEYWORD: {"dtype": "float32", "rank": 1}}
    schema = {
        "properties": {"one": tensor, "many": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
        "$defs": {"t": tensor},
    }
    paths = tensors.find(schema)
    assert paths == {("one",): 1, ("many", "*"): 1}
    data = {"one": floats(2), "many": [floats(3), floats(1)]}
    detacher, text = tensors.Detacher("thing"), data
    for path, rank in paths.items():
        text = detacher.detach(text, path, rank)
    assert text == {"one": described(0, [2]), "many": [described(8, [3]), described(20, [1])]}
    attacher = tensors.Attacher("thing", detacher.behind(b"{}")[3:], strict=True)
    for path in paths:
        attacher.attach(text, path)
    attacher.finish(has_tail=True)
    np.testing.assert_array_equal(text["one"], data["one"])
    np.testing.assert_array_equal(text["many"][1], data["many"][1])
    with pytest.raises(ContractViolation) as caught:
        tensors.Detacher("thing").detach({"many": [floats(1), 3]}, ("many", "*"), 1)
    assert caught.value.path == "/data/many/1"


def test_a_tail_on_a_type_without_tensors_is_refused() -> None:
    data = {"error_type": "X", "message": "m", "retryable": False}
    for _ in range(2):
        with pytest.raises(MalformedEnvelope):
            decode(wire(data, bytes(4), message_type="error"))


def test_a_newer_minor_may_hold_tensors_that_are_unknown_here() -> None:
    data = {**document(described(8, [1])), "sketch": described(0, [2])}
    tail = b"\xff\xff\xff\xff" * 2 + np.array([0.5], np.float32).tobytes() + b"\0"
    found = decode(wire(data, tail, version="1.9")).data
    assert found["chunks"][0]["embedding"].tolist() == [0.5]
    assert found["sketch"] == described(0, [2])
    with pytest.raises(MalformedEnvelope, match="NaN"):
        decode(wire(document(described(0, [1])), b"\xff\xff\xff\xff", version="1.9"))
    with pytest.raises(MalformedEnvelope, match="without a tail"):
        decode(wire(document(described(0, [0])), None, version="1.9"))


def test_an_array_in_a_free_map_is_refused() -> None:
    with pytest.raises(ContractViolation, match="ndarray") as caught:
        encode("rag_document", {**document(floats(2)), "metadata": {"x": floats(2)}})
    assert caught.value.path == "/data/metadata/x"


@pytest.mark.parametrize("chunks", [None, "x", {}, [None], [[]], ({},)])
def test_chunks_that_are_none_are_refused(chunks: Any) -> None:
    with pytest.raises(ContractViolation) as caught:
        encode("rag_document", {**document(), "chunks": chunks})
    assert (caught.value.path or "").startswith("/data/chunks")
