"""The client for OpenAI and for whatever speaks its Chat Completions; the only room that knows the openai package.

`AsyncOpenAIClient` makes one attempt per call: retries, limits and budgets are the scheduler's, so the package's
own retries are off. `OpenAIClient` is its blocking twin. Both keep one pool of connections per event loop for
their whole life, closed with the client or, where nobody closes it, with the loop.

The package is imported with the first call, in a thread, because that takes a second; `warm_up` starts it
earlier. The package gives the headers (key, organisation, project) and the HTTP client; requests are sent with
that client and read here, which takes half the CPU of `chat.completions.create` and shows the headers of the
response. With the extra `[fast]` they travel over aiohttp, which halves it again.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import socket
import sys
import threading
import warnings
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import anyio.to_thread

from rlm._async.portal import lease, leave_to_parent
from rlm._async.preload import load
from rlm.clients.base import Prompt, messages_of
from rlm.clients.chat_format import Dialect, StreamReader, encode_body, read_reply, request_body
from rlm.clients.error_mapping import Failure, call_error, read_failure, redact, unsupported_parameter
from rlm.errors import (
    AuthenticationFailed,
    BadReply,
    CallError,
    CallTimedOut,
    ConnectionFailed,
    SettingsError,
    TransientError,
    UnknownModel,
)
from rlm.values import Call, FailedCall, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
    from types import TracebackType

    import httpx2
    import openai

__all__ = ["AsyncOpenAIClient", "OpenAIClient", "Prompt", "is_like_a_key", "warm_up"]

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_HOST = "api.openai.com"
NO_KEY = "none"
"""What local servers are sent for a key: they take any, but the package and some of them want one."""

SHOWN_CHARS = 300
"""How much of a transport's own words goes into an error."""

SHORTEST_KEY_CHARS = 20
CONNECT_TIMEOUT_S = 60.0
LISTING_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 30.0
FIRST_CONNECTIONS = 128
"""Requests in flight at the start; each success allows one more, so that 1,000 handshakes never meet."""


def is_like_a_key(text: str) -> bool:
    """Whether a text, such as one given as a model's name, has the form of an API key."""
    return len(text) >= SHORTEST_KEY_CHARS and redact(text) == "[key]"


def warm_up() -> None:
    """Import the openai package in a thread, ahead of need; returns at once."""
    if not _loaded.is_set():
        threading.Thread(target=load, args=(_load,), name="rlm-import-openai", daemon=True).start()


