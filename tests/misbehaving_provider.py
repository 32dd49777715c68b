"""An OpenAI-compatible HTTP server on loopback that misbehaves on purpose, as told by the model's name.

``ok`` answers; ``slow-0.2`` answers after 0.2 s; ``fail-500x2`` answers 500 twice and then well (without ``x2``:
always; any status); ``limited-1x1`` answers 429 with ``Retry-After: 1`` once; ``dated-2x1`` the same with the HTTP date
of the second that begins 2 s later or less; ``hang`` never answers; ``cut`` breaks the connection in the middle (of a
stream, or of the body); ``stall`` streams three words and no more; ``malformed`` sends a body that is no JSON;
``json-{...}`` answers with that text; ``drip-0.05`` streams a word every 0.05 s. A model in ``answers`` answers
with what stands there: a body (bytes, or what JSON can say), the events of a stream (a list of them), a status (a
number), or what a function of the request's body returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import Counter, defaultdict
from email.utils import formatdate
from types import TracebackType
from typing import Any, Self

ANSWER = "The misbehaving provider answers well this time."

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class MisbehavingProvider:
    """The server; ``async with MisbehavingProvider() as provider``.

    Attributes:
        calls: requests seen, by model.
        times: when they came, seconds of the epoch, by model.
        retry_at: what ``dated`` told last, in the same seconds.
        bodies: their bodies, in order.
        answers: what to say, by model.
        left: answers whose reader went away before they ended.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self.retry_at = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.left = 0
        self.active = 0
        self.most_active = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The address for ``api_base``."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def deployment(self, model: str, **more: Any) -> dict[str, Any]:
        """LiteLLM's settings for one of the models here."""
        return {"model": f"openai/{model}", "api_base": self.url, "api_key": "no-secret", **more}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"content-length: (\d+)", head, re.I)
        body = json.loads(await reader.readexactly(int(length.group(1)))) if length else {}
        model = body.get("model", "")
        self.calls[model] += 1
        self.times[model].append(time.time())
        self.bodies.append(body)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            if (refusal := self._refusal(model)) is not None:
                return await self._error(writer, *refusal)
            if model == "hang":
                await self._left_waiting(reader)
            if (answer := self.answers.get(model)) is not None:
                return await self._given(writer, answer(body) if callable(answer) else answer)
            if "/embeddings" in head.split("\r\n")[0]:
                return await self._embed(writer, body)
            return await self._complete(reader, writer, model, body)
        except ConnectionError:
            self.left += 1
            return False
        finally:
            self.active -= 1

    def _refusal(self, model: str) -> tuple[int, str] | None:
        """Return the status and the headers with which this call is to fail, or None."""
        failing = re.fullmatch(r"fail-(\d+)(?:x(\d+))?", model)
        limited = re.fullmatch(r"(limited|dated)-([\d.]+)(?:x(\d+))?", model)
        if failing and self.calls[model] <= int(failing.group(2) or 1_000_000):
            return int(failing.group(1)), ""
        if limited and self.calls[model] <= int(limited.group(3) or 1_000_000):
            after = limited.group(2)
            if limited.group(1) == "dated":
                self.retry_at = float(int(time.time() + float(after)))
                after = formatdate(self.retry_at, usegmt=True)
            return 429, f"Retry-After: {after}\r\n"
        return None

    async def _given(self, writer: asyncio.StreamWriter, answer: Any) -> bool:
        if isinstance(answer, int):
            return await self._error(writer, answer)
        if not isinstance(answer, list):
            await self._send(writer, 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
            return True
        writer.write(STREAM_HEAD)
        for event in answer:
            await self._event(writer, event)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _left_waiting(self, reader: asyncio.StreamReader) -> None:
        """Say nothing more until the other side goes away."""
        while await reader.read(1024):
            pass
        raise ConnectionResetError

    async def _complete(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: str, body: dict[str, Any]
    ) -> bool:
        if slow := re.fullmatch(r"slow-([\d.]+)", model):
            await asyncio.sleep(float(slow.group(1)))
        if body.get("stream"):
            return await self._stream(reader, writer, model)
        text = model.removeprefix("json-") if model.startswith("json-") else ANSWER
        whole = json.dumps(self._answer(model, text)).encode()
        if model == "malformed":
            whole = b'{"id": "x", "choices": [{"mess'
        if model == "cut":
            await self._send(writer, 200, whole, cut=20)
            return False
        await self._send(writer, 200, whole)
        return True

    def _answer(self, model: str, text: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.calls[model]}",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        }

    async def _embed(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [
            {"object": "embedding", "index": i, "embedding": [float(len(text)), 1.0, 0.5, 0.25]}
            for i, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": 3 * len(texts), "total_tokens": 3 * len(texts)}
        await self._send(
            writer, 200, json.dumps({"object": "list", "data": data, "model": body["model"], "usage": usage}).encode()
        )
        return True

    async def _error(self, writer: asyncio.StreamWriter, status: int, headers: str = "") -> bool:
        body = json.dumps({"error": {"message": f"told to answer {status}", "type": "misbehaviour", "code": status}})
        await self._send(writer, status, body.encode(), headers=headers)
        return True

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: str) -> bool:
        """Send the answer as server-sent events, word by word."""
        writer.write(STREAM_HEAD)
        pause = float(model.removeprefix("drip-")) if model.startswith("drip-") else 0.0
        words = re.findall(r"\S+\s*", ANSWER * (20 if pause else 1))
        for index, word in enumerate(words):
            delta = {"role": "assistant", "content": word} if index == 0 else {"content": word}
            await self._event(writer, {**self._chunk(model), "choices": [{"index": 0, "delta": delta}]})
            await asyncio.sleep(pause)
            if model == "stall" and index == 2:
                await self._left_waiting(reader)
            if model == "cut" and index == 2:
                writer.transport.abort()
                return False
        end = {**self._chunk(model), "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        await self._event(writer, end)
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        await self._event(writer, {**self._chunk(model), "choices": [], "usage": usage})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
        return True

    def _chunk(self, model: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.calls[model]}", "object": "chat.completion.chunk", "created": 1, "model": model}

    async def _event(self, writer: asyncio.StreamWriter, data: dict[str, Any] | bytes) -> None:
        if writer.is_closing():
            raise ConnectionResetError
        event = b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        await writer.drain()

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, *, headers: str = "", cut: int = 0
    ) -> None:
        kind = "Content-Type: application/json\r\n"
        head = f"HTTP/1.1 {status} Told\r\n{kind}{headers}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + (body[:-cut] if cut else body))
        await writer.drain()
