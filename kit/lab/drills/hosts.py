"""Drills of processes: kernels that are killed or interrupted, cells that are run again, scripts that forget."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Self

from kit.lab.drills.drill import NotHere, Run, drill
from kit.lab.drills.faults import Processes, eventually, lives, within

_LAB = """
import asyncio, json, os, sys, kit
from kit.catalogue import AGENT_TASKS
os.environ.pop("NATS_URL", None)
TASK = {"task_id": "t", "task_type": "a", "parameters": {}, "timestamp": "2025-06-01T12:00:00Z"}
async def main():
    lab = await kit.start()
    print(json.dumps({"pid": lab.server.pid, "store": str(lab.server.store)}), flush=True)
"""
# What becomes of a process that has a lab, and whether it is killed.
_ENDS: dict[str, tuple[str, bool]] = {
    "idle, killed": ("    await asyncio.sleep(60)", True),
    "busy, killed": ("    while True: await lab.bus.enqueue(AGENT_TASKS, TASK)", True),
    "awaiting, killed": ("    await (await lab.bus.enqueue(AGENT_TASKS, TASK)).result(60)", True),
    "forgets stop": ("    pass", False),
    "raises": ("    raise ValueError", False),
    "exits": ("    sys.exit(3)", False),
    "leaves by os._exit": ("    os._exit(3)", False),
    "forks, child goes on": ("    os.fork() or os.execvp('sleep', ['sleep', '5'])", False),
}


async def _nothing_left(run: Run, ends: list[str], times: int) -> None:
    """Start a process a way of ending, end it, and look for what it left behind."""
    async with Processes(run) as processes:

        async def one(end: str) -> tuple[bool, bool]:
            code, killed = _ENDS[end]
            process = processes.start("-c", f"{_LAB}{code}\nasyncio.run(main())")
            text = await processes.said(process, "}\n")
            found = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
            if killed:
                await asyncio.sleep(0.2)
                process.kill()
            await asyncio.to_thread(process.wait, 20.0)
            store = Path(found["store"])
            gone = await eventually(lambda: not lives(found["pid"]) and not store.exists(), 3.0)
            return lives(found["pid"]), not gone

        left = []
        for _ in range(times):
            left += await asyncio.gather(*(one(end) for end in ends))
    run.figure("processes", len(left))
    run.expect("servers left", sum(server for server, _ in left))
    run.expect("servers or stores left", sum(store for _, store in left))


_GONE = "no server and no temporary store left 3 s later"


@drill("9", _GONE, short={"times": 1}, long={"times": 4})
async def kernel_killed(run: Run, times: int) -> None:
    """SIGKILL processes with a lab: idle, busy, awaiting a result."""
    await _nothing_left(run, [end for end, (_, killed) in _ENDS.items() if killed], times)


@drill("17", _GONE, short={"times": 1}, long={"times": 4})
async def scripts_forget(run: Run, times: int) -> None:
    """Run scripts that forget to stop their lab, raise, exit, or fork."""
    await _nothing_left(run, [end for end, (_, killed) in _ENDS.items() if not killed], times)


class Kernel:
    """A Jupyter kernel whose cells are executed, interrupted, and executed again."""

    async def __aenter__(self) -> Self:
        try:
            from jupyter_client.manager import AsyncKernelManager
        except ImportError:
            raise NotHere("jupyter_client is not installed") from None
        self._manager: Any = AsyncKernelManager(kernel_name="python3")
        await self._manager.start_kernel()
        self._client: Any = self._manager.client()
        self._client.start_channels()
        await self._client.wait_for_ready(timeout=60)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._client.stop_channels()
        await self._manager.shutdown_kernel(now=True)

    async def run(self, code: str, *, cell: str = "", interrupt: float | None = None) -> str:
        """Execute a cell, and return what it printed, or the name of its error."""
        message = self._client.session.msg(
            "execute_request",
            {
                "code": code,
                "silent": False,
                "store_history": False,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": True,
            },
            metadata={"cellId": cell or code},
        )
        self._client.shell_channel.send(message)
        if interrupt is not None:
            asyncio.get_running_loop().call_later(
                interrupt, lambda: asyncio.ensure_future(self._manager.interrupt_kernel())
            )
        said = ""
        async with asyncio.timeout(30.0):
            while True:
                got = await self._client.get_iopub_msg()
                if got["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                    continue
                if got["msg_type"] == "stream" and got["content"]["name"] == "stdout":
                    said += got["content"]["text"]
                elif got["msg_type"] == "error":
                    said = got["content"]["ename"]
                elif got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
                    return said.strip()


_START = "import kit, asyncio, time, os; os.environ.pop('NATS_URL', None); lab = await kit.start()"
_CHECK = """
from kit.catalogue import AGENT_TASKS
from kit.lab.drills.load import TASK, RESULT
async def work(message): return RESULT
async with await lab.bus.work(AGENT_TASKS, work):
    print((await lab.bus.run(AGENT_TASKS, TASK, timeout=10)).data["status"])
