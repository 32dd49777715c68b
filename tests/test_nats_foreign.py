"""What lies in streams and headers is foreign: it is put aside and counted, and breaks nothing for anybody else."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest
from job_worker import QUICK
from nats.js import api
from samples import eventually, sample

from kit import codec
from kit.catalogue import DEAD_LETTER, GATEWAY_EMBEDDINGS, JOBS_FORGOTTEN, MESSAGES_REFUSED
from kit.errors import ComponentError, JobDead, RemoteError, escape_text
from kit.nats import Bus, Message, Server
from kit.nats.faults import without_content
from kit.nats.layout import DEAD_STREAM, EXHAUSTED, EXHAUSTED_STREAM, NORMAL

TASK, RESULT = sample("agent_task"), sample("agent_result")
PAYLOAD = codec.encode("agent_task", TASK)


class Never(ComponentError):
    retryable = False


async def done(_: Message) -> dict[str, Any]:
    return RESULT


async def fail(_: Message) -> dict[str, Any]:
    raise Never("not today")


@pytest.fixture
async def raw(tenant_bus: Bus, server: Server) -> AsyncIterator[nats.NATS]:
    """A client that knows nothing of the kit, nor of its bounds."""
    who = server.credentials(tenant_bus.tenant_id)
    client = await nats.connect(server.url, user=who.user, password=who.password)
    yield client
    await client.close()


async def send(bus: Bus, subject: str, payload: bytes = PAYLOAD, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    await bus.connection.jetstream().publish(subject, payload, headers=named or None)


async def check_healthy(bus: Bus) -> None:
    """Show that jobs are done, die, are listed and replayed as if nothing else lay there."""
    async with await bus.work(QUICK, done):
        assert (await bus.run(QUICK, TASK, timeout=5)).data == RESULT
    async with await bus.work(QUICK, fail):
        job = await bus.enqueue(QUICK, TASK, message_id="dead-as-expected")
        with pytest.raises(JobDead):
            await job.result(timeout=5)
    assert "dead-as-expected" in [letter.message_id for letter in await bus.dead_letters(QUICK)]
    assert await bus.replay(QUICK, ids=["dead-as-expected"]) == 1
    assert "dead-as-expected" not in [letter.message_id for letter in await bus.dead_letters(QUICK)]
    async with await bus.work(QUICK, done):
        again = await bus.enqueue(QUICK, TASK, message_id="dead-as-expected")
        assert (await again.result(timeout=5)).data == RESULT


# --- jobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expires",
    ["never", "soon", "2020-01-01", "2020-01-01T00:00:00", "", "0", "-1", "9" * 40, "99999-01-01T00:00:00Z", "\x1b[2J"],
)
async def test_a_job_whose_end_cannot_be_read_is_a_dead_letter(tenant_bus: Bus, telemetry: Any, expires: str) -> None:
    await tenant_bus.enqueue(QUICK, TASK)  # makes the queue
    await send(tenant_bus, QUICK.subject(tenant_bus.tenant_id, "bob"), Kit_Expires=expires, Nats_Msg_Id="odd")
    (letter,) = await tenant_bus.dead_letters(QUICK)
    assert (letter.message_id, letter.reason, letter.error_type) == ("odd", "contract_violation", "ContractViolation")
    assert telemetry.recorder.total(MESSAGES_REFUSED.name, error_type="ContractViolation") == 1
    await check_healthy(tenant_bus)


@pytest.mark.parametrize(
    "headers",
    [
        {"Status": "503"},
        {"Status": "404", "Description": "No Messages"},
        {"Kit-Reply": ""},
        {"Kit-Delivered": "9" * 9, "Kit-Expires": ""},
        {"Nats-Sequence": "x", "Nats-Subject": "y", "Nats-Time-Stamp": "z"},
        {"Nats-Msg-Id": "~"},
        {"Nats-Msg-Id": "~7", "Kit-Reply": "x" * 3000},
        {"Nats-Msg-Id": "\x1b]52;c;aGk=\x07", "Kit-Again": "\x00"},
        {"Large": "x" * 10_000, "Larger": "\x01" * 50_000},
        {f"Many-{number}": "x" for number in range(2000)},
    ],
    ids=lambda headers: next(iter(headers)) + str(len(headers)),
)
@pytest.mark.parametrize("payload", [b"", b"garbage"])
async def test_a_job_with_odd_headers_dies_alone(
    tenant_bus: Bus, raw: nats.NATS, headers: dict[str, str], payload: bytes
) -> None:
    async with await tenant_bus.work(QUICK, done):
        await raw.jetstream().publish(QUICK.subject(tenant_bus.tenant_id), payload, headers=headers)
        (letter,) = await eventually(lambda: tenant_bus.dead_letters(QUICK), 10)
        assert (letter.payload, letter.attempts, letter.replayable) == (payload, 1, True)
        assert letter.message_id.isprintable()
        assert await tenant_bus.replay(QUICK) == 1
        (letter,) = await eventually(lambda: tenant_bus.dead_letters(QUICK), 10)
        assert letter.payload == payload
    await check_healthy(tenant_bus)


async def test_a_job_on_a_long_subject_is_listed_and_stays(tenant_bus: Bus) -> None:
    await tenant_bus.enqueue(QUICK, TASK)
    long = f"{QUICK.prefix}.{tenant_bus.tenant_id}.{'b' * 500}"
    await send(tenant_bus, long, Kit_Expires="2020-01-01T00:00:00Z", Nats_Msg_Id="long")
    (letter,) = await tenant_bus.dead_letters(QUICK)
    assert (letter.message_id, letter.error_type, letter.replayable) == ("long", "JobExpired", False)
    assert long.startswith(letter.subject)
    assert await tenant_bus.replay(QUICK) == 0
    await check_healthy(tenant_bus)


# --- advisories -------------------------------------------------------------------------------------------------


def advisory(**changes: Any) -> bytes:
    said = {"stream": QUICK.stream, "consumer": QUICK.queue, "stream_seq": 1, "deliveries": 3} | changes
    return codec.dumps({name: value for name, value in said.items() if value is not None})


async def advise(bus: Bus, payload: bytes) -> None:
    """Write among the server's advisories: nobody may publish one, but who may change streams finds a way."""
    js = bus.connection.jetstream()
    config = (await js.stream_info(EXHAUSTED_STREAM)).config
    config.subjects = [f"{EXHAUSTED}.>", "forged"]
    config.subject_transform = api.SubjectTransform(src="forged", dest=f"{EXHAUSTED}.x.y")
    await js.update_stream(config)
    await js.publish("forged", payload)


