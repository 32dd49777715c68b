"""A lab starts everything, and everything it started ends with it; two kernels, two labs and two cells get along."""

from __future__ import annotations

import asyncio
import json
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from samples import eventually, sample
from standing_still import frozen

import kit
from kit import cells
from kit.catalogue import AGENT_MESSAGE, AGENT_TASKS, RAG_QUERIES, RAG_STATUS
from kit.errors import ConfigurationError, ConnectError, NoResponders, StoreInUse
from kit.lab import components, session
from kit.lab.session import Lab
from kit.nats.server import Server

CONTRACTS = Path(__file__).parent.parent / "data" / "contracts"
FORBIDDEN = ("nats", "opentelemetry.sdk", "litellm", "lancedb", "pandas", "numpy", "matplotlib", "orjson")


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with kit.start("acme", tenants=("globex",)) as started:
        yield started


def _data(message_type: str) -> dict[str, Any]:
    """The smallest valid data of a message type."""
    body = json.loads((CONTRACTS / message_type / "1.0" / "valid" / "minimal.json").read_text())
    data: dict[str, Any] = body["data"]
    return data


async def _ask_itself(lab: Lab) -> Any:
    question = {**_data("rag_query"), "tenant_id": lab.tenant_id}

    async def answer(message: Any) -> dict[str, Any]:
        return {**_data("rag_result"), "answer": f"for {message.tenant_id}"}

    worker = await lab.bus.serve(RAG_QUERIES, answer)
    try:
        return await lab.bus.request(RAG_QUERIES, question, timeout=10.0)
    finally:
        await worker.stop()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_lab_carries_a_message_and_shows_it(lab: Lab) -> None:
    message = await _ask_itself(lab)
    assert message.data["answer"] == "for acme"
    assert RAG_QUERIES.send_span.name in set(lab.spans()["name"])
    assert not lab.metrics().empty
    assert RAG_QUERIES.handle_span.name in str(lab.trace())
    assert lab.waterfall() is not None
    assert list(lab.logs().columns)
    assert repr(lab) == "Lab of acme, embedded server"


async def test_what_was_recorded_stays_readable_after_the_end(lab: Lab) -> None:
    await _ask_itself(lab)
    assert lab.server is not None
    pid = lab.server.pid
    began = time.monotonic()
    await asyncio.gather(lab.stop(), lab.stop())
    await lab.stop()
    assert time.monotonic() - began < session.STOP_SECONDS
    assert not _alive(pid)
    assert repr(lab) == "Lab of acme, stopped"
    assert RAG_QUERIES.send_span.name in set(lab.spans()["name"])


async def test_a_second_lab_is_another_world(lab: Lab) -> None:
    async with kit.start("acme") as other:
        assert other.url != lab.url
        await _ask_itself(lab)
        with pytest.raises(NoResponders):
            await other.bus.request(RAG_QUERIES, _data("rag_query"))
        assert RAG_QUERIES.handle_span.name not in set(other.spans()["name"])
    await _ask_itself(lab)


async def test_other_tenants_have_buses_of_their_own(lab: Lab) -> None:
    globex, initech = await lab.tenant("globex"), await lab.tenant("initech")
    assert (globex.tenant_id, initech.tenant_id) == ("globex", "initech")
    assert await lab.tenant("globex") is globex
    heard = asyncio.Event()

    async def hear(_: Any) -> None:
        heard.set()

    await lab.bus.subscribe(RAG_STATUS, hear)
    await globex.publish(RAG_STATUS, {**_data("rag_status"), "tenant_id": "globex"})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(heard.wait(), 0.3)


async def test_a_store_is_kept_and_belongs_to_one_lab(tmp_path: Path) -> None:
    async with kit.start("acme", store=tmp_path / "store") as lab:
        store = await lab.bus.store("notes")
        await store.put("key", b"value")
        with pytest.raises(StoreInUse, match="is in use by process"):
            await kit.start("acme", store=tmp_path / "store")
    async with kit.start("acme", store=tmp_path / "store") as lab:
        entry = await (await lab.bus.store("notes")).get("key")
        assert entry is not None
        assert b"value" in (entry, getattr(entry, "value", None))


