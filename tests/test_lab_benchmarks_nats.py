"""Messaging's benchmarks measure what they say: all arms do their work, limits stand beside, the time adds up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import numpy as np
import pytest

from kit.lab.bench import Comparison
from kit.lab.benchmarks import nats_flame, nats_goals, nats_peers
from kit.lab.benchmarks.contest import NOT_INSTALLED
from kit.lab.benchmarks.kept import Kept
from kit.lab.benchmarks.nats import (
    ALONE,
    BARE,
    BARE_RESULTS,
    CODEC,
    FASTSTREAM,
    FASTSTREAM_RESULTS,
    KIT,
    RAW,
    SAMPLED,
    STORED,
    TOGETHER,
    Messaging,
)
from kit.lab.benchmarks.nats_flame import SYSTEM, Flame, shares
from kit.lab.benchmarks.nats_growth import COMPUTES, WAITS, Growth, rates
from kit.lab.targets import Target, Verdicts


@pytest.fixture
async def messaging() -> AsyncIterator[Messaging]:
    async with Messaging.open(nats.connect) as opened:
        yield opened


def made(**milliseconds: float) -> Comparison:
    samples = {name: np.full((5, 1), value * 1e6) for name, value in milliseconds.items()}
    return Comparison(name="made", samples=samples, baseline=BARE, operations=64)


async def test_every_arm_does_all_of_its_jobs(messaging: Messaging) -> None:
    result = await messaging.jobs(rounds=1, jobs=8)
    arms = {BARE, TOGETHER, STORED, BARE_RESULTS, ALONE, CODEC, SAMPLED, FASTSTREAM, FASTSTREAM_RESULTS}
    assert set(result.samples) == arms
    for arm in (messaging.bare, messaging.faststream):
        assert arm is not None
        assert arm._count.seen == 8


async def test_every_contender_brings_back_what_was_sent_however_large(messaging: Messaging) -> None:
    result = await messaging.payload(900_000, rounds=1, samples=1)
    assert {BARE, RAW, CODEC, SAMPLED, FASTSTREAM} <= set(result.samples)
    assert set((await messaging.in_flight(16, rounds=1)).samples) == set(result.samples)


async def test_a_peer_that_is_not_installed_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.lab.benchmarks.nats.installed", lambda package: False)
    async with Messaging.open(nats.connect) as messaging:
        table = messaging.table(await messaging.request_reply(rounds=1, samples=1))
    assert table.loc[FASTSTREAM, "p50"] == NOT_INSTALLED
    result = made(**{BARE: 20, RAW: 5, TOGETHER: 10, CODEC: 16, SAMPLED: 18, ALONE: 24})
    verdicts = [*nats_goals.throughput_goals(result), *nats_goals.job_goals(result)]
    assert [row.target.name for row in verdicts] == ["64 in flight, codec only", "jobs end to end"]
    assert nats_goals.reasons(verdicts, messaging.missing).splitlines() == [
        f"{goal}: not measured, FastStream is not installed"
        for goal in ("64 in flight, codec and sampled trace", "jobs end to end, against FastStream")
    ]
    assert set(nats_goals.job_rates(result)["rate over FastStream"]) == {NOT_INSTALLED}


def test_the_goals_against_a_peer_are_those_that_are_told_as_not_measured_without_it() -> None:
    result = made(**{BARE: 20, RAW: 5, TOGETHER: 10, CODEC: 16, SAMPLED: 18, FASTSTREAM: 40})
    verdicts = [*nats_goals.throughput_goals(result), *nats_goals.job_goals(result)]
    against = tuple(row.target.name for row in verdicts if FASTSTREAM in row.target.metric)
    assert against == nats_goals.AGAINST[FASTSTREAM]


def test_rates_stand_beside_each_other_as_rates_with_and_without_batches_and_results() -> None:
    result = made(**{BARE: 20, CODEC: 16, SAMPLED: 20, ALONE: 32, FASTSTREAM: 40, FASTSTREAM_RESULTS: 48})
    table = nats_goals.job_rates(result)
    assert [text.split()[0] for text in table["rate over FastStream"]] == ["2.50", "2.00", "1.25"]
    assert table["rate over FastStream + results"].iloc[2] == "1.50 × [1.50, 1.50]"
    lines, bands = rates([result])
    assert (lines[CODEC], bands[CODEC][0]) == (pytest.approx([4000]), pytest.approx([4000]))


async def test_a_table_has_ratios_of_rates_where_it_has_rates(messaging: Messaging) -> None:
    table = messaging.table(made(**{BARE: 20, CODEC: 16}))
    assert table["rate over bare nats-py"].tolist() == ["1", "1.25 × [1.25, 1.25]"]
    assert "ratio to bare nats-py" not in table.columns


async def test_where_a_request_goes_adds_up_and_is_kept_like_every_measurement(
    messaging: Messaging, tmp_path: Path
) -> None:
    flame = Flame.read(await Kept(folder=tmp_path).facts("flame", nats_flame.facts, messaging, 20))
    assert 0 < flame.work <= flame.wall * 1.05
    assert sum(flame.rooms.values()) == pytest.approx(1)
    assert {"kit.codec", "kit.nats", "kit.otel", "asyncio", "nats-py", SYSTEM} <= set(flame.rooms)
    assert sum(flame.owners.values()) == pytest.approx(max(flame.wall, flame.work))
    assert (
        Flame.read(await Kept(measure=False, folder=tmp_path).facts("flame", nats_flame.facts, messaging, 0)) == flame
    )


def test_the_picture_of_a_request_shows_no_more_rooms_than_it_has_colours() -> None:
    rooms = {f"kit.{number}": 0.1 for number in range(9)} | {"asyncio": 0.1}
    flame = Flame(wall=3e-4, work=2e-4, spans={}, rooms=rooms, functions={})
    drawn = flame.draw("One request")
    pieces = [bar.get_width() for bar in drawn.axes[0].patches]
    assert pieces == pytest.approx([20, 20, 20, 20, 20, 100, 100])
    assert drawn.legends[0].get_texts()[5].get_text() == "other rooms"
    assert list(flame.owners.values()) == pytest.approx([1.8e-4, 2e-5, 1e-4])


def test_functions_in_c_count_for_who_calls_them_and_waiting_for_nobody() -> None:
    ours, theirs = ("/x/nats/client.py", 1, "read"), ("/x/asyncio/events.py", 2, "run")
    stats: dict[Any, Any] = {
        ours: (1, 1, 0.25, 1.0, {}),
        theirs: (1, 1, 0.25, 1.0, {}),
        ("~", 0, "<method 'poll' of 'select.epoll' objects>"): (1, 1, 9.0, 9.0, {theirs: (1, 1, 9.0, 9.0)}),
        ("~", 0, "<built-in method len>"): (2, 2, 0.25, 0.25, {ours: (1, 1, 0.25, 0.25)}),
        ("~", 0, "<method 'send' of '_socket.socket' objects>"): (1, 1, 0.25, 0.25, {theirs: (1, 1, 0.25, 0.25)}),
    }
    rooms, functions = shares(stats)
    assert rooms == {"nats-py": 0.5, "asyncio": 0.25, SYSTEM: 0.25}
    assert functions == {"read (nats-py)": 0.5, "run (asyncio)": 0.25, f"send to a socket ({SYSTEM})": 0.25}


async def test_tenants_are_asked_on_accounts_of_their_own_and_workers_are_processes() -> None:
    async with Growth.open(nats.connect, most_tenants=2) as growth:
        spread = await growth.tenants(2, rounds=1, in_flight=8)
        assert set(spread.samples) == {BARE, SAMPLED}
        worked = await growth.workers(2, rounds=1, jobs=4, seconds=0.001)
        assert set(worked.samples) == {WAITS, COMPUTES}
        processes = growth._processes
        assert len({process.pid for process in processes}) == 2
    assert [process.returncode for process in processes] == [0, 0]


async def test_the_raw_socket_takes_messages_in_any_pieces() -> None:
    wire = nats_peers._Wire("user", "password")
    seen: list[tuple[bytes, bytes, bytes]] = []
    wire.deliver = lambda *message: seen.append(message)
    stream = b"MSG a 1 3\r\nabc\r\nMSG b 1 reply 5\r\n12\r\n3\r\nMSG c 1 0\r\n\r\nPONG\r\n"
    for step in (1, 7, len(stream)):
        seen.clear()
        wire.ready = asyncio.get_running_loop().create_future()
        for at in range(0, len(stream), step):
            wire.data_received(stream[at : at + step])
        assert seen == [(b"a", b"", b"abc"), (b"b", b"reply", b"12\r\n3"), (b"c", b"", b"")]
        assert wire.ready.done()


def test_a_rate_goal_has_the_limit_beside_it() -> None:
    result = made(**{BARE: 20, TOGETHER: 10, CODEC: 16, FASTSTREAM: 24})
    bare, peer = nats_goals.job_goals(result)
    assert (bare.measured, bare.limit, bare.met) == (pytest.approx(1.25), pytest.approx(2), True)
    assert (peer.measured, peer.limit, peer.met) == (pytest.approx(1.5), pytest.approx(2.4), False)
    assert peer.target.goal


@pytest.mark.parametrize(
    ("rate", "limit", "said"),
    [(1.5, 2.4, "the raw socket reaches it, at 2.40 ×"), (1.5, 1.8, "does not reach it in this run either")],
)
def test_a_goal_that_is_not_reached_has_its_reason(rate: float, limit: float, said: str) -> None:
    goal = Target("jobs", 2.0, unit="×", better="higher", goal=True)
    assert said in nats_goals.reasons(Verdicts([goal.verdict(rate, limit=limit)]))
    assert nats_goals.reasons(Verdicts([goal.verdict(2.1, limit=limit)])) == "every goal is reached"


def test_a_target_is_judged_by_the_percentile_of_all_samples_and_undecided_where_the_disk_is_too_slow() -> None:
    agents, jobs = made(**{KIT: 1, RAW: 0.5}), made(**{SAMPLED: 12, TOGETHER: 6})
    rounds = np.full((20, 5), 1e6)
    rounds[:3] = 9e6  # three rounds of twenty were disturbed
    for limit, state in ((1, "missed"), (3, "undecided")):
        samples = {KIT: rounds, RAW: np.full((20, 5), limit * 1e6)}
        queuing = Comparison(name="made", samples=samples, baseline=KIT)
        verdict = nats_goals.specified(agents, jobs, queuing)[2]
        assert verdict.ratio is not None
        assert verdict.ratio.value == pytest.approx(1 / limit)
        assert (verdict.measured, verdict.state, verdict.target.goal) == (pytest.approx(9e-3), state, False)


async def test_messages_and_queued_requests_stand_beside_the_raw_socket(messaging: Messaging) -> None:
    assert set((await messaging.agents(rounds=1, samples=2)).samples) == {KIT, RAW}
    queuing = await messaging.queuing(rounds=1, samples=2)
    assert set(queuing.samples) == {KIT, BARE, RAW}
    assert queuing.conditions["gc"] == "between"
    assert (await messaging.server_settings())["storage"] == "files, synced at each write"


async def test_the_kit_stores_jobs_one_by_one_where_the_queue_takes_no_batches(messaging: Messaging) -> None:
    for layer, possible in ((ALONE, False), (CODEC, True)):
        assert await messaging.kit_jobs(layer, 32) == 32
        lanes = messaging.senders[layer]._desk._batches._lanes
        assert [lane.possible for lane in lanes.values()] == [possible]


def test_what_python_takes_of_a_job_stands_beside_all_of_it() -> None:
    table = nats_goals.per_job(made(**{BARE: 64, CODEC: 64}), made(**{BARE: 12.8, CODEC: 6.4}))
    assert table.loc[BARE, "time a job"] == "1.00 ms"
    assert table.loc[BARE, "of it Python's"] == "200 µs"
    assert table["share"].tolist() == ["20 %", "10 %"]
    assert table["Python's, beside the kit's"].tolist() == ["2.00 × [2.00, 2.00]", "1"]