async def test_no_tenant_speaks_for_the_server(tenant_bus: Bus, raw: nats.NATS) -> None:
    await tenant_bus.dead_letters(QUICK)
    await raw.publish(f"{EXHAUSTED}.{QUICK.stream}.{QUICK.queue}", advisory())
    await eventually(lambda: raw.last_error)
    assert "permissions violation" in str(raw.last_error)
    assert await _is_empty(tenant_bus, EXHAUSTED_STREAM)


@pytest.mark.parametrize(
    "payload",
    [b"", b"garbage", b"[]", b"7", b"null", b'{"stream":[]}', b"\xff\x00", b"[" * 5000]
    + [advisory(**{name: value}) for name in ("stream_seq", "deliveries") for value in (None, "1", -1, 0, 1.5, True)]
    + [advisory(stream_seq=2**63), advisory(consumer="a.b>"), advisory(consumer="x" * 3000), advisory(stream="NO")]
    + [advisory(consumer=None), advisory(consumer="nobody"), advisory(consumer=7)],
)
async def test_an_advisory_that_is_none_is_removed(tenant_bus: Bus, payload: bytes) -> None:
    job = await tenant_bus.enqueue(QUICK, TASK)
    assert await tenant_bus.dead_letters(QUICK) == []  # from here on advisories are kept
    await advise(tenant_bus, payload)
    assert await tenant_bus.dead_letters(QUICK) == []
    assert await _is_empty(tenant_bus, EXHAUSTED_STREAM)
    async with await tenant_bus.work(QUICK, done):
        assert (await job.result(timeout=5)).data == RESULT


async def _is_empty(bus: Bus, stream: str) -> bool:
    return (await bus.connection.jetstream().stream_info(stream)).state.messages == 0


async def test_a_forged_advisory_buries_nothing(tenant_bus: Bus, telemetry: Any) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def wait(_: Message) -> dict[str, Any]:
        began.set()
        await may_end.wait()
        return RESULT

    async with await tenant_bus.work(QUICK, wait):
        jobs = [await tenant_bus.enqueue(QUICK, TASK) for _ in range(2)]  # one under way, one that nobody had yet
        await began.wait()
        for job in jobs:
            await advise(tenant_bus, advisory(stream_seq=job.sequence))
        assert await tenant_bus.dead_letters(QUICK) == []
        may_end.set()
        for job in jobs:
            assert (await job.result(timeout=5)).data == RESULT
    assert telemetry.recorder.total(MESSAGES_REFUSED.name, operation=DEAD_LETTER) == 2