class AsyncOpenAIClient:
    """Asks an OpenAI-compatible endpoint. It may be used from several event loops at once.

    A forked child opens connections of its own, and neither uses nor closes the parent's.
    """

    def __init__(
        self,
        model: str = "gpt-5-nano",
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout_s: float = 600.0,
        max_connections: int = 1000,
    ) -> None:
        """Check the settings; nothing is imported or sent yet.

        Args:
            model: the model of `completion` and `batch_completion`; `complete` is told by its call.
            api_key: by default `OPENAI_API_KEY`. An endpoint of one's own needs none.
            base_url: by default `OPENAI_BASE_URL`, else OpenAI.
            timeout_s: seconds from sending a request to its whole answer.
            max_connections: requests in flight at once; more wait for their turn.

        Raises:
            AuthenticationFailed: there is neither a key nor an endpoint of one's own.
            SettingsError: a setting has a value that cannot work.
        """
        own_url = (base_url or os.environ.get("OPENAI_BASE_URL") or "").strip()
        self._key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        self._url = own_url or OPENAI_URL
        self.model = model
        self.endpoint = _endpoint_of(self._url)
        _check(self._key, own_url, model, timeout_s, max_connections)
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._first_dialect = Dialect(
            "max_completion_tokens" if self.endpoint == OPENAI_HOST else "max_tokens"
        )
        self._dialects: dict[str, Dialect] = {}
        self._available: tuple[str, ...] | None = None
        self._all_pools: WeakKeyDictionary[_Loop, _Pool] = WeakKeyDictionary()
        self._process = os.getpid()
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r}, endpoint={self.endpoint!r})"

    async def complete(self, call: Call) -> Reply:
        """Ask the model once.

        `Reply.attempts` is above 1 where the endpoint refused a parameter, which is then left out or renamed for
        this model from here on; `Reply.warnings` says so, once.

        Raises:
            CallError: the one class of `rlm.errors` that says why there is no answer.
            RuntimeError: the client is closed.
        """
        pool = await self._pool()
        async with pool.slot():
            started = anyio.current_time()
            async with self._translated(call):
                with anyio.fail_after(self._timeout_s):
                    exchange = await self._post(pool, call, stream=False)
                response = exchange.response
                reply = read_reply(response.content, call, self.endpoint, response.headers)
            return exchange.finish(reply, started)

    async def stream(self, call: Call) -> AsyncIterator[str | Reply]:
        """Ask the model once and yield its text piece by piece, at last the whole `Reply`.

        Leave it early only through `contextlib.aclosing`, which closes the connection at once.

        Raises:
            CallError: as `complete`, possibly after a part of the text.
        """
        pool = await self._pool()
        async with pool.slot():
            started = anyio.current_time()
            deadline = anyio.current_time() + self._timeout_s
            async with self._translated(call):
                with anyio.fail_after(self._timeout_s):
                    exchange = await self._post(pool, call, stream=True)
            try:
                async with aclosing(self._pieces(exchange.response, call)) as pieces:
                    while (piece := await self._next(pieces, call, deadline)) is not None:
                        yield piece if isinstance(piece, str) else exchange.finish(piece, started)
            finally:
                with anyio.CancelScope(shield=True):
                    await exchange.response.aclose()

    async def completion(
        self, prompt: Prompt, max_tokens: int | None = None, *, temperature: float | None = None
    ) -> str:
        """The model's answer to a text or to messages.

        Raises:
            CallError: as `complete`.
            TypeError: the prompt is neither text nor messages.
        """
        reply = await self.complete(self._call(prompt, max_tokens, temperature))
        _warn(reply.warnings)
        return reply.text

    async def batch_completion(
        self, prompts: Iterable[Prompt], max_concurrent: int = 10, *, max_tokens: int | None = None
    ) -> list[str]:
        """The answers to many prompts, in their order; a slot that failed is a `FailedCall`: falsy, with `.error`.

        Raises:
            SettingsError: `max_concurrent` is below 1.
            TypeError: the prompts are a single text, or one of them is no prompt.
        """
        if isinstance(prompts, str):
            raise TypeError("batch_completion takes many prompts and was given one text: put it in a list")
        if max_concurrent < 1:
            raise SettingsError(f"max_concurrent={max_concurrent!r}: must be at least 1")
        calls = [self._call(prompt, max_tokens) for prompt in prompts]
        if calls:
            await self._pool()  # what is wrong with the settings is raised once, here
        outcomes = await _ask_all(self, calls, max_concurrent)
        _warn(warning for outcome in outcomes if isinstance(outcome, Reply) for warning in outcome.warnings)
        return [outcome.text if isinstance(outcome, Reply) else FailedCall(outcome) for outcome in outcomes]

    async def available_models(self) -> tuple[str, ...]:
        """The names of the models that the endpoint lists.

        Raises:
            CallError: it does not answer within 5 seconds, or not with a list.
        """
        pool = await self._pool()
        call = Call(model="any model", messages=())
        async with self._translated(call, may_look_up=False):
            with anyio.fail_after(LISTING_TIMEOUT_S):
                response = await pool.send("GET", "models")
            if not response.is_success:
                raise _status_error(response, self._key)
            try:
                return tuple(sorted(str(entry["id"]) for entry in response.json()["data"]))
            except (ValueError, LookupError, TypeError) as error:
                raise BadReply(f"{self.endpoint} sent no list of models", model=self.model) from error

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        self._closed = True
        here = self._pools.pop(_this_loop(), None)
        self._pools.clear()  # those of other loops are closed there, by their loops
        if here is not None:
            with anyio.CancelScope(shield=True):
                await here.keeper.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _call(self, prompt: Prompt, max_tokens: int | None = None, temperature: float | None = None) -> Call:
        return Call(
            model=self.model,
            messages=messages_of(prompt),
            max_output_tokens=max_tokens,
            temperature=temperature,
        )

    async def _post(self, pool: _Pool, call: Call, *, stream: bool) -> _Exchange:
        """Send the call, again where it teaches which parameters the model takes."""
        attempts = 0
        told: list[str] = []
        while True:
            attempts += 1
            body = request_body(call, self._dialects.get(call.model, self._first_dialect), stream=stream)
            response = await pool.send("POST", "chat/completions", encode_body(body), stream=stream)
            if response.is_success:
                return _Exchange(response, attempts, tuple(told))
            await response.aread()
            parameter = unsupported_parameter(_failure_in(response), body)
            if parameter is None or parameter in call.extra:
                raise _status_error(response, self._key)
            told += self._learn(call.model, parameter)

    def _learn(self, model: str, parameter: str) -> list[str]:
        """Note that the model does not take the parameter; what to say of it, the first time."""
        dialect = self._dialects.get(model, self._first_dialect)
        if parameter in dialect.refused:
            return []
        self._dialects[model], instead = dialect.without(parameter)
        return [f"{model!r} at {self.endpoint} does not take `{parameter}`: {instead}"]

    async def _pieces(self, response: httpx2.Response, call: Call) -> AsyncGenerator[str | Reply, None]:
        """The texts of a response as they arrive, then the reply, whether it is a stream or not."""
        if "text/event-stream" not in response.headers.get("content-type", ""):
            reply = read_reply(await response.aread(), call, self.endpoint, response.headers)
            yield reply.text
            yield reply
            return
        reader = StreamReader(call, self.endpoint, response.headers)
        async for line in response.aiter_lines():
            if text := reader.feed(line):
                yield text
        yield reader.reply()

    async def _next(
        self, pieces: AsyncGenerator[str | Reply, None], call: Call, deadline: float
    ) -> str | Reply | None:
        async with self._translated(call):
            with anyio.fail_after(deadline - anyio.current_time()):
                return await anext(pieces, None)

    @asynccontextmanager
    async def _translated(self, call: Call, *, may_look_up: bool = True) -> AsyncIterator[None]:
        """Errors of the package and its transports leave as ours; an unknown model with what there is instead."""
        try:
            with _errors_of_ours(call, self.endpoint, self._timeout_s, self._key):
                yield
        except UnknownModel as error:
            if not may_look_up:
                raise
            raise await self._with_available(error) from error.__cause__

    async def _with_available(self, error: UnknownModel) -> UnknownModel:
        if self._available is None:
            try:
                self._available = await self.available_models()
            except CallError:
                self._available = ()
        close = difflib.get_close_matches(error.model, self._available, n=3, cutoff=0.5)
        names = (*close, *(name for name in self._available if name not in close))
        if not names:
            return error
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")  # noqa: PLR2004
        return UnknownModel(
            f"{error}; it has {shown}", available=names, model=error.model, status=error.status
        )

    @property
    def _pools(self) -> WeakKeyDictionary[_Loop, _Pool]:
        """The connections of each loop of this process."""
        if self._process != os.getpid():
            leave_to_parent(*self._all_pools.items())
            self._all_pools, self._process = WeakKeyDictionary(), os.getpid()
        return self._all_pools

    async def _pool(self) -> _Pool:
        """The connections of the loop that runs now."""
        if self._closed:
            raise RuntimeError("this client is closed")
        loop = _this_loop()
        if (pool := self._pools.get(loop)) is not None:
            return pool
        async with loop.building:
            if (pool := self._pools.get(loop)) is None:
                http, headers = await anyio.to_thread.run_sync(self._build, _on_asyncio())
                keeper = _close_with_the_loop(http)
                await anext(keeper)
                pool = self._pools[loop] = _Pool(http, headers, self._url, keeper, self._max_connections)
        return pool

    def _build(self, on_asyncio: bool) -> tuple[httpx2.AsyncClient, httpx2.Headers]:
        """In a thread: it imports the package and reads the trusted certificates."""
        load(_load)
        import httpx2
        import openai

        connect_s = min(CONNECT_TIMEOUT_S, self._timeout_s)
        timeout = httpx2.Timeout(self._timeout_s, connect=connect_s, pool=None)
        limits = httpx2.Limits(
            max_connections=self._max_connections,
            max_keepalive_connections=self._max_connections,
            keepalive_expiry=KEEP_ALIVE_S,
        )
        try:
            http = _http_client(timeout, limits, fast=on_asyncio and find_spec("aiohttp") is not None)
            sdk = openai.AsyncOpenAI(api_key=self._key or NO_KEY, base_url=self._url, http_client=http)
        except (openai.OpenAIError, ValueError, ImportError, OSError) as error:
            # Both read more of the environment than we do: proxies, certificates, kinds of credentials.
            message = redact(f"the HTTP client cannot be set up: {error}", self._key)
            raise SettingsError(" ".join(message.split())) from error
        headers = {**sdk.default_headers, **sdk.auth_headers}
        return http, httpx2.Headers(
            {name: value for name, value in headers.items() if isinstance(value, str)}
        )


