"""A small OpenAI-compatible HTTP server on 127.0.0.1, with faults to order: the fake at the edge of the tests.

    with OpenAIServer() as server:                                  # echoes: "answer to <the last message>"
        client = AsyncOpenAIClient(base_url=server.base_url)

    OpenAIServer(lambda request: reply("yes" if "?" in request.prompt else "no"))   # a function of the request
    OpenAIServer(plan=[rate_limited(retry_after=1), None, dropped()])  # by arrival; None, or the end: as ever
    OpenAIServer(latency_s=0.2, max_concurrent=20)                  # 429 for whatever comes over 20 at once

As a fixture:

    @pytest.fixture
    def server():
        with OpenAIServer() as server:
            yield server

It runs in a thread of its own, serves POST /v1/chat/completions (also as a stream) and GET /v1/models, and counts:
`requests`, `most_at_once`, `prompts`, `bodies`, `connections`, and the tokens it billed as `input_tokens` and
`output_tokens`, one per four characters, so that a test can hold our ledger against the provider's own.
asyncio is used directly because this is the far side of the wire, not a room of the house.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "OpenAIServer",
    "Request",
    "Response",
    "bad_parameter",
    "dropped",
    "failed",
    "rate_limited",
    "raw",
    "reply",
]

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


@dataclass(frozen=True)
class Request:
    """One request as it came: `number` counts from 0, `prompt` is the text of the last message."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    number: int

    @property
    def prompt(self) -> str:
        messages = self.body.get("messages") or [{"content": ""}]
        return str(messages[-1]["content"])


@dataclass(frozen=True)
class Response:
    """One response; `body` is JSON unless it is bytes.

    `latency_s` comes before the first byte. `drop` closes the connection instead of the headers, half-way
    through the body, or after something that is no HTTP. `trickle_s` is the pause between the body's bytes, which then come one by one, or between
    the chunks of a stream.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    latency_s: float = 0.0
    drop: Literal["", "headers", "body", "nonsense"] = ""
    trickle_s: float = 0.0


def reply(
    text: str | None = "ok",
    *,
    finish_reason: str | None = "stop",
    usage: Mapping[str, Any] | Literal["count"] | None = "count",
    refusal: str | None = None,
    choices: list[Any] | None = None,
    **response: Any,
) -> Response:
    """A chat completion; `usage` is counted by the server, given, or left out with None."""
    message = {"role": "assistant", "content": text, **({"refusal": refusal} if refusal else {})}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]
        if choices is None
        else choices,
        "usage": usage,
    }
    return Response(body=body, **response)


def failed(
    status: int,
    message: str = "it failed",
    *,
    code: Any = None,
    kind: str | None = None,
    param: str | None = None,
    **response: Any,
) -> Response:
    """An error in OpenAI's form; `kind` is its `type`."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Response(status=status, body={"error": error}, **response)


def rate_limited(*, retry_after: float | None = None, as_date: bool = False) -> Response:
    """429, with `Retry-After` in seconds or as an HTTP date where asked."""
    headers = {}
    if retry_after is not None:
        headers["Retry-After"] = (
            formatdate(time.time() + retry_after, usegmt=True) if as_date else f"{retry_after:g}"
        )
    return failed(429, "Rate limit reached", code="rate_limit_exceeded", kind="requests", headers=headers)


def bad_parameter(name: str, hint: str = "") -> Response:
    """400 for a parameter that the model does not take."""
    message = f"Unsupported parameter: '{name}' is not supported with this model. {hint}"
    return failed(400, message, code="unsupported_parameter", kind="invalid_request_error", param=name)


def dropped(where: Literal["headers", "body", "nonsense"] = "headers") -> Response:
    """The connection breaks before the headers, in the middle of the body, or after something that is no HTTP."""
    return reply("an answer that breaks off", drop=where)


def raw(text: str, content_type: str = "application/json") -> Response:
    """A 200 with any body."""
    return Response(body=text.encode(), headers={"Content-Type": content_type})


