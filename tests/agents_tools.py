"""Tools as Agno has them, for tests; importing this imports Agno."""

from agno.run.base import RunContext
from agno.tools import tool
from agno.tools.calculator import CalculatorTools

__all__ = ["CalculatorTools", "keep", "loud", "name"]


@tool(name="shout")
async def loud(text: str) -> str:
    """Write in capitals."""
    return text.upper()


def keep(run_context: RunContext, word: str) -> str:
    """Keep a word in the session."""
    assert run_context.session_state is not None
    run_context.session_state.setdefault("words", []).append(word)
    return "kept"


def name(run_context: RunContext, name: str) -> str:
    """Keep a name in the session."""
    assert run_context.session_state is not None
    run_context.session_state["name"] = name
    return "kept"