async def test_a_forged_advisory_buries_no_job_that_is_tried_again(tenant_bus: Bus) -> None:
    may_end = asyncio.Event()
    attempts: list[int] = []

    async def fail_first(message: Message) -> dict[str, Any]:
        attempts.append(message.attempt)
        if message.attempt == 1:
            raise RuntimeError("not yet")
        await may_end.wait()
        return RESULT

    async with await tenant_bus.work(QUICK, fail_first):
        job = await tenant_bus.enqueue(QUICK, TASK)
        await eventually(lambda: attempts == [1, 2])
        await advise(tenant_bus, advisory(stream_seq=job.sequence))
        assert await tenant_bus.dead_letters(QUICK) == []
        may_end.set()
        assert (await job.result(timeout=5)).data == RESULT
        await eventually(lambda: _no_backlog(tenant_bus))
    assert await tenant_bus.dead_letters(QUICK) == []
    assert await _is_empty(tenant_bus, EXHAUSTED_STREAM)


async def _no_backlog(bus: Bus) -> bool:
    return sum((await bus.backlog(QUICK)).values()) == 0


async def test_a_true_advisory_buries_its_job_and_no_other(tenant_bus: Bus, raw: nats.NATS) -> None:
    lost = await tenant_bus.enqueue(QUICK, TASK, message_id="lost")
    await tenant_bus._streams.job_consumer(QUICK, tenant_bus.tenant_id, NORMAL, None)
    workers = await raw.jetstream().pull_subscribe_bind(QUICK.queue, QUICK.stream or "")
    (first,) = await workers.fetch(1)
    for _ in range(QUICK.policy.max_attempts - 1):  # a worker is lost with it at each attempt
        await first.nak()
        (first,) = await workers.fetch(1)
    held = await tenant_bus.enqueue(QUICK, TASK, message_id="held")
    (second,) = await workers.fetch(1)

    async def letters() -> list[str]:
        await second.in_progress()
        return [letter.message_id for letter in await tenant_bus.dead_letters(QUICK)]

    await eventually(letters)
    assert await letters() == ["lost"]
    await second.nak()
    async with await tenant_bus.work(QUICK, done):
        assert (await held.result(timeout=5)).data == RESULT
    with pytest.raises(JobDead, match="lost"):
        await lost.result(timeout=5)


def enveloped(message_type: str, version: str, data: Any) -> bytes:
    return codec.dumps({"schema_version": version, "message_type": message_type, "data": data})


@pytest.mark.parametrize(
    "forged",
    [b"garbage", b"[]", codec.encode("agent_message", sample("agent_message"))]
    + [enveloped("agent_message", version, data) for version in ("1.0", "9.0") for data in ({}, [], 7)]
    + [enveloped("nobody_knows", "1.0", {})],
)
async def test_what_is_no_result_counts_for_none(tenant_bus: Bus, forged: bytes) -> None:
    await tenant_bus.enqueue(QUICK, TASK)
    await send(tenant_bus, f"kit.results.{QUICK.stream}.-.known", forged)
    async with await tenant_bus.work(QUICK, done):
        job = await tenant_bus.enqueue(QUICK, TASK, message_id="known")
        assert (await job.result(timeout=5)).data == RESULT


# --- dead letters -----------------------------------------------------------------------------------------------