class OpenAIClient:
    """The blocking twin of `AsyncOpenAIClient`, with the same settings, for scripts, notebooks and threads.

    Any number of threads may use one client at once. Its methods refuse to run on the portal's own loop, that is,
    inside another client's answer, with a `RuntimeError`.
    """

    def __init__(
        self,
        model: str = "gpt-5-nano",
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout_s: float = 600.0,
        max_connections: int = 1000,
    ) -> None:
        """See `AsyncOpenAIClient`."""
        self._client = AsyncOpenAIClient(
            model,
            api_key=api_key,
            base_url=base_url,
            timeout_s=timeout_s,
            max_connections=max_connections,
        )
        self._portal = lease("this OpenAIClient was closed: make a new one")
        self.model = model

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r}, endpoint={self._client.endpoint!r})"

    def complete(self, call: Call) -> Reply:
        """See `AsyncOpenAIClient.complete`."""
        return self._portal.call(self._client.complete, call)

    def completion(
        self, prompt: Prompt, max_tokens: int | None = None, *, temperature: float | None = None
    ) -> str:
        """See `AsyncOpenAIClient.completion`."""
        reply = self.complete(self._client._call(prompt, max_tokens, temperature))  # noqa: SLF001 - its twin
        _warn(reply.warnings)
        return reply.text

    def batch_completion(
        self, prompts: Iterable[Prompt], max_concurrent: int = 10, *, max_tokens: int | None = None
    ) -> list[str]:
        """See `AsyncOpenAIClient.batch_completion`."""

        async def batch() -> list[str]:
            return await self._client.batch_completion(prompts, max_concurrent, max_tokens=max_tokens)

        return self._portal.call(batch)

    def available_models(self) -> tuple[str, ...]:
        """See `AsyncOpenAIClient.available_models`."""
        return self._portal.call(self._client.available_models)

    def close(self) -> None:
        """Close the connections and give the loop thread back. Idempotent."""
        if self._client._pools:  # noqa: SLF001 - its twin
            self._portal.call(self._client.aclose)
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A response with a status of 200, and what it took."""

    response: httpx2.Response
    attempts: int
    warnings: tuple[str, ...]

    def finish(self, reply: Reply, started: float) -> Reply:
        return replace(
            reply,
            attempts=self.attempts,
            latency_s=anyio.current_time() - started,
            warnings=self.warnings + reply.warnings,
        )


class _Loop:
    """Stands for one event loop, for as long as it lives."""

    def __init__(self) -> None:
        self.building = anyio.Lock()


class _Pool:
    """The connections of one event loop; they grow with success."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        headers: httpx2.Headers,
        base_url: str,
        keeper: AsyncGenerator[None, None],
        max_connections: int,
    ) -> None:
        import httpx2

        self.keeper = keeper
        self._http = http
        self._headers = headers
        base = httpx2.URL(base_url)
        self._urls = {
            path: base.copy_with(path=f"{base.path.rstrip('/')}/{path}")
            for path in ("chat/completions", "models")
        }
        self._width = min(FIRST_CONNECTIONS, max_connections)
        self._max_connections = max_connections
        self._slots = anyio.Semaphore(self._width, fast_acquire=True)

    async def send(
        self, method: str, path: str, content: bytes | None = None, *, stream: bool = False
    ) -> httpx2.Response:
        request = self._http.build_request(method, self._urls[path], headers=self._headers, content=content)
        return await self._http.send(request, stream=stream)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        async with self._slots:
            yield
        if self._width < self._max_connections:
            self._width += 1
            self._slots.release()


