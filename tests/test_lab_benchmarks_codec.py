"""CODEC's benchmarks measure what they say: parts add up, peers that are missing say so, tables come from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import orjson
import pytest

from kit.codec.shapes import compile_reader
from kit.errors import ReportError
from kit.lab.bench import Comparison, compare_async
from kit.lab.benchmarks import codec, codec_inside, codec_peers
from kit.lab.benchmarks.contest import BY_HAND, KIT, NOT_INSTALLED, Contender, Contest, stated
from kit.lab.benchmarks.kept import Kept

PREFIX = b'{"schema_version":"1.0","message_type":"made","data":'
ANSWER = Contest(name="answer", contenders={"it": Contender(call=lambda: 42, check=lambda answer: answer == 42)})


def test_what_is_shown_was_read_from_the_file_of_the_samples(tmp_path: Path) -> None:
    measured = Kept(folder=tmp_path).run(ANSWER, rounds=2, samples=3)
    again = Kept(measure=False, folder=tmp_path)
    rendered = again.run(ANSWER, rounds=99, samples=99)
    assert measured.samples["it"].tolist() == rendered.samples["it"].tolist()
    assert measured.samples["it"].shape == (2, 3)
    assert again.comparisons == {"answer": rendered}


def test_nothing_can_be_rendered_that_was_not_measured(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no samples of answer are kept"):
        Kept(measure=False, folder=tmp_path).run(ANSWER, rounds=1, samples=1)


async def test_samples_are_kept_under_their_own_name_only(tmp_path: Path) -> None:
    async def one() -> int:
        return 1

    async def measure() -> Comparison:
        return await compare_async({"one": one}, name="one", check=lambda got: got == 1, rounds=1, samples=1)

    kept = Kept(folder=tmp_path)
    assert (await kept.take("one", measure)).name == "one"
    with pytest.raises(ReportError, match="two calls itself one"):
        await kept.take("two", measure)
    assert len(kept) == 1


def test_conditions_are_stated_in_words() -> None:
    said = stated(ANSWER.run(rounds=1, samples=1))
    assert said["garbage collector"] == "collected before each turn, off within it"
    assert said["logging"].startswith("level ")


def test_the_parts_of_a_reading_add_up_to_all_of_it() -> None:
    steps = {codec.UNCHECKED: 100.0, codec_inside.PROVED: 160.0, codec_inside.NO_PATTERNS: 155.0,
             codec_inside.COMPILED: 200.0, codec_inside.STRUCT: 86.0, KIT: 230.0}  # fmt: skip
    samples = {name: np.full((4, 2), nanoseconds) for name, nanoseconds in steps.items()}
    table = codec_inside.parts_table(Comparison(name="made", samples=samples, baseline=codec.UNCHECKED))
    assert table["p50"].tolist() == ["95.0 ns", "60.0 ns", "45.0 ns", "30.0 ns", "230 ns", "86.0 ns"]


def test_each_step_of_a_reading_gives_the_message() -> None:
    result = codec_inside.parts(orjson).run(rounds=1, samples=1)
    assert list(result.samples)[-1] == KIT


def test_ways_to_prove_are_measured_where_their_library_is(monkeypatch: pytest.MonkeyPatch) -> None:
    result = codec_inside.proofs(orjson).run(rounds=1, samples=1)
    assert list(result.samples)[-1] == codec_inside.JITER_CATCHES
    monkeypatch.setattr(codec_inside, "installed", lambda name: None)
    alone = codec_inside.proofs(orjson)
    assert alone.absent == (codec_inside.JITER, codec_inside.JITER_CATCHES)
    assert NOT_INSTALLED in set(alone.table(alone.run(rounds=1, samples=1))["p50"])


def test_the_kit_refuses_every_faulty_payload_and_nothing_else() -> None:
    table = codec_inside.refusals(orjson, jsonschema_rs)
    broken, inexact = table.columns[1:]
    assert table.loc[KIT].tolist() == [0, int(broken.split("(")[1][:-1]), 2]
    assert table.loc["by hand", broken] == table.loc[KIT, broken]
    assert table.loc["by hand", inexact] == 0
    for name in ("msgspec, a Struct", "msgspec, a Struct, times as datetime"):
        assert table.loc[name].tolist() == [0, 6, 0]
    assert (table["what is right"] == 0).all()


@pytest.mark.parametrize("fields", [5, 200])
def test_schemas_of_any_size_are_read_and_written_by_their_shape(fields: int) -> None:
    result = codec_inside.schema_size(fields, orjson, jsonschema_rs).run(rounds=1, samples=1)
    assert len(result.samples) == 6
    read = compile_reader(codec_inside.made_schema(fields), PREFIX)
    data: dict[str, Any] = codec_inside.made_data(fields)
    assert read(PREFIX + orjson.dumps(data) + b"}") == data
    assert read(PREFIX + orjson.dumps({**data, "field_1": "No Token"}) + b"}") is None


def test_a_peer_that_is_not_installed_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = codec_peers.installed
    monkeypatch.setattr(codec_peers, "installed", lambda name: None if name == "pydantic" else installed(name))
    contest = codec.writing(codec.agent_message(), orjson, jsonschema_rs)
    table = contest.table(contest.run(rounds=1, samples=1))
    assert table.loc["pydantic", "p50"] == NOT_INSTALLED
    assert table.loc["pydantic", "contract"] == "–"
    assert table.loc[KIT, "contract"] == "checked"


def test_the_fastest_peer_is_a_library_that_checks_the_contract() -> None:
    contest = codec.reading(codec.agent_message(), orjson, jsonschema_rs)
    samples = {name: np.full((4, 2), 100.0 + number) for number, name in enumerate(contest.contenders)}
    samples["cloudevents"] -= 100  # checks nothing
    result = Comparison(name="made", samples=samples, baseline=KIT)
    assert contest.fastest_peer(result) == "msgspec, a Struct"
    samples[codec_peers.REFERENCE] -= 50
    assert contest.fastest_peer(result) == codec_peers.REFERENCE


def test_a_goal_that_is_missed_or_undecided_has_its_reason_and_no_other() -> None:
    def made(**medians: tuple[float, ...]) -> Comparison:
        names = {"kit": KIT, "hand": BY_HAND, "bare": codec.UNCHECKED, "listed": codec.JSON_LIST}
        samples = {names[key]: np.repeat(np.array(values)[:, None], 2, axis=1) for key, values in medians.items()}
        return Comparison(name="made", samples=samples, baseline=KIT)

    fast = made(kit=(100, 100), hand=(400, 400), bare=(200, 200), listed=(2000, 2000))
    slow = made(kit=(100, 200), hand=(100, 100), bare=(50, 50), listed=(500, 500))
    peers = (BY_HAND, BY_HAND)
    reached = [*codec.goals(fast, fast, peers), *codec.document_goals(fast, fast)]
    assert codec.reasons(reached) == "every goal is reached"
    rows = [*codec.goals(slow, slow, peers), *codec.document_goals(slow, slow)]
    lines = codec.reasons(rows).splitlines()
    assert [line.split(" (")[0] for line in lines] == [row.target.name for row in rows if not row.met]
    assert "undecided" in lines[0]
    assert "the parts of a reading" in lines[2]


def test_messages_of_a_size_have_it_in_either_kind_of_text() -> None:
    result = codec.sizes(10_000, orjson).run(rounds=1, samples=1)
    assert "decode, kit, ASCII" in result.samples
    assert len(codec.agent_message(10_000)["content"].encode()) in range(9_990, 10_001)