async def _forge(bus: Bus, payload: bytes = b"precious", **changes: Any) -> None:
    """Write a dead letter as this account's owner would, but for some fields."""
    js = bus.connection.jetstream()
    subject = f"kit.dead.{QUICK.stream}.forged"
    kept = await js.publish(f"{subject}.payload", payload)
    letter = {
        "operation": QUICK.name,
        "subject": QUICK.subject(bus.tenant_id),
        "message_id": "forged",
        "attempts": 1,
        "error_type": "E",
        "detail": "\x1b[2J",
        "failed_at": codec.now(),
        "first_seen": codec.now(),
        "reason": "not_retryable",
        "stream": QUICK.stream,
        "stream_sequence": 1,
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
        "payload_stream": DEAD_STREAM,
        "payload_sequence": kept.seq,
        "headers": {},
    } | changes
    await js.publish(subject, codec.encode(DEAD_LETTER, {k: v for k, v in letter.items() if v is not None}))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage",
        b"[]",
        codec.encode("agent_task", TASK),
        codec.encode("error", sample("error")),
        codec.encode(DEAD_LETTER, sample(DEAD_LETTER)),
        codec.encode(DEAD_LETTER, sample(DEAD_LETTER, operation="X")),
    ],
)
async def test_what_is_no_dead_letter_is_left_out_and_counted_once(
    tenant_bus: Bus, telemetry: Any, payload: bytes
) -> None:
    await tenant_bus.dead_letters(QUICK)
    await send(tenant_bus, f"kit.dead.{QUICK.stream}.x", payload)
    for _ in range(2):
        assert await tenant_bus.dead_letters(QUICK) == []
    assert await tenant_bus.replay(QUICK) == 0
    assert telemetry.recorder.total(MESSAGES_REFUSED.name, operation=QUICK.name) == 1
    await check_healthy(tenant_bus)


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "$JS.API.STREAM.DELETE.KV_precious"},
        {"subject": "ai.agent.tasks.another-tenant"},
        {"subject": "ai.gateway.requests.acme"},
        {"subject": "ai.agent.tasks.*"},
        {"payload_sequence": 10**15},
        {"payload_sequence": 1},
        {"payload_sha256": "0" * 64},
        {"payload_sequence": None},
        {"payload_claim": {"bucket": "objects", "name": "secret", "size": 1, "sha256": "0" * 64}},
        {"payload_claim": {"bucket": "dead-letters", "name": f"{QUICK.stream}-1", "size": 1, "sha256": "0" * 64}},
    ],
    ids=str,
)
async def test_a_forged_dead_letter_is_not_sent_again(tenant_bus: Bus, telemetry: Any, changes: dict[str, Any]) -> None:
    store = await tenant_bus.store("precious")
    await store.put("key", b"value")
    await tenant_bus.dead_letters(QUICK)
    await send(tenant_bus, f"kit.dead.{QUICK.stream}.somebody-elses.payload", b"precious")
    await _forge(tenant_bus, **changes)
    (letter,) = await tenant_bus.dead_letters(QUICK)
    assert not letter.replayable
    assert letter.detail.isprintable()
    assert await tenant_bus.replay(QUICK) == 0
    assert telemetry.recorder.total(MESSAGES_REFUSED.name, error_type="NotReplayable") == 1
    assert (await store.get("key")) is not None
    await check_healthy(tenant_bus)


async def test_a_replay_sends_no_header_that_speaks_to_the_stream(tenant_bus: Bus) -> None:
    await tenant_bus.enqueue(QUICK, TASK)
    await tenant_bus.dead_letters(QUICK)
    await _forge(tenant_bus, PAYLOAD, headers={"Nats-Rollup": "all", "nats-expected-stream": "X", "b d": "x", "A": "b"})
    assert await tenant_bus.replay(QUICK) == 1
    assert sum((await tenant_bus.backlog(QUICK)).values()) == 2
    kept = await tenant_bus.connection.jetstream().get_last_msg(QUICK.stream or "", QUICK.subject(tenant_bus.tenant_id))
    assert kept.headers is not None
    assert {name for name in kept.headers if not name.startswith("Nats-Msg")} == {"A"}


