"""Where CODEC's time goes: the parts of one reading, what is refused for them, and what a larger schema adds.

Parts and schemas stand on the compile functions of ``kit.codec.shapes``, which make the fast ways of ``encode`` and
``decode``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.codec import decode, encode, latest, schema
from kit.codec.shapes import UTC_PATTERN, compile_reader, compile_writer
from kit.lab.bench import Comparison, median_interval
from kit.lab.benchmarks.codec import ASCII, FRESH, TYPE, UNCHECKED, agent_message, reading
from kit.lab.benchmarks.codec_peers import closed_struct, valid_by_hand
from kit.lab.benchmarks.contest import BY_HAND, KIT, Contender, Contest, installed, with_absent
from kit.lab.project import project_root
from kit.lab.quantities import quantity

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

PROVED, NO_PATTERNS, COMPILED = "orjson, then the proof", "shape without patterns", "compiled reader"
COUNTED, JITER, JITER_CATCHES = "orjson, and its quotes counted", "jiter", "jiter, which refuses doubled keys"
UNCHECKED_ASCII, PROVED_ASCII = f"{UNCHECKED}, ASCII", f"{PROVED}, ASCII"
STRUCT, COMPILED_WRITER = "closed Struct, no proof, no patterns", "compiled writer"
_INNER = 50  # calls in a sample of what takes microseconds
_ID = "^[a-z0-9][a-z0-9_-]{0,62}$"
_KINDS: tuple[tuple[dict[str, Any], Any], ...] = (
    ({"type": "string", "maxLength": 200}, "thirty days after the purchase"),
    ({"type": "string", "pattern": _ID}, "planner-7"),
    ({"type": "integer", "minimum": 0, "maximum": 1_000_000}, 4711),
    ({"type": "string", "format": "date-time", "pattern": UTC_PATTERN}, "2026-01-05T09:30:00.000000Z"),
    ({"type": "boolean"}, True),
)
"""What fields of messages are like, in turn: the schema of one, and a value that keeps it."""


# --- one reading, part by part ----------------------------------------------------------------------------------


def parts(orjson: ModuleType) -> Contest:
    """Return one reading in steps that each do more than the one before; their differences are its parts."""
    message = agent_message()
    payload = encode(TYPE, message)
    contract = dict(schema(TYPE))
    prefix = _prefix(payload)
    plain, compiled = compile_reader(_without_patterns(contract), prefix), compile_reader(contract, prefix)

    contenders = {
        UNCHECKED: _unchecked(message, payload, orjson),
        PROVED: _proved(message, payload, orjson),
        NO_PATTERNS: Contender(call=lambda: plain(payload), check=message.__eq__, contract=False),
        COMPILED: Contender(call=lambda: compiled(payload), check=message.__eq__),
        STRUCT: closed_struct(message, payload),
        KIT: Contender(call=lambda: decode(payload), check=lambda answer: bool(answer.data == message)),
    }
    return Contest(name="codec_decode_parts", contenders=contenders, inner=_INNER)


def proofs(orjson: ModuleType) -> Contest:
    """Return ways to see a key that stands twice, and what each stands on: only the first one sees all that is lost.

    Counting quotes is not even enough by itself: what to expect has to be worked out of the data. Of a message as long
    whose text is ASCII there are the first two once more.
    """
    message, plain = agent_message(), agent_message(sentence=ASCII)
    payload, plain_payload = encode(TYPE, message), encode(TYPE, plain)

    def count() -> Any:
        return orjson.loads(payload), payload.count(b'"')

    contenders = {
        UNCHECKED: _unchecked(message, payload, orjson),
        PROVED: _proved(message, payload, orjson),
        COUNTED: Contender(
            call=count, check=lambda answer: bool(answer[0]["data"] == message and answer[1] > 0), contract=False
        ),
        UNCHECKED_ASCII: _unchecked(plain, plain_payload, orjson),
        PROVED_ASCII: _proved(plain, plain_payload, orjson),
    }
    jiter = installed("jiter")  # comes with the openai client
    if jiter is not None:
        for name, catch in ((JITER, False), (JITER_CATCHES, True)):
            contenders[name] = Contender(
                call=partial(jiter.from_json, payload, catch_duplicate_keys=catch),
                check=lambda answer: bool(answer["data"] == message),
                contract=False,
            )
    absent = () if jiter is not None else (JITER, JITER_CATCHES)
    return Contest(name="codec_decode_proofs", contenders=contenders, absent=absent, inner=_INNER)


def _unchecked(message: dict[str, Any], payload: bytes, orjson: ModuleType) -> Contender:
    return Contender(
        call=lambda: orjson.loads(payload), check=lambda answer: bool(answer["data"] == message), contract=False
    )


def _prefix(payload: bytes) -> bytes:
    """Return the bytes of an envelope before its data."""
    mark = b'"data":'
    return payload[: payload.index(mark) + len(mark)]


def _proved(message: dict[str, Any], payload: bytes, orjson: ModuleType) -> Contender:
    prefix = _prefix(payload)

    def call() -> Any:
        data = orjson.loads(payload)["data"]
        return data if payload == b"".join((prefix, orjson.dumps(data), b"}")) else None

    return Contender(call=call, check=message.__eq__, contract=False)


def parts_table(result: Comparison) -> pd.DataFrame:
    """Return what each part of a reading takes, in time and against unchecked orjson, which reads the same bytes.

    The last row is no part: it is all that a reader would do that meets the goal beside unchecked orjson.
    """
    import pandas as pd

    bare = _medians(result, UNCHECKED)
    rows = {
        "types and lengths, into dicts": _medians(result, NO_PATTERNS) - (_medians(result, PROVED) - bare),
        "proof that nothing was lost": _medians(result, PROVED) - bare,
        "patterns of ids, and times": _medians(result, COMPILED) - _medians(result, NO_PATTERNS),
        "contract found, envelope made": _medians(result, KIT) - _medians(result, COMPILED),
        "all of it": _medians(result, KIT),
        STRUCT: _medians(result, STRUCT),
    }
    table = {
        name: {
            "p50": quantity(float(np.median(nanoseconds)) / 1e9, "s"),
            f"against {UNCHECKED}": str(median_interval(nanoseconds / bare)),
        }
        for name, nanoseconds in rows.items()
    }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("part of a reading")


def _medians(result: Comparison, contender: str) -> NDArray[np.float64]:
    """Each round's median, float64 (rounds,), in nanoseconds."""
    medians: NDArray[np.float64] = np.median(result.samples[contender], axis=1)
    return medians