"""
_WAITING = {
    "a result": "await (await lab.bus.enqueue(AGENT_TOOLS, TOOL)).result(60)",
    "enqueue": "while True: await lab.bus.enqueue(AGENT_TOOLS, TOOL)",
    "busy": "while True: time.sleep(0.01)",
    "kit.start": "while True: other = await kit.start(); await other.stop()",
}


@drill(
    "9",
    "every next cell works; a cell ends ≤ 3 s after the interrupt; 1 server",
    short={"times": 1},
    long={"times": 8},
)
async def cells_interrupted(run: Run, times: int) -> None:
    """Interrupt cells that wait, send, compute or start a lab; run the next cell."""
    failed, slowest, tried = 0, 0.0, 0
    async with Kernel() as kernel:
        await kernel.run(_START)
        await kernel.run("from kit.catalogue import *; from kit.lab.drills.load import TOOL")
        for number in range(times):
            for code in _WAITING.values():
                seconds, _ = await within(kernel.run(code, interrupt=0.3 + 0.07 * (number % 5)))
                slowest, tried = max(slowest, seconds - 0.3 - 0.07 * (number % 5)), tried + 1
                failed += await kernel.run(_CHECK) != "success"
        servers = await kernel.run("from kit.lab.drills.faults import *\nprint(len(nats_below(os.getpid())))")
    run.figure("interrupts", tried)
    run.expect("next cells that failed", failed)
    run.expect("slowest end", slowest, "s", most=3.0)
    run.expect("servers", int(servers) if servers.isdigit() else -1, least=1, most=1)


_AGAIN = {
    "lab": _START,
    "subscribe": "from kit.catalogue import AGENT_MESSAGE\nheard = globals().get('heard', [])\n"
    "async def hear(message): heard.append(1)\nawait lab.bus.subscribe(AGENT_MESSAGE, hear)",
}


@drill("9", "one server, one subscriber, whatever is run again; a store in use is refused by name ≤ 3 s",
       short={"times": 3}, long={"times": 10})  # fmt: skip
async def cells_run_again(run: Run, times: int) -> None:
    """Run the cell that starts a lab and the cell that subscribes again and again; use one store from two kernels."""
    store = f"import kit; kept = await kit.start(store={str(run.folder / 'store')!r})"
    async with Kernel() as kernel, Kernel() as other:
        for name, code in _AGAIN.items():
            for _ in range(times):
                await kernel.run(code, cell=name)
        heard = await kernel.run(
            "from kit.lab.drills.load import NOTE\nawait lab.bus.publish(AGENT_MESSAGE, NOTE)\n"
            "await asyncio.sleep(0.5)\nprint(len(heard))"
        )
        servers = await kernel.run("from kit.lab.drills.faults import *\nprint(len(nats_below(os.getpid())))")
        await kernel.run(store)
        seconds, refused = await within(other.run(store))
    run.expect("servers", int(servers) if servers.isdigit() else -1, least=1, most=1)
    run.expect("handled", int(heard) if heard.isdigit() else -1, "×", least=1, most=1)
    run.check("store in use", refused == "StoreInUse")
    run.expect("told after", seconds, "s", most=3.0)