_loaded = threading.Event()
_loops: anyio.lowlevel.RunVar[_Loop] = anyio.lowlevel.RunVar("rlm.clients.openai")


def _load() -> None:
    """Import the package; a second thread waits for the first."""
    import openai  # noqa: F401 - the import is the point

    _loaded.set()


def _this_loop() -> _Loop:
    try:
        return _loops.get()
    except LookupError:
        loop = _Loop()
        _loops.set(loop)
        return loop


async def _close_with_the_loop(http: httpx2.AsyncClient) -> AsyncGenerator[None, None]:
    """Close the connections when this generator is closed, which a loop does for all that are open at its end.

    So a client that nobody closes leaves no connection and no warning behind.
    """
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await http.aclose()


def _http_client(timeout: httpx2.Timeout, limits: httpx2.Limits, *, fast: bool) -> httpx2.AsyncClient:
    import openai

    if fast:
        with suppress(RuntimeError):  # an aiohttp that is too old, or an openai without its bridge to aiohttp
            return openai.DefaultAioHttpClient(timeout=timeout, limits=limits)
    return openai.DefaultAsyncHttpxClient(timeout=timeout, limits=limits)


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()  # aiohttp runs on asyncio alone
    except RuntimeError:
        return False
    return True


async def _ask_all(
    client: AsyncOpenAIClient, calls: list[Call], max_concurrent: int
) -> list[Reply | CallError]:
    """The outcomes in order; workers pull, so that a long list costs no tasks."""
    outcomes: dict[int, Reply | CallError] = {}
    waiting = iter(enumerate(calls))

    async def work() -> None:
        for index, call in waiting:
            try:
                outcomes[index] = await client.complete(call)
            except CallError as error:
                outcomes[index] = error

    async with anyio.create_task_group() as workers:
        for _ in range(min(max_concurrent, len(calls))):
            workers.start_soon(work)
    return [outcomes[index] for index in range(len(calls))]