class OpenAIServer:
    """The server; a context manager."""

    def __init__(
        self,
        answer: Callable[[Request], Response | str] | None = None,
        *,
        plan: Iterable[Response | None] = (),
        latency_s: float = 0.0,
        max_concurrent: int | None = None,
        models: Iterable[str] = ("gpt-5", "gpt-5-nano"),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._answer = answer or (lambda request: f"answer to {request.prompt}")
        self._plan = iter(plan)
        self.latency_s = latency_s
        self.max_concurrent = max_concurrent
        self.models = tuple(models)
        self.headers = dict(headers or {})
        self.requests = 0
        self.listings = 0
        self.connections = 0
        self.at_once = 0
        self.most_at_once = 0
        self.prompts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.input_tokens = 0
        self.output_tokens = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="openai-server", daemon=True)
        self._open: set[_Connection] = set()
        self._ready = threading.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def respond(self, request: Request) -> Response:
        """What to answer; also counts."""
        if request.method == "GET" and request.path == "/v1/models":
            self.listings += 1
            return Response(body={"object": "list", "data": [{"id": name} for name in self.models]})
        if request.path != "/v1/chat/completions":
            return raw("<html>no such page</html>", "text/html")
        self.requests += 1
        self.prompts.append(request.prompt)
        self.bodies.append(request.body)
        self.keys.add(request.headers.get("authorization", ""))
        if self.max_concurrent is not None and self.at_once > self.max_concurrent:
            return rate_limited()
        response = next(self._plan, None) or self._answer(request)
        if isinstance(response, str):
            response = reply(response)
        if isinstance(response.body, dict) and "choices" in response.body:
            response = replace(response, body=self._bill(request, response.body))
        return replace(
            response,
            headers={**self.headers, **response.headers},
            latency_s=response.latency_s or self.latency_s,
        )

    def _bill(self, request: Request, body: dict[str, Any]) -> dict[str, Any]:
        body = {**body, "model": body["model"] or request.body.get("model", "")}
        usage = body["usage"]
        if usage == "count" or usage is None:
            texts = [choice["message"]["content"] or "" for choice in body["choices"]]
            counted = {
                "prompt_tokens": sum(count(str(m["content"])) for m in request.body.get("messages", ())),
                "completion_tokens": sum(count(text) for text in texts),
            }
            body["usage"] = counted if usage == "count" else None
            usage = counted
        self.input_tokens += usage["prompt_tokens"]
        self.output_tokens += usage["completion_tokens"]
        return body

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=4096)
        )
        self.port = listening.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        listening.close()
        for connection in list(self._open):
            connection.transport.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


def count(text: str) -> int:
    """The server's tokens: one per four characters, begun or whole."""
    return -(-len(text) // 4)


class _Connection(asyncio.Protocol):
    """One keep-alive connection: requests come and are answered one after another."""

    transport: asyncio.Transport

    def __init__(self, server: OpenAIServer) -> None:
        self.server = server
        self.buffer = bytearray()
        self.timers: set[asyncio.TimerHandle] = set()
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.server.connections += 1
        self.server._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server._open.discard(self)
        for timer in self.timers:
            timer.cancel()
        self.finish()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:])}
        whole = end + 4 + int(headers.get("content-length", 0))
        if len(self.buffer) < whole:
            return
        content = bytes(self.buffer[end + 4 : whole])
        del self.buffer[:whole]
        self.begin()
        body = json.loads(content) if content else {}
        request = Request(method, path, headers, body, self.server.requests)
        response = self.server.respond(request)
        if response.latency_s:
            self.later(response.latency_s, lambda: self.send(request, response))
        else:
            self.send(request, response)

    def begin(self) -> None:
        self.busy = True
        self.server.at_once += 1
        self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)

    def finish(self) -> None:
        if self.busy:
            self.busy = False
            self.server.at_once -= 1

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        def run() -> None:
            self.timers.discard(timer)
            action()

        timer = asyncio.get_running_loop().call_later(seconds, run)
        self.timers.add(timer)

    def send(self, request: Request, response: Response) -> None:
        if response.drop == "headers":
            self.transport.abort()
            return
        if response.drop == "nonsense":
            self.transport.write(b"this is no HTTP\r\n\r\n")
            self.transport.close()
            return
        streamed = bool(request.body.get("stream")) and isinstance(response.body, dict)
        if streamed and "choices" in response.body:
            pieces = [event(chunk) for chunk in as_stream(request, response.body)] + [b"data: [DONE]\n\n"]
            headers = {"Content-Type": "text/event-stream", **response.headers}
        else:
            whole = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
            pieces = [whole]
            headers = {"Content-Type": "application/json", **response.headers}
        length = sum(map(len, pieces))
        lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Whatever')}"]
        lines += [f"{name}: {value}" for name, value in {**headers, "Content-Length": str(length)}.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if response.drop == "body":
            self.transport.write(head + b"".join(pieces)[: length // 2])
            self.transport.close()
        elif response.trickle_s:
            self.transport.write(head)
            if len(pieces) == 1:
                pieces = [pieces[0][i : i + 1] for i in range(length)]
            self.trickle(pieces, response.trickle_s)
        else:
            self.finish()
            self.transport.write(head + b"".join(pieces))

    def trickle(self, pieces: list[bytes], pause_s: float) -> None:
        if not pieces:
            self.finish()
            return
        self.transport.write(pieces[0])
        self.later(pause_s, lambda: self.trickle(pieces[1:], pause_s))


def event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def as_stream(request: Request, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a chat completion: a word at a time, the finish reason, then the usage where asked."""
    frame = {"id": body["id"], "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    chunks = []
    for choice in body["choices"]:
        message = choice["message"]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in re.findall(r"\s*\S+\s*|\s+", message["content"] or "")]
        if message.get("refusal"):
            deltas.append({"refusal": message["refusal"]})
        chunks += [
            {**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
        ]
        chunks.append(
            {**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}
        )
    if (request.body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**frame, "choices": [], "usage": body["usage"]})
    return chunks
