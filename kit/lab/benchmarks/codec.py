"""CODEC's workloads: an agent's message, a document with embeddings, and who else could write and read them.

``orjson`` and ``jsonschema_rs`` are handed in by whoever measures, since only ``kit.codec`` is built on them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from kit.codec import decode, encode, schema, validate
from kit.lab import targets
from kit.lab.bench import Comparison, Target, Verdict
from kit.lab.benchmarks.codec_peers import readers, valid_by_hand, writers
from kit.lab.benchmarks.contest import BY_HAND, KIT, Contender, Contest

TYPE = "agent_message"
SERIALIZATION, PAYLOAD, VALIDATION = "agent message serialization", "RAG payload encoding", "schema validation"
FRESH = "kit.codec, fresh ids"
UNCHECKED, JSON_LIST, FLOATS = "unchecked orjson", "JSON list", "copy of the floats"
_TIME = "2026-01-05T09:30:00.000000Z"
_SENTENCE = "The refund is paid within five working days, as § 3 says. "  # not all of it is ASCII
ASCII = _SENTENCE.replace("§", "section")  # a byte is a character
_FRESH = 5_000  # messages whose ids are new, or forgotten again
_SHORT = 50  # calls in a sample of what takes microseconds


def agent_message(content_bytes: int = 200, sentence: str = _SENTENCE) -> dict[str, Any]:
    """Return an ``agent_message`` whose content is a sentence over and over, in about this many bytes of UTF-8."""
    text = (sentence * (content_bytes // len(sentence) + 1)).encode()[:content_bytes].decode(errors="ignore")
    return {
        "message_id": "msg-0001",
        "source_agent_id": "planner",
        "target_agent_id": "writer",
        "content": text,
        "message_type": "instruction",
        "timestamp": _TIME,
        "conversation_id": "conversation-7",
        "metadata": {"topic": "refunds", "page": 3, "tags": ["faq"]},
    }


def rag_document(chunks: int = 20, dimensions: int = 1536, seed: int = 7) -> dict[str, Any]:
    """Return a ``rag_document`` with an embedding, float32 (dimensions,), for each of its chunks."""
    vectors = np.random.default_rng(seed).standard_normal((chunks, dimensions), dtype=np.float32)
    parts = [
        {"chunk_id": f"d-1/{number}", "content": _SENTENCE, "embedding": vector, "metadata": {}}
        for number, vector in enumerate(vectors)
    ]
    return {
        "document_id": "d-1",
        "tenant_id": "acme",
        "content": _SENTENCE,
        "metadata": {},
        "timestamp": _TIME,
        "chunks": parts,
    }


def writing(message: dict[str, Any], orjson: ModuleType, jsonschema_rs: ModuleType) -> Contest:
    """Return who writes an ``agent_message``: unchecked as the limit, by hand, the kit, and the peers."""
    contract = jsonschema_rs.validator_for(dict(schema(TYPE)), validate_formats=True)
    head = {"schema_version": "1.0", "message_type": TYPE}
    by_hand, _ = valid_by_hand(contract.is_valid, TYPE, message, b"", orjson)
    found, absent = writers(message, dict(schema(TYPE)), orjson)
    calls: dict[str, tuple[Callable[[], Any], bool]] = {
        BY_HAND: (by_hand, True),
        KIT: (lambda: encode(TYPE, message), True),
        UNCHECKED: (lambda: orjson.dumps(head | {"data": message}), False),
        **found,
    }
    contenders = {name: _writes(call, message, checks) for name, (call, checks) in calls.items()}
    fresh = itertools.cycle(_with_fresh_ids(message))
    contenders[FRESH] = Contender(
        call=lambda: encode(TYPE, next(fresh)),
        check=lambda text: _but_ids(json.loads(text)["data"]) == _but_ids(message),
    )
    return Contest(name="codec_encode_message", contenders=contenders, peers=tuple(found), absent=absent, inner=_SHORT)


def reading(
    message: dict[str, Any], orjson: ModuleType, jsonschema_rs: ModuleType, payload: bytes | None = None
) -> Contest:
    """Return who reads an ``agent_message``: unchecked as the limit, by hand, the kit, and the peers.

    Args:
        payload: what they are given to read, if not the message as the kit writes it.
    """
    contract = jsonschema_rs.validator_for(dict(schema(TYPE)), validate_formats=True)
    payload = payload or encode(TYPE, message)
    _, by_hand = valid_by_hand(contract.is_valid, TYPE, message, payload, orjson)
    found, absent = readers(message, payload, dict(schema(TYPE)), orjson)
    contenders = {
        BY_HAND: Contender(call=by_hand, check=message.__eq__),
        KIT: Contender(call=lambda: decode(payload), check=lambda answer: bool(answer.data == message)),
        UNCHECKED: Contender(
            call=lambda: orjson.loads(payload), check=lambda answer: bool(answer["data"] == message), contract=False
        ),
        **found,
    }
    fresh = itertools.cycle([encode(TYPE, other) for other in _with_fresh_ids(message)])
    contenders[FRESH] = Contender(
        call=lambda: decode(next(fresh)), check=lambda answer: _but_ids(answer.data) == _but_ids(message)
    )
    return Contest(name="codec_decode_message", contenders=contenders, peers=tuple(found), absent=absent, inner=_SHORT)


def _with_fresh_ids(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages between agents that nobody has heard of: more of them than ids are remembered."""
    return [
        message | {"source_agent_id": f"sender-{number}", "target_agent_id": f"receiver-{number}"}
        for number in range(_FRESH)
    ]


