"""What the agents refuse, and how they fail.

    ComponentError
    └── AgentError
        ├── AgentFailed               a run ended without an answer
        │   ├── ModelFailed           the gateway gave no answer; says why
        │   ├── RunTimeout            the run was not done within its deadline
        │   ├── StateConflict         another run changed the same value of the session's state
        │   └── StepFailed            a component that the answer needs is missing, refused or failed; says which
        ├── SessionRefused            a session that is another user's
        ├── MemoryRefused             something that cannot be remembered, or not yet be looked for
        │   └── MemoryPending         it is kept, and cannot be found yet: there is no embedding of it
        ├── ToolError
        │   ├── UnknownTool           nobody serves a tool of this name
        │   ├── ToolElsewhere         somebody else serves it; the call goes back to the queue
        │   ├── ArgumentsRefused      arguments that break the tool's schema
        │   ├── ToolFailed            the tool raised
        │   └── ToolTimeout           the tool was not done within its deadline
        ├── TaskError
        │   ├── TaskFailed            a task ended without a result
        │   ├── TaskRefused           a task that cannot be run as it is
        │   ├── TaskExpired           nobody needs the task any more
        │   └── NoAgent               no agent here is able to do the task; another worker may have one
        └── NoReply                   an agent did not answer a message within the deadline

Messages name agents, tools, models and rules, never what people wrote. ``retryable`` tells a job queue whether another
attempt can help.
"""

from __future__ import annotations

from kit.errors import ComponentError


class AgentError(ComponentError):
    """An agent refused or failed."""

    retryable = False
    content_free = True  # names, types and numbers only (of a tool's words, what remains once arguments are cut out)


class AgentFailed(AgentError):
    """A run ended without an answer."""


class ModelFailed(AgentFailed):
    """The gateway gave no answer.

    Attributes:
        error_type, detail: what the gateway said.
    """

    def __init__(self, model: str, *, error_type: str, detail: str, retryable: bool = False) -> None:
        self.model, self.error_type, self.detail, self.retryable = model, error_type, detail, retryable
        super().__init__(f"{model} gave no answer: {error_type}: {detail}")


class RunTimeout(AgentFailed):
    """The run was not done within its deadline."""

    def __init__(self, agent_id: str, *, seconds: float) -> None:
        self.agent_id, self.seconds = agent_id, seconds
        super().__init__(f"{agent_id} was not done within {seconds:g} s")


class StepFailed(AgentFailed):
    """A component that an answer needs is missing, refused or failed.

    Attributes:
        component: which one; error_type, detail: what it said.
    """

    def __init__(self, component: str, *, error_type: str, detail: str) -> None:
        self.component, self.error_type, self.detail = component, error_type, detail
        super().__init__(f"{component} failed with {error_type}: {detail}")


class StateConflict(AgentFailed):
    """Another run of the session changed the same value of its state, and nothing can be made of both.

    Of this run nothing was kept, neither its answer nor its change: it may be done again, and sees the other's change.

    Attributes:
        path: keys of the value, from the state's root; they are not told to other processes.
    """

    retryable = True

    def __init__(self, agent_id: str, *, path: tuple[str, ...] = ()) -> None:
        self.agent_id, self.path = agent_id, path
        super().__init__(f"{agent_id}: another run of this session changed the same value of its state: run it again")


class SessionRefused(AgentError):
    """A session belongs to another user."""

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        super().__init__(f"this session with {agent_id} is another user's: choose another session_id")


class MemoryRefused(AgentError):
    """Something cannot be remembered, or memories cannot be looked for.

    Attributes:
        retryable: whether it may work later.
    """

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        self.reason, self.retryable = reason, retryable
        super().__init__(reason)


class MemoryPending(MemoryRefused):
    """A memory is kept, and cannot be found yet: the gateway gave no embedding; the service goes on asking for one.

    Attributes:
        memory_id: which one.
    """

    def __init__(self, memory_id: str) -> None:
        self.memory_id = memory_id
        super().__init__(f"memory {memory_id} is kept, and can be found once the gateway gives an embedding of it")


class ToolError(AgentError):
    """A tool could not be called, or failed.

    Attributes:
        tool_name: which one.
    """

    def __init__(self, tool_name: str, reason: str) -> None:
        self.tool_name, self.reason = tool_name, reason
        super().__init__(f"tool {tool_name}: {reason}")


class UnknownTool(ToolError):
    """Nobody serves a tool of this name."""

    def __init__(self, tool_name: str, reason: str = "nobody serves a tool of this name") -> None:
        super().__init__(tool_name, reason)


class ToolElsewhere(ToolError):
    """Another executor serves the tool: the call goes back to the queue."""

    retryable = True

    def __init__(self, tool_name: str, reason: str = "another executor serves it") -> None:
        super().__init__(tool_name, reason)


class ArgumentsRefused(ToolError):
    """The arguments break the tool's schema; says path and rule."""


class ToolFailed(ToolError):
    """The tool raised; says what."""


class ToolTimeout(ToolError):
    """The tool was not done within its deadline."""


class TaskError(AgentError):
    """A task could not be done."""


class TaskFailed(TaskError):
    """A task ended without a result, in every attempt.

    Attributes:
        error_type, detail: what the worker said; attempts: how many there were.
    """

    def __init__(self, task_id: str, *, error_type: str, detail: str, attempts: int = 1) -> None:
        self.task_id, self.error_type, self.detail, self.attempts = task_id, error_type, detail, attempts
        super().__init__(f"task {task_id} failed after {attempts} attempt(s) with {error_type}: {detail}")


class TaskRefused(TaskError):
    """A task cannot be run as it is."""


class TaskExpired(TaskError):
    """Nobody needs the task any more."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(f"task {task_id} was to be started earlier than a worker came to it")


class NoAgent(TaskError):
    """No agent of this worker is able to do the task, or has the name that is asked for."""

    retryable = True

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class NoReply(AgentError):
    """An agent did not answer a message within the deadline.

    Attributes:
        agent_id: who was asked.
    """

    retryable = True

    def __init__(self, agent_id: str, *, seconds: float) -> None:
        self.agent_id, self.seconds = agent_id, seconds
        super().__init__(f"{agent_id} did not answer within {seconds:g} s")


_TOOL_ERRORS: dict[str, type[ToolError]] = {
    kind.__name__: kind for kind in (UnknownTool, ToolElsewhere, ArgumentsRefused, ToolFailed, ToolTimeout)
}


def tool_error(tool_name: str, error_type: str, detail: str) -> ToolError:
    """Rebuild a tool's error at its caller from what was sent of it."""
    reason = detail.removeprefix(f"tool {tool_name}: ")
    kind = _TOOL_ERRORS.get(error_type)
    return kind(tool_name, reason) if kind is not None else ToolFailed(tool_name, f"{error_type}: {reason}")