async def test_nats_url_replaces_the_embedded_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    who = server.credentials("globex")
    for name, value in (("NATS_URL", server.url), ("NATS_USER", who.user), ("NATS_PASSWORD", who.password)):
        monkeypatch.setenv(name, value)
    async with kit.start("globex") as lab:
        assert lab.server is None
        assert repr(lab) == "Lab of globex, given server"
        await _ask_itself(lab)
        acme = await lab.tenant("acme", credentials=server.credentials("acme"))
        with pytest.raises(NoResponders):
            await acme.request(RAG_QUERIES, _data("rag_query"))
    assert server.pid


async def test_components_elsewhere_are_not_served_here(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(components, "project_root", lambda: tmp_path)
    from kit.components.gateway import RateLimit
    from kit.components.gateway.settings import Settings
    from kit.lab.cli.console import settings

    who = server.credentials("acme")
    for name, value in (("NATS_URL", server.url), ("NATS_USER", who.user), ("NATS_PASSWORD", who.password)):
        monkeypatch.setenv(name, value)
    async with kit.start("acme", elsewhere=True) as lab:
        models = {"free": {"model": "m", "api_key": "S3CRET"}}
        await lab.serve("gateway", "rag", models=models, rate_limits={"*": RateLimit(requests=7)}, timeout=7)
        assert "S3CRET" not in repr(Settings(models=models))
        assert (lab.server, lab.services, lab.lancedb) == (None, {}, None)
        with pytest.raises(NoResponders):
            await lab.bus.request(RAG_QUERIES, _data("rag_query"), timeout=10.0)
        with pytest.raises(ConfigurationError, match="no component 'nope'"):
            await lab.serve("nope")
    printed = capsys.readouterr().out
    assert "S3CRET" not in printed
    told = shlex.split(printed.split(": ", 1)[1])
    assert told[:6] == ["kit", "worker", "gateway", "rag", "--tenant", "acme"]
    assert settings([told[7]], option="--setting") == {"timeout": 7}
    assert told[8] == "--settings"
    written = tmp_path / ".kit" / "settings" / "gateway-rag-acme.json"
    assert told[9] == str(written)
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / ".kit" / "settings").stat().st_mode) == 0o700
    assert json.loads(written.read_text()) == {
        "models": {"free": {"model": "m", "api_key": "S3CRET"}},
        "rate_limits": {"*": {"requests": 7, "window": 60.0, "wait": False}},
    }


