"""``kit ask``: a question to documents, answered with its sources."""

from __future__ import annotations

import argparse
from pathlib import Path

from kit.lab.cli.console import Commands, command, say, whole

_DETAILS = """\
Documents are indexed the first time and again when they change; the index is kept in .kit/. The default model is
offline and needs no key; any LiteLLM model goes by its name. With NATS_URL set the workers there answer
(kit worker gateway rag document_qa), with the models that their settings let through, from the tenant's documents
there, or from --corpus, which is sent there first.

  kit ask "How do I copy a file?"                          the Python FAQ
  kit ask "Who may sign a contract?" --corpus handbook/    Markdown, text, HTML, PDF, JSON Lines
  kit ask "How do I copy a file?" --trace                  with the trace of every hop
  kit ask "…" --model openai/gpt-4o-mini                   OPENAI_API_KEY in the environment

exit codes: 0 answered, or the documents do not support an answer; 1 failed; 2 usage
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "ask", _run, summary="answer a question from documents", details=_DETAILS)
    parser.add_argument("question", help="in a sentence")
    parser.add_argument("--corpus", type=Path, metavar="PATH", help="a folder or a JSONL file (data/python_faq.jsonl)")
    parser.add_argument("--tenant", default="acme", metavar="ID", help="whose documents (acme)")
    parser.add_argument("--model", metavar="NAME", help="the model that answers (kit/extractive)")
    parser.add_argument("--top-k", type=whole(1), default=5, metavar="N", help="passages to answer from (5)")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="where the index is kept (.kit/)")
    parser.add_argument("--trace", action="store_true", help="show the trace of the question")
    parser.add_argument("--json", action="store_true", help="the whole answer as JSON")


def _run(chosen: argparse.Namespace) -> int:
    import asyncio
    import json
    import logging
    import shutil
    import sys

    from kit.lab import asking
    from kit.lab.project import project_root

    question = asking.Question(
        text=chosen.question,
        corpus=chosen.corpus,
        tenant_id=chosen.tenant,
        model=chosen.model,
        top_k=chosen.top_k,
        store=chosen.store or project_root() / ".kit",
    )
    transport = logging.getLogger("kit.nats")
    before = transport.level
    transport.setLevel(logging.CRITICAL)  # what failed is told here, once
    try:
        answer = asyncio.run(asking.ask(question, trace=chosen.trace))
    finally:
        transport.setLevel(before)
    if chosen.json:
        say(json.dumps(answer.data, indent=2, ensure_ascii=False))
    else:
        sys.stdout.write(asking.as_text(answer, min(100, shutil.get_terminal_size().columns)))
    return 0
