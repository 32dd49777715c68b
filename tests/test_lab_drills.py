"""Fault drills: the ledger finds what was lost, stored twice or repeated, and a broken promise is told as broken."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.errors import ConfigurationError
from kit.lab import drills
from kit.lab.cli import main
from kit.lab.drills import DRILLS, Drill, Entry, Ledger, NotHere, Run, figures
from kit.lab.drills.faults import Proxy, eventually, fill
from kit.lab.drills.load import drained, send, under_load, with_lease, working


def entries(text: str) -> list[Entry]:
    """Entries written as ``at what id detail``, separated by commas."""
    return [Entry(float(at), what, id, detail) for at, what, id, detail in (one.split() for one in text.split(","))]


GOOD = "1 acked a 1,2 acked b 2,3 effect a 1,4 effect b 1"


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("5 left - 0", {"lost": 0, "stored_twice": 0, "repeated": 0, "left": 0, "errors": 0, "acked": 2}),
        ("5 acked c 3", {"lost": 1}),
        ("5 acked c 3,6 dead c -", {"lost": 0}),
        ("5 effect a 2", {"repeated": 1}),
        ("5 effect a 2,6 effect a 3", {"repeated": 1}),
        ("5 acked a 1", {"stored_twice": 0, "acked": 2}),  # acknowledged again as the same
        ("5 acked a 7", {"stored_twice": 1}),
        ("5 stored - 3", {"stored_twice": 1}),  # the queue holds one more than anybody sent
        ("5 stored - 3,5 error c DeadlineExceeded", {"stored_twice": 0, "errors": 1, "lost": 0}),
        ("5 left - 2", {"left": 2}),
        ("2.5 fault - -,5 back - -,7 acked c 3,8 effect c 1", {"first_ack": 2.0, "longest_gap": 5.0}),
        ("5 back - -", {"first_ack": float("inf")}),
    ],
)
def test_figures_find_what_went_wrong(more: str, found: dict[str, Any]) -> None:
    judged = figures(sorted(entries(f"{GOOD},{more}")))
    assert {name: getattr(judged, name) for name in found} == found


def test_a_queue_that_held_others_before_stored_nothing_twice() -> None:
    before = "1 acked a 41,1 acked b 42,3 effect a 1,4 effect b 1,5 stored - "
    assert [figures(entries(f"{before}{last}")).stored_twice for last in (42, 43)] == [0, 1]


def test_a_ledger_of_several_processes_is_merged_and_survives_a_kill(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from kit.lab.drills.ledger import Ledger
ledger = Ledger(Path({str(tmp_path)!r}))
ledger.note("effect", "a", 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with Ledger(tmp_path) as ledger:
        ledger.note("acked", "a", 1)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        ledger.note("left", detail=0)
        next(tmp_path.glob("*.ledger")).open("a").write("1.0 effect a")  # cut off in the middle of a line
        assert [(one.what, one.id) for one in ledger.entries()] == [("acked", "a"), ("effect", "a"), ("left", "-")]


# --- verdicts ---------------------------------------------------------------------------------------------------


def made(body: Any, **sizes: Any) -> Drill:
    return Drill(number="0", name="made-up", promise="none", how="", body=body, short=sizes)


async def test_a_drill_holds_when_all_its_figures_do() -> None:
    async def body(run: Run, size: int) -> None:
        run.figure("shown", size)
        run.expect("lost", 0)
        run.check("told", True)

    outcome = await made(body, size=3).run()
    assert (outcome.verdict, outcome.row()["figures"]) == ("holds", "3 shown, 0 lost, told")


@pytest.mark.parametrize(
    ("value", "bound"), [(1, {}), (3.0, {"most": 2.0}), (1, {"least": 2}), (3, {"least": 1, "most": 2})]
)
async def test_a_drill_is_broken_by_one_figure(value: float, bound: dict[str, float]) -> None:
    async def body(run: Run) -> None:
        run.expect("good", 0)
        run.expect("lost", value, **bound)

    outcome = await made(body).run()
    assert outcome.verdict == "broken"
    assert "✗" in outcome.row()["figures"]
    assert "lost (promised" in outcome.row()["figures"]


async def test_a_drill_is_broken_by_an_error_or_by_measuring_nothing() -> None:
    async def failing(run: Run) -> None:
        run.expect("good", 0)
        raise RuntimeError("no such luck")

    async def idle(run: Run) -> None:
        pass

    assert (await made(failing).run()).row()["verdict"] == "broken: RuntimeError: no such luck"
    assert (await made(idle).run()).verdict == "broken"


async def test_what_cannot_run_here_is_no_pass() -> None:
    async def body(run: Run) -> None:
        run.expect("good", 0)
        raise NotHere("no tmpfs")

    outcome = await made(body).run()
    assert outcome.row()["verdict"] == "not run here: no tmpfs"


async def test_a_time_that_was_missed_is_measured_once_more() -> None:
    tries: list[int] = []

    async def slow(run: Run) -> None:
        tries.append(1)
        run.expect("stop", 9.0 / len(tries), "s", most=5.0)

    assert (await made(slow).run()).verdict == "holds"
    assert len(tries) == 2


@pytest.mark.parametrize("sabotage", ["lose", "repeat"])
async def test_a_broken_promise_is_found_under_real_load(sabotage: str) -> None:
    """The handler forgets one of its effects, or has it twice: the drill of a perfect server breaks."""

    async def body(run: Run) -> None:
        row, good, done = with_lease(1.0), working(run.ledger), []

        async def handle(message: Any) -> Any:
            done.append(message)
            if len(done) != 5:
                return await good(message)
            for _ in range(2 if sabotage == "repeat" else 0):
                run.ledger.note("effect", message.message_id)
            return {"task_id": "t", "agent_id": "a", "status": "success", "timestamp": "2025-06-01T12:00:00Z"}

        async with run.lab() as lab, await lab.bus.work(row, handle):
            await send(run, lab.bus, row, count=20)
            await drained(run, lab.bus, row)
        run.expect_jobs()

    outcome = await made(body).run()
    assert outcome.verdict == "broken"
    broken = [figure.name for figure in outcome.figures if not figure.good]
    assert broken == [{"lose": "lost", "repeat": "repeated"}[sabotage]]


async def test_load_goes_on_until_its_block_ends(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        run = Run(tmp_path, ledger)
        async with (
            run.lab() as lab,
            await lab.bus.work(with_lease(1.0), working(ledger), concurrency=4),
            under_load(run, lab.bus, with_lease(1.0), senders=2, given=True),
        ):
            assert await eventually(lambda: figures(ledger.entries()).acked > 50)
        found = figures(ledger.entries())
    assert (found.lost, found.repeated, found.left, found.errors, found.stored_twice) == (0, 0, 0, 0, 0)


# --- faults -----------------------------------------------------------------------------------------------------


async def test_a_proxy_cuts_what_goes_through_it() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(5))
        await writer.drain()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
        writer.write(b"hello")
        assert await reader.read(5) == b"hello"
        proxy.cut()
        ended = await asyncio.gather(asyncio.wait_for(reader.read(5), 5.0), return_exceptions=True)
        assert ended == [b""] or isinstance(ended[0], ConnectionError)
    server.close()


def test_a_disk_is_filled_but_for_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10_000

    monkeypatch.setattr("kit.lab.drills.faults.shutil.disk_usage", lambda _: Usage)
    assert fill(tmp_path, leave=4_000).stat().st_size == 6_000


# --- the command ------------------------------------------------------------------------------------------------


def test_every_drill_of_the_table_is_there() -> None:
    numbers = {
        "1",
        "1b",
        "1c",
        "1d",
        "2",
        "2b",
        "3",
        "3c",
        "4",
        "4c",
        "5",
        "6",
        "7",
        "8",
        "9",
        "10",
        "11",
        "12",
        "16",
        "17",
    }
    assert {one.number for one in DRILLS.values()} == numbers
    assert all(
        one.promise and one.how and one.short.keys() >= {*one.long} - {"lease", "pause"} for one in DRILLS.values()
    )
    assert [one.number for one in drills.choose_drills([])][:2] == ["1", "1"]
    with pytest.raises(ConfigurationError, match="no drill no-such"):
        drills.choose_drills(["no-such"])


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Drill]:
    """Three drills in the place of all, of which one breaks its promise and one cannot run."""

    async def body(run: Run, lost: int) -> None:
        if lost < 0:
            raise NotHere("no disk")
        run.expect("lost", lost)

    fake = {
        name: Drill(number=str(number), name=name, promise="0 lost", how="Try", body=body, short={"lost": lost})
        for number, (name, lost) in enumerate([("good", 0), ("bad", 2), ("absent", -1)])
    }
    monkeypatch.setattr("kit.lab.drills.drill.DRILLS", fake)
    return fake


@pytest.mark.parametrize(
    ("names", "code"), [(["good"], 0), (["bad"], 1), ([], 1), (["good", "absent"], 0), (["absent"], 1), (["other"], 2)]
)
def test_the_exit_code_says_whether_promises_held(
    pretended: dict[str, Drill], names: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drills", *names]) == code
    told = capsys.readouterr()
    if code < 2:
        assert ("not run here: no disk" in told.out) == (names != ["good"] and names != ["bad"])
        assert f"[1/{len(names) or 3}] " in told.err


def test_results_are_json_and_are_kept_beside_those_of_before(
    pretended: dict[str, Drill], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "drills.json"
    for name, verdict in (("good", "holds"), ("bad", "broken")):
        main(["drills", name, "--json", "--output", str(kept)])
        assert [row["verdict"] for row in json.loads(capsys.readouterr().out)] == [verdict]
    body = json.loads(kept.read_text())
    assert [(row["drill"], row["values"]) for row in body["drills"]] == [("good", {"lost": 0}), ("bad", {"lost": 2})]
    assert body["environment"]["cores"] == len(os.sched_getaffinity(0))
    assert list(drills.table(body["drills"])["verdict"]) == ["holds", "broken"]


def test_the_list_shows_promises(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drills", "--list"]) == 0
    told = capsys.readouterr().out
    assert all(one.name in told and one.promise in told for one in DRILLS.values())