async def test_what_is_kept_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.components import database_uri
    from kit.nats.config import private_folder

    monkeypatch.chdir(tmp_path)
    for variable in ("KIT_LANCEDB_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / ".kit").mkdir(mode=0o755)  # of an earlier version
    database_uri("acme")
    async with Server(tmp_path / ".kit" / "nats"):
        for folder in (tmp_path / ".kit", tmp_path / ".kit" / "lancedb", tmp_path / ".kit" / "nats"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    (tmp_path / "open").mkdir(mode=0o755)
    private_folder(tmp_path / "open" / "made" / "below")
    assert [stat.S_IMODE((tmp_path / place).stat().st_mode) for place in ("open", "open/made")] == [0o755, 0o700]


async def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is refused"):
        kit.start("Not An Id")
    with pytest.raises(ConfigurationError, match="a store belongs to the embedded server"):
        kit.start("acme", store=tmp_path, url="nats://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="a store belongs to the embedded server"):
        kit.start("acme", store=tmp_path, elsewhere=True)
    with pytest.raises(ConnectError):
        await kit.start("acme", url="nats://127.0.0.1:1")
    assert "write `lab = await kit.start" in repr(kit.start("acme"))


async def test_an_interrupted_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []
    connecting = asyncio.Event()

    async def hang(self: Lab, *_: Any) -> Any:
        assert self.server is not None
        pids.append(self.server.pid)
        connecting.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(Lab, "_connect", hang)
    task = asyncio.ensure_future(kit.start("acme"))
    await asyncio.wait_for(connecting.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _alive(pids[0])


async def test_what_does_not_end_does_not_keep_the_rest_from_ending(lab: Lab) -> None:
    async def fail() -> None:
        raise RuntimeError("stuck")

    async def hang() -> None:
        await asyncio.sleep(60)

    assert lab.server is not None
    pid = lab.server.pid
    lab._ends += [("a", fail), ("b", hang)]
    with pytest.raises(ExceptionGroup) as caught:
        await lab.stop(timeout=1.0)
    assert [str(fault) for fault in caught.value.exceptions] == ["b did not end within 1 s", "stuck"]
    assert not _alive(pid)
    lab._stopping = asyncio.ensure_future(asyncio.sleep(0))  # the fixture's own stop has nothing left to end


async def test_a_server_that_stands_still_does_not_keep_a_lab_from_stopping(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """All that would say goodbye to it, worker by worker, is told once that it does not answer."""
    await lab.serve("prompts", "llmops")
    for _ in range(5):
        await lab.bus.work(AGENT_TASKS, lambda _: sample("agent_result"))
    assert lab.server is not None
    async with frozen(lab.server):
        started = time.monotonic()
        await lab.stop()
        assert time.monotonic() - started < session.STOP_SECONDS
    assert sum("does not answer" in record.message for record in caplog.records) == 1
    assert "without unsubscribing" in caplog.text


async def test_running_a_cell_again_stops_what_it_started_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cells.Cell("cell-1", "run 1")
    monkeypatch.setattr(cells, "current_cell", lambda: cell)
    first, beside = await kit.start("acme"), await kit.start("acme")  # two in one run of the cell
    monkeypatch.setattr(cells, "current_cell", lambda: cells.Cell("cell-2", "run 2"))
    other = await kit.start("acme")
    assert not first.stopped
    monkeypatch.setattr(cells, "current_cell", lambda: cells.Cell("cell-1", "run 3"))
    again = await kit.start("acme")
    assert (first.stopped, beside.stopped, other.stopped, again.stopped) == (True, True, False, False)
    await other.stop()
    await again.stop()


async def test_running_a_cell_again_replaces_what_it_subscribed_served_and_worked_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    async def run(execution: int) -> None:
        """Run one cell once more, with handlers defined anew, as a notebook does."""
        monkeypatch.setattr(cells, "current_cell", lambda: cells.Cell("cell-1", f"run {execution}"))

        async def hear(message: Any) -> None:
            heard.append(f"hear {execution}")

        async def answer(message: Any) -> dict[str, Any]:
            return {**_data("rag_result"), "answer": f"run {execution}"}

        async def work(message: Any) -> dict[str, Any]:
            return {**_data("agent_result"), "output": {"by": f"run {execution}"}}

        await lab.bus.subscribe(AGENT_MESSAGE, hear)
        await lab.bus.subscribe(AGENT_MESSAGE, lambda message: heard.append(f"plain {execution}"))
        await lab.bus.serve(RAG_QUERIES, answer)
        await lab.bus.work(AGENT_TASKS, work)
        await lab.serve("prompts")

    monkeypatch.setattr(cells, "current_cell", lambda: cells.Cell("cell-2", "run 0"))
    await lab.bus.subscribe(AGENT_MESSAGE, lambda message: heard.append("another cell"))
    for execution in (1, 2, 3):
        await run(execution)
    monkeypatch.setattr(cells, "current_cell", lambda: None)
    await lab.bus.publish(AGENT_MESSAGE, _data("agent_message"))
    await lab.bus.request(RAG_QUERIES, _data("rag_query"))
    await eventually(lambda: len(heard) >= 3)
    assert sorted(heard) == ["another cell", "hear 3", "plain 3"]
    for _ in range(5):
        assert (await lab.bus.request(RAG_QUERIES, _data("rag_query"))).data["answer"] == "run 3"
        assert (await lab.bus.run(AGENT_TASKS, _data("agent_task"))).data["output"] == {"by": "run 3"}
    assert {name: len(services) for name, services in lab.services.items()} == {"prompts": 1}


@pytest.mark.parametrize(("drain", "done"), [(0.1, []), (8.0, ["done"])])
async def test_a_lab_that_stops_lets_jobs_finish_for_as_long_as_it_is_told(drain: float, done: list[str]) -> None:
    ended: list[str] = []
    began = asyncio.Event()

    async def work(_: Any) -> dict[str, Any]:
        began.set()
        await asyncio.sleep(0.8)
        ended.append("done")
        return _data("agent_result")

    async with kit.start("acme") as lab:
        await lab.bus.work(AGENT_TASKS, work)
        await lab.bus.enqueue(AGENT_TASKS, _data("agent_task"))
        await began.wait()
        await lab.stop(drain + session.CLOSE_SECONDS)
    assert ended == done


def test_outside_a_kernel_there_is_no_cell() -> None:
    assert cells.current_cell() is None


# --- components -------------------------------------------------------------------------------------------------


class _Service:
    def __init__(self) -> None:
        self.stopped = False

    async def stop(self, timeout: float = 10.0) -> None:
        self.stopped = True


class _Room:
    """A component as `kit.lab.components` sees it."""

    def __init__(self, fail: bool = False) -> None:
        self.service, self.settings, self._fail = _Service(), {}, fail

    async def serve(self, bus: Any, *, concurrency: int = 1, model: str = "m") -> _Service:
        if self._fail:
            raise RuntimeError("no luck")
        self.settings = {"concurrency": concurrency, "model": model}
        return self.service


async def test_components_are_served_with_their_settings_and_stopped(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = {"a": _Room(), "b": _Room()}
    monkeypatch.setattr(components, "_load", rooms.__getitem__)
    await lab.serve("a", "b", concurrency=3)
    assert lab.logs()["body"].tolist() == ["serving a", "serving b"]
    assert rooms["b"].settings == {"concurrency": 3, "model": "m"}
    assert repr(lab) == "Lab of acme, embedded server, serving a, b"
    with pytest.raises(ConfigurationError, match=r"no setting 'colour'; there are: a: concurrency, model"):
        await lab.serve("a", colour="red")
    await lab.stop()
    assert all(room.service.stopped for room in rooms.values())


async def test_components_that_started_are_stopped_when_one_does_not(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = {"good": _Room(), "bad": _Room(fail=True)}
    monkeypatch.setattr(components, "_load", rooms.__getitem__)
    with pytest.raises(RuntimeError, match="no luck"):
        await lab.serve("good", "bad")
    assert rooms["good"].service.stopped
    assert lab.services == {}


def test_components_are_listed_without_being_loaded() -> None:
    assert components.names()
    assert all(components.summary(name) for name in components.names())
    with pytest.raises(ConfigurationError, match="no component 'nope'; there are"):
        components._load("nope")


def test_a_component_says_which_settings_it_takes() -> None:
    name = components.names()[0]
    assert "bus" not in components.parameters(name)


# --- lightness and kernels --------------------------------------------------------------------------------------


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_importing_kit_loads_nothing_heavy() -> None:
    loaded = _python("import sys, kit, kit.catalogue, kit.errors; print('\\n'.join(sys.modules))").splitlines()
    assert [name for name in FORBIDDEN if name in loaded] == []


def test_importing_kit_takes_at_most_60_ms_more_than_python_itself() -> None:
    def took(code: str) -> float:
        began = time.perf_counter()
        _python(code)
        return time.perf_counter() - began

    rounds = [took("import kit") - took("pass") for _ in range(9)]
    assert min(rounds) < 0.060, f"{min(rounds) * 1000:.0f} ms in the best of 9 rounds"


async def test_a_kernel_survives_an_interrupt_and_a_cell_run_twice() -> None:
    """In a real kernel: the server outlives an interrupted cell; the same cell again stops the lab before."""
    from jupyter_client.manager import AsyncKernelManager

    manager = AsyncKernelManager(kernel_name="python3")
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()

    async def run(code: str, *, interrupt_after: float | None = None) -> str:
        texts: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            texts.append(str(message["content"].get("text") or message["content"].get("ename") or ""))

        done = asyncio.ensure_future(client.execute_interactive(code, output_hook=hook, timeout=60))
        if interrupt_after is not None:
            await asyncio.sleep(interrupt_after)
            await manager.interrupt_kernel()
        await done
        return "".join(texts).strip()

    try:
        await client.wait_for_ready(timeout=60)
        start = "import kit\nlab = await kit.start('acme')\nlabs = [*globals().get('labs', []), lab]"
        assert await run(start) == ""
        assert await run(start) == ""
        assert await run("print([each.stopped for each in labs])") == "[True, False]"
        interrupted = await run("import asyncio; await asyncio.sleep(60)", interrupt_after=1.0)
        assert interrupted in ("KeyboardInterrupt", "CancelledError")
        hear = "await lab.bus.subscribe(AGENT_MESSAGE, lambda m: heard.append(m))"
        hear += "; print(sum(worker._stopping is None for worker in lab.bus._workers))"
        assert await run("from kit.catalogue import AGENT_MESSAGE; heard = []") == ""
        assert (await run(hear), await run(hear), await run("None; " + hear)) == ("1", "1", "2")
        notes = "store = await lab.bus.store('notes')\nawait store.put('k', b'v')\nprint('alive')"
        assert await run(notes) == "alive"
        assert await run("await lab.stop(); print(lab)") == "Lab of acme, stopped"
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