def _warn(texts: Iterable[str]) -> None:
    for text in dict.fromkeys(texts):
        warnings.warn(text, stacklevel=3)


@contextmanager
def _errors_of_ours(call: Call, endpoint: str, timeout_s: float, key: str) -> Iterator[None]:
    """Every error of the package and its transports leaves as one of ours, with its cause, without the key."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        ours = call_error(_failure_in(error.response), call.model, endpoint)
        raise _without_key(ours, key) from error
    except CallError as error:
        _without_key(error, key)
        raise
    except _transport_errors() as error:
        ours = _transport_error(error, call.model, endpoint, timeout_s)
        raise ours from _fit_to_be_shown(error, str(ours), key)


def _failure_in(response: httpx2.Response) -> Failure:
    try:
        body = response.json()
    except ValueError:
        body = response.text
    return read_failure(response.status_code, body, response.headers)


def _status_error(response: httpx2.Response, key: str) -> openai.APIStatusError:
    """What the package itself would raise for the response: the cause of our error, known to its users."""
    import openai

    words = redact(_failure_in(response).message, key)
    return openai.APIStatusError(
        f"Error code: {response.status_code} - {words}", response=response, body=None
    )


def _transport_errors() -> tuple[type[Exception], ...]:
    """What a transport may raise; `OSError` covers timeouts and TLS."""
    import httpx2

    own = (httpx2.RequestError, httpx2.StreamError, anyio.EndOfStream, OSError)
    aiohttp = sys.modules.get("aiohttp")  # some of its errors are passed on as they are
    return own if aiohttp is None else (*own, aiohttp.ClientError)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it, to the bottom.

    Only by `__cause__`: a `__context__` may be an error that the caller was handling when it made this call. But
    where the transport leaves the error of the socket as a context, that is made the cause.
    """
    chain = [error]
    while (last := chain[-1]).__cause__ is not None or type(last).__module__.startswith("httpcore"):
        last.__cause__ = cause = last.__cause__ or last.__context__
        if cause is None or cause in chain:
            break
        chain.append(cause)
    return chain