def _but_ids(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if not key.endswith("agent_id")}


def document_writing(document: dict[str, Any], orjson: ModuleType) -> Contest:
    """Return who writes a ``rag_document``: the kit, a JSON list, and a bare copy of its floats as the limit."""
    listed, vectors = _listed(document), [chunk["embedding"] for chunk in document["chunks"]]
    expected = b"".join(vector.tobytes() for vector in vectors)
    head = {"schema_version": "1.0", "message_type": "rag_document"}
    text = orjson.dumps(head | {"data": listed})
    contenders = {
        KIT: Contender(call=lambda: encode("rag_document", document), check=lambda answer: answer.endswith(expected)),
        JSON_LIST: Contender(call=lambda: orjson.dumps(head | {"data": listed}), check=text.__eq__, contract=False),
        FLOATS: Contender(
            call=lambda: b"".join([vector.data for vector in vectors]), check=expected.__eq__, contract=False
        ),
    }
    return Contest(name="codec_encode_document", contenders=contenders)


def document_reading(document: dict[str, Any], orjson: ModuleType) -> Contest:
    """Return who reads a ``rag_document`` into float32 arrays: the kit, and a JSON list."""
    vectors = [chunk["embedding"] for chunk in document["chunks"]]
    payload, text = encode("rag_document", document), orjson.dumps({"data": _listed(document)})

    def from_list() -> Any:
        data = orjson.loads(text)["data"]
        for chunk in data["chunks"]:
            chunk["embedding"] = np.asarray(chunk["embedding"], dtype=np.float32)
        return data

    def same(data: Any) -> bool:
        return all(np.array_equal(c["embedding"], v) for c, v in zip(data["chunks"], vectors, strict=True))

    contenders = {
        KIT: Contender(call=lambda: decode(payload), check=lambda answer: same(answer.data)),
        JSON_LIST: Contender(call=from_list, check=same, contract=False),
    }
    return Contest(name="codec_decode_document", contenders=contenders)


def specification(orjson: ModuleType, jsonschema_rs: ModuleType) -> dict[str, Contest]:
    """Return the workloads of the specification's three targets, a single call a sample, for percentiles.

    A serialization is a message written *and* read; the validation is of data that nobody writes.
    """
    message = agent_message()
    contract = jsonschema_rs.validator_for(dict(schema(TYPE)), validate_formats=True)
    back = Contender(call=lambda: decode(encode(TYPE, message)), check=lambda answer: bool(answer.data == message))
    head = {"schema_version": "1.0", "message_type": TYPE}
    bare = Contender(
        call=lambda: orjson.loads(orjson.dumps(head | {"data": message}))["data"], check=message.__eq__, contract=False
    )
    kit = Contender(call=lambda: validate(TYPE, message), check=_nothing)
    rust = Contender(call=lambda: contract.validate(message), check=_nothing)
    return {
        SERIALIZATION: Contest(name="codec_serialization", contenders={UNCHECKED: bare, KIT: back}),
        PAYLOAD: replace(document_writing(rag_document(), orjson), name="codec_payload"),
        VALIDATION: Contest(name="codec_validation", contenders={"jsonschema-rs": rust, KIT: kit}),
    }


def verdicts(results: dict[str, Comparison], targets: tuple[Target, ...]) -> Iterator[Verdict]:
    """Yield what became of the specification's targets: the 95th percentile, the limit's beside it."""
    limits = {SERIALIZATION: UNCHECKED, PAYLOAD: FLOATS, VALIDATION: "jsonschema-rs"}
    for target in targets:
        if target.name in results:
            result, limit = results[target.name], limits[target.name]
            ratio = result.ratio(KIT, to=limit)
            yield target.verdict(result.percentile(KIT, 95), limit=result.percentile(limit, 95), ratio=ratio)