def _without_patterns(node: Any) -> Any:
    """Return a schema in which any text of the right length will do."""
    if isinstance(node, list):
        return [_without_patterns(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _without_patterns(value) for key, value in node.items() if key not in ("pattern", "format")}


# --- what a reader refuses --------------------------------------------------------------------------------------


def refusals(orjson: ModuleType, jsonschema_rs: ModuleType) -> pd.DataFrame:
    """Return how many faulty payloads each contender refuses that checks a contract.

    The faults are the contract's own invalid fixtures, and two that no schema sees: a key that stands twice, and an
    integer of which a double keeps the first half.
    """
    import pandas as pd

    message = agent_message()
    folder = project_root() / "data" / "contracts" / TYPE / latest(TYPE) / "invalid"
    broken = [orjson.dumps(orjson.loads(file.read_bytes())["envelope"]) for file in sorted(folder.glob("*.json"))]
    good = encode(TYPE, message)
    inexact = [good.replace(b'"content":', b'"content":"no","content":'), good.replace(b":3,", b":%d," % 10**30)]
    counts: dict[str, list[int]] = {}
    for payload in (good, *broken, *inexact):
        contest = reading(message, orjson, jsonschema_rs, payload)
        for name, contender in contest.contenders.items():
            if contender.contract and name != FRESH:
                counts.setdefault(name, []).append(int(_refuses(contender)))
    rows = {
        name: {
            "what is right": sum(row[:1]),
            f"what breaks the contract ({len(broken)})": sum(row[1 : len(broken) + 1]),
            f"what would be changed ({len(inexact)})": sum(row[len(broken) + 1 :]),
        }
        for name, row in counts.items()
    }
    return with_absent(pd.DataFrame.from_dict(rows, orient="index").rename_axis("refuses"), contest.absent)


def _refuses(reader: Contender) -> bool:
    try:
        reader.call()
    except Exception:  # noqa: BLE001 - each library has its own errors
        return True
    return False


# --- the size of a schema ---------------------------------------------------------------------------------------


def made_schema(fields: int) -> dict[str, Any]:
    """Return a closed JSON Schema of so many required fields: texts, ids, integers, times and booleans in turn."""
    properties = {f"field_{number}": dict(_KINDS[number % len(_KINDS)][0]) for number in range(fields)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def made_data(fields: int) -> dict[str, Any]:
    """Return data that keep ``made_schema`` of as many fields."""
    return {f"field_{number}": _KINDS[number % len(_KINDS)][1] for number in range(fields)}


def schema_size(fields: int, orjson: ModuleType, jsonschema_rs: ModuleType) -> Contest:
    """Return the compiled functions, by hand and unchecked orjson, both ways, with a message that has so many fields.

    The functions are what ``encode`` and ``decode`` call, without finding the contract and making the envelope.
    """
    contract, data = made_schema(fields), made_data(fields)
    head = {"schema_version": "1.0", "message_type": "made"}
    payload: bytes = orjson.dumps(head | {"data": data})
    prefix = _prefix(payload)
    write, read = compile_writer(contract, prefix), compile_reader(contract, prefix)
    check = jsonschema_rs.validator_for(contract, validate_formats=True).is_valid
    write_by_hand, read_by_hand = valid_by_hand(check, "made", data, payload, orjson)
    calls: Mapping[str, tuple[Any, Any]] = {
        f"encode, {UNCHECKED}": (lambda: orjson.dumps(head | {"data": data}), payload),
        f"encode, {BY_HAND}": (write_by_hand, payload),
        f"encode, {COMPILED_WRITER}": (lambda: write(data), payload),
        f"decode, {UNCHECKED}": (lambda: orjson.loads(payload)["data"], data),
        f"decode, {BY_HAND}": (read_by_hand, data),
        f"decode, {COMPILED}": (lambda: read(payload), data),
    }
    contenders = {
        name: Contender(call=call, check=expected.__eq__, contract=UNCHECKED not in name)
        for name, (call, expected) in calls.items()
    }
    return Contest(name=f"codec_schema_{fields}", contenders=contenders, inner=10)