async def test_a_job_that_dies_again_while_it_is_replayed_is_a_dead_letter(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = tenant_bus._streams
    subject = f"kit.dead.{QUICK.stream}.doomed"

    def late(act: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def wait(stream: str, what: Any) -> None:
            async def died_again() -> bool:
                kept = await streams.last(DEAD_STREAM, subject)
                return kept is not None and kept.sequence > before

            if stream == DEAD_STREAM:
                await eventually(died_again)
            await act(stream, what)

        return wait

    async with await tenant_bus.work(QUICK, fail):
        await tenant_bus.enqueue(QUICK, TASK, message_id="doomed")
        (letter,) = await eventually(lambda: tenant_bus.dead_letters(QUICK))
        before = letter.sequence
        monkeypatch.setattr(streams, "delete", late(streams.delete))
        monkeypatch.setattr(streams, "purge", late(streams.purge))
        assert await tenant_bus.replay(QUICK) == 1
    monkeypatch.undo()
    (again,) = await tenant_bus.dead_letters(QUICK)
    assert (again.message_id, again.payload, again.replayable) == ("doomed", letter.payload, True)
    assert again.sequence > before


async def test_dead_letters_make_room_and_are_counted(tenant_bus: Bus, telemetry: Any) -> None:
    await tenant_bus.dead_letters(QUICK)
    js = tenant_bus.connection.jetstream()
    config = (await js.stream_info(DEAD_STREAM)).config
    assert (config.max_age or 0) > 0
    assert (config.max_msgs or 0) > 0
    assert config.discard == api.DiscardPolicy.OLD
    config.max_bytes = 1024 * 1024
    await js.update_stream(config)
    large = TASK | {"prompt": "x" * 300_000}
    async with await tenant_bus.work(QUICK, fail):
        for number in range(5):
            with pytest.raises(JobDead):
                await tenant_bus.run(QUICK, large, message_id=f"job-{number}", timeout=5)
    letters = await tenant_bus.dead_letters(QUICK)
    assert [letter.message_id for letter in letters] == [f"job-{n}" for n in range(5 - len(letters), 5)]
    assert 1 <= len(letters) < 5
    assert all(letter.replayable for letter in letters)
    assert telemetry.recorder.total(JOBS_FORGOTTEN.name, operation=QUICK.name) == 5 - len(letters)


# --- words ------------------------------------------------------------------------------------------------------

ODD = ["men\udcfc.txt", "\udcff" * 10_000, "a\x00b", "x" * 10**7, "\x1b[2J\x07", "\ud83d", "", "\U0001f600 é"]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
async def test_an_error_crosses_the_wire_whatever_it_quotes(tenant_bus: Bus, text: str) -> None:
    async def refuse(_: Message) -> dict[str, Any]:
        raise Never(text)

    async with await tenant_bus.work(QUICK, refuse), await tenant_bus.serve(GATEWAY_EMBEDDINGS, refuse):
        with pytest.raises(RemoteError) as answered:
            await tenant_bus.request(
                GATEWAY_EMBEDDINGS, sample("embedding_request", tenant_id=tenant_bus.tenant_id), timeout=5
            )
        with pytest.raises(JobDead) as died:
            await tenant_bus.run(QUICK, TASK, timeout=5)
    (letter,) = await tenant_bus.dead_letters(QUICK)
    assert (died.value.error_type, letter.error_type, answered.value.error_type) == ("Never",) * 3
    assert died.value.detail == letter.detail == answered.value.detail == escape_text(text)


@pytest.mark.parametrize("name", ["retryable", "retry_after", "content_free", "content_free_start", "__str__"])
async def test_an_error_that_cannot_say_what_it_is_crosses_the_wire(tenant_bus: Bus, name: str) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("not even this")

    odd = type("Odd", (Exception,), {name: fail if name == "__str__" else property(fail)})

    async def refuse(_: Message) -> dict[str, Any]:
        raise odd("x")

    async with await tenant_bus.work(QUICK, refuse), await tenant_bus.serve(GATEWAY_EMBEDDINGS, refuse):
        with pytest.raises(RemoteError, match="Odd"):
            await tenant_bus.request(
                GATEWAY_EMBEDDINGS, sample("embedding_request", tenant_id=tenant_bus.tenant_id), timeout=5
            )
        with pytest.raises(JobDead, match="Odd"):
            await tenant_bus.run(QUICK, TASK, timeout=5)


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_what_an_error_of_the_kit_says_can_be_sent(text: str) -> None:
    said = str(Never(f"no such file: {text}"))
    assert codec.loads(codec.dumps({"message": said})) == {"message": said}
    assert not set("\x00\x1b\x07") & set(said)
    assert len(said) <= 10_000
    data = {"path": text[:20]}
    assert "\udcfc" not in without_content(f"cannot read {text}", data)


async def test_an_answer_that_cannot_be_sent_is_told_with_its_path(tenant_bus: Bus) -> None:
    async def answer(_: Message) -> dict[str, Any]:
        return RESULT | {"output": {"\udcfc" * 300: 1}}

    async with await tenant_bus.work(QUICK, answer):
        with pytest.raises(JobDead) as died:
            await tenant_bus.run(QUICK, TASK, timeout=5)
    assert died.value.attempts == 1


@pytest.mark.parametrize("short", [0, 1, 20, 60, 100, 119, 150, 300, 20_000])
async def test_a_result_that_fits_only_without_its_headers_is_a_typed_error(tenant_bus: Bus, short: int) -> None:
    empty = RESULT | {"output": {"text": ""}}
    room = tenant_bus.connection.max_payload - len(codec.encode("agent_result", empty)) - short

    async def answer(_: Message) -> dict[str, Any]:
        return RESULT | {"output": {"text": "x" * room}}

    async with await tenant_bus.work(QUICK, answer):
        job = await tenant_bus.enqueue(QUICK, TASK, message_id="large")
        if short >= 100:
            assert len((await job.result(timeout=5)).data["output"]["text"]) == room
        else:
            with pytest.raises(JobDead, match="PayloadTooLarge"):
                await job.result(timeout=5)
