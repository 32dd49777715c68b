"""One run of an agent: what it was asked, what it did on the way, and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kit.components.agents.errors import AgentError, ToolError


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolUse:
    """A tool that was called in a run.

    Attributes:
        error: class name of the error it ended with, or None.
    """

    name: str
    arguments: Mapping[str, Any]
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an agent said; ``str()`` of it is its text.

    Attributes:
        text: the answer; run_id: names the run; session_id: of the session it is part of, or None.
        model: that answered.
        tokens: prompt, completion and total of all its model calls; cost: in US dollars, None when a price is unknown.
        tools: what was called on the way, in the order in which it ended; tool_errors: the errors among them.
        memories: ids of the memories that it was given.
        seconds: from the question to the answer.
        repeated: whether the run had been done before, under the same id, and nothing was run again.
    """

    text: str
    run_id: str
    agent_id: str
    model: str
    session_id: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    cost: float | None = 0.0
    tools: tuple[ToolUse, ...] = ()
    tool_errors: tuple[ToolError, ...] = ()
    memories: tuple[str, ...] = ()
    seconds: float = 0.0
    repeated: bool = False

    def __str__(self) -> str:
        return self.text

    def document(self) -> dict[str, Any]:
        """Return what a session keeps of it."""
        return {
            "text": self.text, "model": self.model, "tokens": dict(self.tokens), "cost": self.cost,
            "tools": [{"name": use.name, "arguments": dict(use.arguments), "error": use.error} for use in self.tools],
            "memories": list(self.memories), "seconds": self.seconds,
        }  # fmt: skip

    @classmethod
    def kept(cls, agent_id: str, session_id: str, run: Mapping[str, Any]) -> Answer:
        """Return the answer of a run that a session keeps."""
        document = run["answer"]
        return cls(
            text=document["text"], run_id=run["run_id"], agent_id=agent_id, model=document["model"],
            session_id=session_id, tokens=document["tokens"], cost=document["cost"],
            tools=tuple(ToolUse(**use) for use in document["tools"]), memories=tuple(document["memories"]),
            seconds=document["seconds"], repeated=True,
        )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Run:
    """A run under way: its ids, and where what happens in it is noted.

    Attributes:
        task_id: of the task that it does, or None; then its calls carry ids of their own, so that done again after a
            crash they are answered from memory.
        fault: what ended it.
    """

    run_id: str
    agent_id: str
    session_id: str | None = None
    user_id: str | None = None
    task_id: str | None = None
    fault: AgentError | None = None
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0, "total": 0})
    cost: float | None = 0.0
    model: str = ""
    tools: list[ToolUse] = field(default_factory=list)
    tool_errors: list[ToolError] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)

    def spent(self, answer: Mapping[str, Any]) -> None:
        """Note what one answer of the gateway took."""
        for name in self.tokens:
            self.tokens[name] += answer["tokens"].get(name, 0)
        paid = answer["cost"]
        self.cost = None if paid is None or self.cost is None else self.cost + paid
        self.model = answer["model"]

    def used(self, name: str, arguments: Mapping[str, Any], error: ToolError | None = None) -> None:
        """Note a tool that was called."""
        self.tools.append(
            ToolUse(name=name, arguments=dict(arguments), error=None if error is None else type(error).__name__)
        )
        if error is not None:
            self.tool_errors.append(error)

    def again(self, what: str) -> int:
        """Count a call and return how many of its kind came before: the same run counts alike when it is repeated."""
        count = self.calls.get(what, 0)
        self.calls[what] = count + 1
        return count
