"""`kit server --print-config` configures real servers, and one `kit worker` serves several tenants on them."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from samples import sample

import kit
from kit.catalogue import AGENT_TASKS, PROMPT_CONTEXT
from kit.components.prompts.store import PromptStore
from kit.errors import AccountTaken, ConnectError
from kit.nats.child import find_binary

KIT = (sys.executable, "-m", "kit")


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def running(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def configured(tmp_path: Path, port: int, *more: str) -> tuple[Path, dict[str, str]]:
    """The configuration that the command writes, and the variables that it names for a tenant's clients."""
    command = ["server", "--print-config", "--tenants", "acme,globex", "--port", str(port), "--store", str(tmp_path)]
    written = subprocess.run(
        [*KIT, *command, *more], capture_output=True, text=True, check=True, timeout=60
    )  # fmt: skip
    path = tmp_path / "nats.conf"
    path.write_text(written.stdout)
    exported = shlex.split(written.stderr.splitlines()[0])
    assert exported[0] == "export"
    variables = dict(word.split("=", 1) for word in exported[1:])
    assert stat.S_IMODE(Path(variables["NATS_CREDS"]).stat().st_mode) == 0o600
    assert not any(
        line.split("=")[1] in written.stderr for line in Path(variables["NATS_CREDS"]).read_text().splitlines()[2:]
    )
    return path, variables


async def connected(tenant: str) -> Any:
    """A lab of the tenant, as soon as the server answers."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await kit.start(tenant)
            except ConnectError as error:
                if isinstance(error, AccountTaken):
                    raise
                await asyncio.sleep(0.1)


async def test_one_worker_serves_both_tenants_of_a_configured_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    conf, variables = configured(tmp_path, port)
    text = conf.read_text()
    for expected in (
        "sync_interval",
        "2,200 instead of 10,100",
        "cert_file",
        "max_file",
        "system_account",
        "trust domain",
    ):
        assert expected in text
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("acme.env", "{tenant}.env"))
    with (
        running(str(find_binary()), "-c", str(conf), "-a", "127.0.0.1", cwd=tmp_path, stderr=subprocess.DEVNULL),
        running(*KIT, "worker", "prompts", "--tenants", "acme,globex", stdout=subprocess.PIPE) as worker,
    ):
        for tenant in ("acme", "globex"):
            async with await connected(tenant) as lab, PromptStore(lab.bus) as prompts:
                await prompts.create("whose", f"{tenant}'s {{{{ x }}}}", {"x": str}, label="production")
        assert worker.stdout is not None
        assert "serving prompts for acme, globex" in await asyncio.to_thread(worker.stdout.readline)
        for tenant in ("acme", "globex"):
            async with await connected(tenant) as lab:
                question = sample("prompt_context_request", tenant_id=tenant)
                await lab.bus.request(PROMPT_CONTEXT, question, timeout=10.0)
                async with PromptStore(lab.bus) as prompts:
                    assert (await prompts.get("whose")).template.startswith(tenant)
        monkeypatch.setenv("NATS_CREDS", variables["NATS_CREDS"])
        with pytest.raises(AccountTaken):
            await kit.start("globex")
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, 30) == 0


async def test_a_configured_cluster_keeps_what_is_acknowledged_on_three_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports, routes = free_ports(3), free_ports(3)
    conf, variables = configured(tmp_path, ports[0], "--hosts", ",".join(f"127.0.0.1:{route}" for route in routes))
    password = re.search(r"nats://route:([^@]+)@", conf.read_text())
    assert password is not None
    monkeypatch.setenv("NATS_URL", ",".join(f"nats://127.0.0.1:{port}" for port in ports))
    monkeypatch.setenv("NATS_CREDS", variables["NATS_CREDS"].replace("acme.env", "{tenant}.env"))
    with ExitStack() as servers:
        for number, (port, route) in enumerate(zip(ports, routes, strict=True)):
            listen = f"nats://route:{password[1]}@127.0.0.1:{route}"
            (tmp_path / f"n{number}").mkdir()
            own = ["-n", f"n{number}", "-a", "127.0.0.1", "-p", str(port), "--cluster", listen]
            started = running(
                str(find_binary()), "-c", str(conf), *own, cwd=tmp_path / f"n{number}", stderr=subprocess.DEVNULL
            )
            servers.enter_context(started)
        for tenant in ("acme", "globex"):
            async with await connected(tenant) as lab:
                await lab.bus.enqueue(AGENT_TASKS, sample("agent_task"), timeout=30.0)
                assert await lab.bus.backlog(AGENT_TASKS) == {None: 1}
                stream = await lab.bus.connection.jetstream().stream_info("AI_AGENT_TASKS")
                assert stream.config.num_replicas == 3


def test_the_configuration_without_a_store_stands_alone() -> None:
    written = subprocess.run(
        [*KIT, "server", "--print-config", "--tenants", "acme, globex"], capture_output=True, text=True, timeout=60,
        check=True, env={**os.environ},
    )  # fmt: skip
    assert written.stderr == ""
    assert len(set(re.findall(r'"password": "(\S+)"', written.stdout))) == 3
    assert (
        subprocess.run([*KIT, "server", "--print-config", "--tenants", "Not An Id"], capture_output=True).returncode
        == 2
    )