def _fit_to_be_shown(error: Exception, words: str, key: str) -> Exception:
    """The error, or one in its place where its `repr` shows the key: some of aiohttp's quote the whole request."""
    import httpx2

    if not key or not any(key in repr(cause) for cause in _chain(error)):
        return error
    return httpx2.RemoteProtocolError(f"{type(error).__name__}: {words}")


def _transport_error(error: Exception, model: str, endpoint: str, timeout_s: float) -> TransientError:
    """What went wrong below HTTP, judged by the causes: the aiohttp transport calls a broken connection a timeout."""
    import httpx2

    chain = _chain(error)
    if any(isinstance(cause, TimeoutError) for cause in chain):
        return CallTimedOut(
            f"{endpoint} gave no complete answer for {model!r} within {timeout_s:g} s", model=model
        )
    reason = redact(" ".join((str(chain[-1]) or type(chain[-1]).__name__).split()))[:SHOWN_CHARS]
    if any(isinstance(cause, httpx2.DecodingError) for cause in chain):
        return BadReply(f"{endpoint} sent a body for {model!r} that cannot be decoded: {reason}", model=model)
    if any(isinstance(cause, socket.gaierror) for cause in chain):
        host = endpoint.rpartition(":")[0] or endpoint
        message = f"the host {host} was not found: check base_url (--base-url), and the network or its proxy"
        return ConnectionFailed(message, model=model, sent=False)
    refused = any(isinstance(cause, (ConnectionRefusedError, httpx2.ConnectError)) for cause in chain)
    hint = "; is a server running there?" if refused else ""
    message = f"no answer from {endpoint} for {model!r}: {reason}{hint}"
    return ConnectionFailed(message, model=model, sent=not refused)


def _without_key(error: CallError, key: str) -> CallError:
    """The same error, its words cleaned: a provider may quote the key that it refuses."""
    error.args = tuple(
        redact(argument, key) if isinstance(argument, str) else argument for argument in error.args
    )
    return error


def _endpoint_of(url: str) -> str:
    """Host and port of the URL.

    Raises:
        SettingsError: it is no URL of a server, or holds credentials.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = None, None, None
    if parts is None or host is None or parts.scheme not in ("http", "https"):
        raise SettingsError(f"base_url={redact(url)!r}: must be a URL such as http://localhost:11434/v1")
    if parts.username is not None:
        raise SettingsError(
            f"the base_url of {host} holds a user name, which cannot be sent beside a key: pass the key as api_key, "
            "and the URL without it"
        )
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host


def _check(key: str, own_url: str, model: str, timeout_s: float, max_connections: int) -> None:
    if not key and not own_url:
        raise AuthenticationFailed(
            "there is no API key and no endpoint: set OPENAI_API_KEY or pass api_key=; or name a server of your "
            "own with base_url= (--base-url), such as http://localhost:11434/v1; or ask without a "
            "model: RLM_REPL(client='offline'), --client offline"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise AuthenticationFailed(
            "the API key holds a character that no key has: check OPENAI_API_KEY or api_key="
        )
    if not model:
        raise SettingsError("model is empty: name a model, such as model='gpt-5-nano'")
    if is_like_a_key(model):
        raise SettingsError("model= was given what looks like an API key (not shown): pass it as api_key=")
    for name, value in (("timeout_s", timeout_s), ("max_connections", max_connections)):
        if not value > 0:
            raise SettingsError(f"{name}={value!r}: must be a number above 0")
