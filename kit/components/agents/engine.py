"""Agno, and the LiteLLM that its model class imports: loaded late, quietly, on a worker thread."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from typing import Any, NamedTuple

_LOGGERS = ("agno", "agno-team", "agno-workflow")


class Agno(NamedTuple):
    """The classes of Agno that the kit stands on."""

    Agent: Any
    LiteLLM: Any
    Message: Any
    Function: Any
    Toolkit: Any
    ControlFlow: type[Exception]  # what a tool raises to steer a run: no failure


@functools.cache
def load_agno() -> Agno:
    """Import Agno; it takes seconds, so call it on a worker thread (``agno_classes``).

    It reports nothing to anyone, and its logger is quiet: it writes prompts and arguments where a tool fails. What
    fails is raised, and is on the spans.
    """
    os.environ["AGNO_TELEMETRY"] = "false"  # it would outweigh what an agent is told
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    os.environ.setdefault("LITELLM_DISABLE_BUG_REPORT", "true")
    from agno.agent import Agent
    from agno.exceptions import AgentRunException
    from agno.models.litellm import LiteLLM
    from agno.models.message import Message
    from agno.tools.function import Function
    from agno.tools.toolkit import Toolkit

    for name in _LOGGERS:
        logging.getLogger(name).disabled = True  # its level is set anew by every agent
    return Agno(Agent, LiteLLM, Message, Function, Toolkit, AgentRunException)


async def agno_classes() -> Agno:
    """Return Agno's classes, imported on a worker thread the first time."""
    if load_agno.cache_info().currsize:
        return load_agno()
    return await asyncio.to_thread(load_agno)
