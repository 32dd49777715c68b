"""A provider on this machine that answers well and at once: OpenAI's chat completions over HTTP, in its own process.

``async with provider() as url`` starts it. Its process takes no time from who is measured, but it is the same small
time for all that ask it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

ANSWER = "Refunds are paid within fourteen days of purchase [1]."
_SECONDS = 20.0  # for a process to start or to end
_BODY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "answer",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}],
    "usage": {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42},
}


@asynccontextmanager
async def provider() -> AsyncIterator[str]:
    """Start the provider, and give its address, as clients take it: ``http://127.0.0.1:…/v1``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with asyncio.timeout(_SECONDS):
            port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.stdin.close()  # which ends it, also when this process is killed
        async with asyncio.timeout(_SECONDS):
            await process.wait()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request of a connection with the same completion, whatever it asks."""
    body = json.dumps(_BODY).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    # Cancelled is what still waits when the process ends.
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        while True:
            asked = await reader.readuntil(b"\r\n\r\n")
            if length := re.search(rb"content-length: (\d+)", asked, re.IGNORECASE):
                await reader.readexactly(int(length[1]))
            writer.write(head + body)
            await writer.drain()
    writer.close()


async def _serve() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)  # until who started it closes the pipe, or is gone
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve())
