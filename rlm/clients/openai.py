"""Clients for OpenAI and for every endpoint that speaks its Chat Completions API.

`AsyncOpenAIClient` makes one attempt per call: retries, limits and budgets belong to the scheduler, so the retries of
the openai package are off. `OpenAIClient` is its blocking twin. Both keep one connection pool per event loop, which
is closed with the client, or with the loop if the client is never closed.
"""

from __future__ import annotations

import difflib
import warnings
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio

from rlm._async.groups import for_each
from rlm._async.portal import lease
from rlm._async.twins import AsyncContext, BlockingContext
from rlm.checks import model_name, positive_number, whole_number
from rlm.clients.address import EndpointAddress, is_like_a_key
from rlm.clients.base import Prompt, messages_of
from rlm.clients.chat_format import Dialect, StreamReader, encode_body, read_reply, request_body
from rlm.clients.error_mapping import (
    failure_in,
    openai_errors_as_call_errors,
    status_error,
    unsupported_parameter,
)
from rlm.clients.reply_check import check_reply
from rlm.clients.transport import ConnectionPool, ConnectionPools, warm_up
from rlm.errors import BadReply, CallError, SettingsError, UnknownModel
from rlm.metering.tokens import estimate_call
from rlm.values import Call, FailedCall, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable

    import httpx2

__all__ = ["AsyncOpenAIClient", "OpenAIClient", "Prompt", "is_like_a_key", "warm_up"]

LISTING_TIMEOUT_S = 5.0
SHOWN_MODELS = 10


