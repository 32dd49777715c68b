"""Tools over the bus: what is known of them, how an agent calls one, and how a failure comes back.

Every tool that an executor serves has a record in JetStream KV (bucket ``agent_tools``): its description and the JSON
Schema of its arguments, as a model is told. Executors of a tenant share one queue and should serve the same tools.

A call ends within its caller's deadline: with the output, or with a typed error. When its executor dies in the middle,
another one takes the call over once nothing was heard of the first for the row's ``policy.ack_wait`` (10 s), and runs
the tool again; is that too late, or is there no other, the caller gets ``ToolTimeout`` at its deadline, and nobody
begins the call afterwards. A tool whose effect must not double has to see to that itself.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import AGENT_TOOLS
from kit.components.agents.errors import ArgumentsRefused, ToolFailed, ToolTimeout, UnknownTool, tool_error
from kit.errors import BusError, DeadlineExceeded, JobDead, NotStored
from kit.nats.ids import token

if TYPE_CHECKING:
    import pandas as pd

    from kit.nats.bus import Bus

BUCKET = "agent_tools"


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolRecord:
    """What is known of a tool that somebody serves.

    Attributes:
        parameters: JSON Schema of its arguments.
        timeout: seconds that one call may take.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    timeout: float

    def document(self) -> dict[str, Any]:
        """Return it as it is kept."""
        return {
            "name": self.name, "description": self.description, "parameters": dict(self.parameters),
            "timeout": self.timeout,
        }  # fmt: skip

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise ArgumentsRefused, with path and rule, unless the arguments fit the schema."""
        try:
            fault = codec.ForeignSchema(self.parameters).fault(dict(arguments))
        except codec.CodecError as error:
            raise ArgumentsRefused(self.name, f"the arguments cannot be checked: {error.reason}") from None
        if fault is not None:
            path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault.declared)
            raise ArgumentsRefused(self.name, f"{path} breaks the rule '{fault.rule}'" if fault.rule else fault.reason)


async def find_tool(bus: Bus, name: str) -> ToolRecord:
    """Return what is known of a tool.

    Raises:
        UnknownTool: nobody serves one of this name.
    """
    entry = await (await bus.store(BUCKET)).get(token(name))
    if entry is None or entry.value is None:
        raise UnknownTool(name)
    return ToolRecord(**codec.loads(entry.value))


async def register_tool(bus: Bus, record: ToolRecord) -> None:
    """Make a tool known to every agent of the tenant."""
    await (await bus.store(BUCKET)).put(token(record.name), codec.dumps(record.document()))


async def tools_table(bus: Bus) -> pd.DataFrame:
    """Return the tools that are served over the bus, by name, with their arguments."""
    import pandas as pd

    store = await bus.store(BUCKET)
    found = [codec.loads(entry.value) for key in await store.keys() if (entry := await store.get(key)) and entry.value]
    rows = [(tool["name"], ", ".join(tool["parameters"].get("properties", {})), tool["description"]) for tool in found]
    return pd.DataFrame(sorted(rows), columns=["tool", "arguments", "description"])


async def call_tool(
    bus: Bus,
    agent_id: str,
    name: str,
    arguments: Mapping[str, Any],
    *,
    timeout: float = 30.0,
    message_id: str | None = None,
    **ids: str | None,
) -> Any:
    """Call a tool that somebody serves over the bus, and return its output: any JSON value.

    Args:
        agent_id: who calls.
        timeout: seconds until the answer is here; nobody waits for the tool any more then.
        message_id: called again under the same id, it is the same call and the tool runs once.
        ids: ``session_id``, ``task_id``, ``user_id`` and ``tool_call_id`` that the request should carry.

    Raises:
        UnknownTool, ArgumentsRefused, ToolFailed, ToolTimeout: as they say.
    """
    request: dict[str, Any] = {
        "request_id": uuid.uuid4().hex, "agent_id": agent_id, "tool_name": name, "arguments": dict(arguments),
        "timeout": timeout, "timestamp": codec.now(), **{key: value for key, value in ids.items() if value},
    }  # fmt: skip
    try:
        answered = await bus.run(AGENT_TOOLS, request, timeout=timeout, message_id=message_id)
    except JobDead as error:
        raise tool_error(name, error.error_type, error.detail) from error
    except DeadlineExceeded as error:
        raise ToolTimeout(name, f"not done within {timeout:g} s") from error
    except (BusError, NotStored) as error:
        raise ToolFailed(name, f"it could not be called: {type(error).__name__}") from error
    return answered.data.get("output")


def call_id(run_id: str, name: str, arguments: Mapping[str, Any], again: int) -> str:
    """Return the id of a call in a run that may be repeated: the same tool, arguments and turn give the same id."""
    content = codec.dumps([run_id, name, dict(sorted(arguments.items())), again])
    return f"tool-{hashlib.sha256(content).hexdigest()[:48]}"