def goals(written: Comparison, read: Comparison, peers: tuple[str, str]) -> Iterator[Verdict]:
    """Yield what became of the goals beyond the targets for one ``agent_message``.

    Args:
        peers: the fastest library that checks a contract, in writing and in reading.
    """
    wanted = (
        ("encode, beside by hand", 1.5, written, BY_HAND),
        ("decode, beside by hand", 1.3, read, BY_HAND),
        ("decode, beside unchecked orjson", 1.0, read, UNCHECKED),
        ("encode, beside the fastest peer", 1.0, written, peers[0]),
        ("decode, beside the fastest peer", 1.0, read, peers[1]),
    )
    for name, bound, result, other in wanted:
        ratio, limit = result.ratio(KIT, to=other), result.ratio(UNCHECKED, to=other).value
        target = Target(name, bound, unit="×", metric=f"ratio to {other}", goal=True)
        yield target.verdict(ratio.value, limit=limit, ratio=ratio, interval=ratio)


def document_goals(written: Comparison, read: Comparison) -> Iterator[Verdict]:
    """Yield what became of the goals beyond the targets for one ``rag_document`` of 20 × 1536."""
    for way, bound, result in (("encode", 80e-6, written), ("decode", 100e-6, read)):
        # No ratio to a JSON list for the baseline: whether its memory is old or new decides more than the code does.
        yield Target(f"{way} a document", bound, metric="p50", goal=True).verdict(result.percentile(KIT))
        name = f"{way} a document, faster than a JSON list"
        faster = Target(name, 10, unit="×", metric="ratio", better="higher", goal=True)
        yield faster.verdict(1 / result.ratio(KIT, to=JSON_LIST).value)


def reasons(verdicts: Iterable[Verdict]) -> str:
    """Return for each goal that is not reached what was measured and what stands in its way; nothing for the others."""
    return targets.reasons(verdicts, _reason)


def _reason(row: Verdict) -> str:
    said = row.cells()
    why = "undecided, for the bound lies within the interval" if row.state == "undecided" else _WHY[row.target.name]
    return f"{row.target.name} ({row.target.metric}): {said['measured']}, goal {said['target']}: {why}"


_EXACT = "proves beyond the contract that nothing is changed on its way, which nobody else does"
_DOCUMENT = "the JSON in front keeps its contract, and each float is copied once and looked at"
_WHY = {
    "encode, beside by hand": f"the kit {_EXACT}",
    "decode, beside by hand": f"the kit {_EXACT}",
    "decode, beside unchecked orjson": "types and lengths are read in the time of orjson alone; the proof, the "
    "patterns and times, and the envelope come on top, as the parts of a reading show",
    "encode, beside the fastest peer": f"the kit {_EXACT}",
    "decode, beside the fastest peer": f"the kit {_EXACT}, as the table of refusals shows",
    "encode a document": _DOCUMENT,
    "encode a document, faster than a JSON list": _DOCUMENT,
    "decode a document": _DOCUMENT,
    "decode a document, faster than a JSON list": _DOCUMENT,
}
"""What stands between a goal and the kit where the goal is missed."""


def sizes(content_bytes: int, orjson: ModuleType) -> Contest:
    """Return the kit and unchecked orjson, both ways, with a message of this size; its text is not all ASCII.

    Of reading there is one more, of a text that is: there, a byte is a character.
    """
    message, plain = agent_message(content_bytes), agent_message(content_bytes, ASCII)
    payload, plain_payload = encode(TYPE, message), encode(TYPE, plain)
    head = {"schema_version": "1.0", "message_type": TYPE}

    def reads(call: Callable[[], Any], expected: dict[str, Any], *, contract: bool = True) -> Contender:
        return Contender(call=call, check=lambda answer: bool(answer == expected), contract=contract)

    contenders = {
        "encode, unchecked": Contender(
            call=lambda: orjson.dumps(head | {"data": message}), check=payload.__eq__, contract=False
        ),
        "encode, kit": Contender(call=lambda: encode(TYPE, message), check=payload.__eq__),
        "decode, unchecked": reads(lambda: orjson.loads(payload)["data"], message, contract=False),
        "decode, kit": reads(lambda: decode(payload).data, message),
        "decode, kit, ASCII": reads(lambda: decode(plain_payload).data, plain),
    }
    inner = 10 if content_bytes < 5000 else 1
    return Contest(name=f"codec_message_{content_bytes}", contenders=contenders, inner=inner)


def chunks(count: int, dimensions: int, orjson: ModuleType) -> Contest:
    """Return who writes a ``rag_document`` of so many embeddings."""
    return replace(document_writing(rag_document(count, dimensions), orjson), name=f"codec_document_{count}")


def _listed(document: dict[str, Any]) -> dict[str, Any]:
    chunks = [chunk | {"embedding": chunk["embedding"].tolist()} for chunk in document["chunks"]]
    return document | {"chunks": chunks}


def _writes(call: Callable[[], Any], message: dict[str, Any], contract: bool) -> Contender:
    """A writer, whose first answer is read again by nobody's code of these, and all others have to be the same."""
    first = call()
    return Contender(call=call, check=lambda answer: _holds(first, message) and answer == first, contract=contract)


def _holds(payload: bytes, message: dict[str, Any]) -> bool:
    return bool(json.loads(payload)["data"] == message)


def _nothing(answer: object) -> bool:
    return answer is None