class AsyncOpenAIClient(AsyncContext):
    """Client for one OpenAI-compatible endpoint; safe to use from several event loops at once.

    A forked child opens its own connections and neither uses nor closes those of its parent.

    Attributes:
        model: the model of `completion` and `batch_completion`.
        endpoint: host and port that requests go to.
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
            model: the model of `completion` and `batch_completion`; `complete` uses the model of its call.
            api_key: by default `OPENAI_API_KEY`. A server of your own needs none.
            base_url: by default `OPENAI_BASE_URL`, else OpenAI.
            timeout_s: seconds from sending a request to its complete answer.
            max_connections: limit of requests in flight; further requests wait.

        Raises:
            AuthenticationFailed: neither a key nor an endpoint is given.
            SettingsError: a setting has a value that cannot work.
        """
        address = EndpointAddress.of(api_key, base_url)
        model_name("model", model)
        positive_number("timeout_s", timeout_s)
        positive_number("max_connections", max_connections)
        if is_like_a_key(model):
            raise SettingsError(
                "model= was given what looks like an API key (not shown): pass it as api_key="
            )
        self.model = model
        self.endpoint = address.name
        self._key = address.key
        self._timeout_s = timeout_s
        self._pools = ConnectionPools(address, timeout_s=timeout_s, max_connections=max_connections)
        self._first_dialect = address.dialect
        self._dialects: dict[str, Dialect] = {}
        self._available: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r}, endpoint={self.endpoint!r})"

    async def complete(self, call: Call) -> Reply:
        """Ask the model once; the reply may be empty, cut or declined, see `clients.reply_check.check_reply`.

        If the endpoint refuses a parameter, the request is repeated without it, and later requests to this model omit
        or rename it. `Reply.attempts` is then above 1 and `Reply.warnings` says so, the first time.

        Raises:
            CallError: there is no answer; the subclass says why.
            RuntimeError: the client is closed.
        """
        pool = await self._pools.of_running_loop()
        async with pool.connection():
            started = anyio.current_time()
            async with self._mapped_errors(call):
                with anyio.fail_after(self._timeout_s):
                    exchange = await self._post(pool, call, stream=False)
                response = exchange.response
                reply = read_reply(response.content, call, self.endpoint, response.headers)
            return exchange.finish(reply, started)

    async def stream(self, call: Call) -> AsyncIterator[str | Reply]:
        """Ask the model once; yield its text in parts as they arrive, then the complete `Reply`.

        To stop early, use `contextlib.aclosing`, which closes the connection at once.

        Raises:
            CallError: as `complete`, possibly after a part of the text.
        """
        pool = await self._pools.of_running_loop()
        async with pool.connection():
            started = anyio.current_time()
            deadline = started + self._timeout_s
            async with self._mapped_errors(call):
                with anyio.fail_after(self._timeout_s):
                    exchange = await self._post(pool, call, stream=True)
            try:
                async with aclosing(self._parts(exchange.response, call)) as parts:
                    while (part := await self._next(parts, call, deadline)) is not None:
                        yield part if isinstance(part, str) else exchange.finish(part, started)
            finally:
                with anyio.CancelScope(shield=True):
                    await exchange.response.aclose()

    async def completion(
        self, prompt: Prompt, max_tokens: int | None = None, *, temperature: float | None = None
    ) -> str:
        """Return the model's answer to a text or to messages.

        Raises:
            CallError: as `complete`, or the reply cannot be used.
            TypeError: the prompt is neither text nor messages.
        """
        call = self._call(prompt, max_tokens, temperature)
        reply = check_reply(call, await self.complete(call), estimate_call)
        _warn(reply.warnings)
        return reply.text

    async def batch_completion(
        self, prompts: Iterable[Prompt], max_concurrent: int = 10, *, max_tokens: int | None = None
    ) -> list[str]:
        """Return the answers to many prompts, in their order; a failed one is a falsy `FailedCall` with `.error`.

        Raises:
            SettingsError: `max_concurrent` is below 1.
            TypeError: the prompts are a single text, or one of them is no prompt.
        """
        if isinstance(prompts, str):
            raise TypeError("batch_completion takes many prompts and was given one text: put it in a list")
        whole_number("max_concurrent", max_concurrent)
        calls = [self._call(prompt, max_tokens) for prompt in prompts]
        if calls:
            await self._pools.of_running_loop()  # raises settings errors once, not in each slot
        results = await _complete_all(self, calls, max_concurrent)
        _warn(text for result in results if isinstance(result, Reply) for text in result.warnings)
        return [result.text if isinstance(result, Reply) else FailedCall(result) for result in results]

    async def available_models(self) -> tuple[str, ...]:
        """Return the names of the models that the endpoint lists.

        Raises:
            CallError: the endpoint does not answer within 5 seconds, or sends no list.
        """
        pool = await self._pools.of_running_loop()
        call = Call(model="", messages=())
        async with self._mapped_errors(call, list_models=False):
            with anyio.fail_after(LISTING_TIMEOUT_S):
                response = await pool.send("GET", "models")
            if not response.is_success:
                raise status_error(response, self._key)
            try:
                return tuple(sorted(str(entry["id"]) for entry in response.json()["data"]))
            except (ValueError, LookupError, TypeError) as error:
                raise BadReply(f"{self.endpoint} sent no list of models", model=self.model) from error

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._pools.aclose()

    def _call(self, prompt: Prompt, max_tokens: int | None = None, temperature: float | None = None) -> Call:
        return Call(
            model=self.model,
            messages=messages_of(prompt),
            max_output_tokens=max_tokens,
            temperature=temperature,
        )

    async def _post(self, pool: ConnectionPool, call: Call, *, stream: bool) -> _Exchange:
        """Send the call; repeat it as long as the endpoint refuses parameters that can be left out."""
        attempts = 0
        changes: list[str] = []
        while True:
            attempts += 1
            body = request_body(call, self._dialects.get(call.model, self._first_dialect), stream=stream)
            response = await pool.send("POST", "chat/completions", encode_body(body), stream=stream)
            if response.is_success:
                return _Exchange(response, attempts, tuple(changes))
            await response.aread()
            parameter = unsupported_parameter(failure_in(response), body)
            if parameter is None or parameter in call.extra:
                raise status_error(response, self._key)
            changes += self._omit(parameter, call.model)

    def _omit(self, parameter: str, model: str) -> list[str]:
        """Omit the parameter from requests to this model; return a warning, the first time."""
        dialect = self._dialects.get(model, self._first_dialect)
        if parameter in dialect.refused:  # a concurrent call was refused it, too
            return []
        self._dialects[model], instead = dialect.without(parameter)
        return [f"{model!r} at {self.endpoint} does not take `{parameter}`: {instead}"]

    async def _parts(self, response: httpx2.Response, call: Call) -> AsyncGenerator[str | Reply, None]:
        """Yield the texts of a response as they arrive, then the reply; some servers do not stream."""
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
        self, parts: AsyncGenerator[str | Reply, None], call: Call, deadline: float
    ) -> str | Reply | None:
        async with self._mapped_errors(call):
            with anyio.fail_after(deadline - anyio.current_time()):
                return await anext(parts, None)

    @asynccontextmanager
    async def _mapped_errors(self, call: Call, *, list_models: bool = True) -> AsyncIterator[None]:
        """Replace errors of the package and its transports by ours; `UnknownModel` names the models there are."""
        try:
            with openai_errors_as_call_errors(call, self.endpoint, self._timeout_s, self._key):
                yield
        except UnknownModel as error:
            if not list_models:
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
        more = f" and {len(names) - SHOWN_MODELS} more" if len(names) > SHOWN_MODELS else ""
        message = f"{error}; it has {', '.join(names[:SHOWN_MODELS])}{more}"
        return UnknownModel(message, available=names, model=error.model, status=error.status)


class OpenAIClient(BlockingContext):
    """Blocking twin of `AsyncOpenAIClient`, with the same settings, for scripts, notebooks and threads.

    Any number of threads may use one client at once. Its methods raise `RuntimeError` on rlm's own event
    loop, that is, inside of another client.
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
        call = self._client._call(prompt, max_tokens, temperature)  # noqa: SLF001 - its twin
        reply = check_reply(call, self.complete(call), estimate_call)
        # Here, so that the warning names the caller's line and not one of the loop thread.
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
        """Close the connections and release the loop thread. Idempotent."""
        if self._client._pools:  # noqa: SLF001 - its twin
            self._portal.call(self._client.aclose)
        self._portal.close()


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A successful response, the number of requests it took, and warnings about the parameters left out."""

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


async def _complete_all(
    client: AsyncOpenAIClient, calls: list[Call], max_concurrent: int
) -> list[Reply | CallError]:
    """Return a reply or an error for each call, in order."""
    results: dict[int, Reply | CallError] = {}

    async def ask(numbered: tuple[int, Call]) -> None:
        index, call = numbered
        try:
            results[index] = check_reply(call, await client.complete(call), estimate_call)
        except CallError as error:
            results[index] = error

    await for_each(enumerate(calls), ask, max_concurrent=min(max_concurrent, len(calls)))
    return [results[index] for index in range(len(calls))]


def _warn(texts: Iterable[str]) -> None:
    for text in dict.fromkeys(texts):
        warnings.warn(text, stacklevel=3)
