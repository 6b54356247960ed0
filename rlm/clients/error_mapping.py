"""Map HTTP statuses and exceptions to errors of `rlm.errors`, and so decide what is retried: `RULES`.

Three kinds of failures arrive here: an error response of an OpenAI-compatible endpoint (`call_error`), a failure of
the HTTP transport below it (`openai_errors_as_call_errors`), and an exception of an SDK inside of a client that we do
not know (`sdk_errors_as_call_errors`). No API key survives in a message.
"""

from __future__ import annotations

import re
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EHOSTUNREACH, ENETUNREACH
from typing import TYPE_CHECKING, Any

import anyio

from rlm.clients.headers import retry_after
from rlm.errors import (
    AuthenticationFailed,
    BadReply,
    BadRequest,
    CallError,
    CallTimedOut,
    ConnectionFailed,
    ContextTooLong,
    QuotaExhausted,
    RateLimited,
    Refused,
    RLMError,
    ServerError,
    TransientError,
    UnknownModel,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    import httpx2
    import openai

    from rlm.values import Call

__all__ = [
    "Failure",
    "call_error",
    "failure_in",
    "openai_errors_as_call_errors",
    "quoted",
    "read_failure",
    "redact",
    "sdk_errors_as_call_errors",
    "status_error",
    "unsupported_parameter",
]

SHOWN_CHARS = 300
"""Characters of a provider's or transport's own words that go into an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as an endpoint reported it; `kind` is the `type` field of the body."""

    status: int
    message: str
    code: str = ""
    kind: str = ""
    param: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def read_failure(status: int, body: object, headers: Mapping[str, str]) -> Failure:
    """Read the body of an error response: OpenAI's object, a flat object, a text under `error`, or plain text."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        fields = error
    elif isinstance(body, dict) and not isinstance(error, str):
        fields = body
    else:
        fields = {"message": error if isinstance(error, str) else body}
    message = fields.get("message") or fields.get("detail") or ""
    return Failure(
        status=status,
        message=" ".join(str(message).split()),
        code=str(fields.get("code") or ""),
        kind=str(fields.get("type") or ""),
        param=str(fields.get("param") or ""),
        headers=headers,
    )


def failure_in(response: httpx2.Response) -> Failure:
    """Read the failure in an error response whose body has arrived."""
    try:
        body = response.json()
    except ValueError:
        body = response.text
    return read_failure(response.status_code, body, response.headers)


def call_error(failure: Failure, model: str, endpoint: str, *, hints: bool = True) -> CallError:
    """Return the error for a failure: that of the first matching rule.

    Args:
        failure: what the endpoint reported.
        model: the model of the call.
        endpoint: names the endpoint in the message.
        hints: add what to check, in terms of our own OpenAI client.
    """
    rule = next((rule for rule in RULES if rule.applies(failure)), OTHERWISE)
    status = "" if failure.status == 200 else f" ({failure.status})"  # noqa: PLR2004 - an error with status OK
    words = rule.sentence.format(
        model=repr(model), endpoint=endpoint, status=status, said=quoted(failure.message)
    )
    message = f"{words}; {rule.hint}" if rule.hint and hints else words
    if issubclass(rule.error, TransientError):
        wait_s = retry_after(failure.headers)
        return rule.error(message, model=model, status=failure.status, retry_after=wait_s)
    return rule.error(message, model=model, status=failure.status)


def unsupported_parameter(failure: Failure, body: Mapping[str, Any]) -> str | None:
    """Return the parameter of `body` that a 400 or 422 calls unsupported, or None if it reports something else."""
    if failure.status not in (400, 422) or not (
        failure.code in ("unsupported_parameter", "unsupported_value", "unknown_parameter")
        or UNSUPPORTED.search(failure.message)
    ):
        return None
    names = ("max_completion_tokens", "max_tokens", "temperature", "stream_options")
    sent = [name for name in names if name in body]
    if failure.param in sent:
        return failure.param
    first = {name: found.start() for name in sent if (found := re.search(rf"\b{name}\b", failure.message))}
    return min(first, key=first.__getitem__) if first else None


def redact(text: str, secret: str = "") -> str:
    """Return the text without `secret` and without anything in the form of an API key."""
    if secret:
        text = text.replace(secret, "[key]")
    return KEY.sub("[key]", text)


def quoted(said: str) -> str:
    """Return a provider's own words, shortened and without keys, as the end of a sentence; '' if there are none."""
    said = redact(said).rstrip(". ")
    return f": {said[:SHOWN_CHARS]}{'…' if len(said) > SHOWN_CHARS else ''}" if said else ""


@contextmanager
def openai_errors_as_call_errors(call: Call, endpoint: str, timeout_s: float, key: str) -> Iterator[None]:
    """Replace errors of the openai package and its transports by ours, each with its cause and without the key."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _without_key(call_error(failure_in(error.response), call.model, endpoint), key) from error
    except CallError as error:
        _without_key(error, key)
        raise
    except _transport_errors() as error:
        ours = _transport_error(error, call.model, endpoint, timeout_s)
        raise ours from _presentable(error, str(ours), key)


@contextmanager
def sdk_errors_as_call_errors(call: Call, endpoint: str = "the provider") -> Iterator[None]:
    """Replace errors of any SDK by ours, so that the scheduler retries what may succeed later.

    An error with an HTTP status of 400 to 599 (`status_code`, `status` or `code`, of the error itself or of its
    `response`) is read as that response, with its `Retry-After`. A `TimeoutError` is a `CallTimedOut`; a
    `ConnectionError`, or what httpx, aiohttp and requests raise for one, is a `ConnectionFailed`; causes count, too.
    Our own errors and all others, such as a `KeyError` in the client's code, pass unchanged.
    """
    try:
        yield
    except RLMError:
        raise
    except Exception as error:
        ours = _sdk_error(error, call.model, endpoint)
        if ours is None:
            raise
        raise ours from error


def status_error(response: httpx2.Response, key: str) -> openai.APIStatusError:
    """Return the error that the openai package would raise, as the cause of ours: users of the package know it."""
    import openai

    words = redact(failure_in(response).message, key)
    return openai.APIStatusError(
        f"Error code: {response.status_code} - {words}", response=response, body=None
    )


def _sdk_error(error: Exception, model: str, endpoint: str) -> CallError | None:
    response = getattr(error, "response", None)
    numbers = [
        getattr(source, name, None)
        for source in (error, response)
        for name in ("status_code", "status", "code")
    ]
    status = next((each for each in numbers if isinstance(each, int) and 400 <= each < 600), None)  # noqa: PLR2004
    if status is not None:
        headers = _lower_headers(getattr(response, "headers", None) or getattr(error, "headers", None))
        failure = read_failure(status, getattr(error, "body", None) or {}, headers)
        return call_error(
            failure if failure.message else read_failure(status, str(error), headers),
            model,
            endpoint,
            hints=False,
        )
    chain = _causes(error)
    words = quoted(" ".join((str(error) or type(error).__name__).split()))
    if any(isinstance(cause, TimeoutError) for cause in chain):
        return CallTimedOut(f"the client gave no answer of {model!r} in time{words}", model=model)
    if any(_is_broken_connection(cause) for cause in chain):
        sent = not any(isinstance(cause, (ConnectionRefusedError, socket.gaierror)) for cause in chain)
        return ConnectionFailed(f"the client reached no model {model!r}{words}", model=model, sent=sent)
    return None


def _lower_headers(headers: Any) -> dict[str, str]:
    try:
        return {str(name).lower(): str(value) for name, value in headers.items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def _is_broken_connection(error: BaseException) -> bool:
    if (
        isinstance(error, OSError)
        and error.errno in (None, ENETUNREACH, EHOSTUNREACH)
        and type(error) is OSError
    ):
        return True  # "All connection attempts failed" of anyio and asyncio
    http_libraries = (
        ("httpx", "TransportError"),
        ("httpx2", "TransportError"),
        ("aiohttp", "ClientConnectionError"),
        ("requests", "ConnectionError"),
    )
    kinds = [getattr(sys.modules.get(module), name, None) for module, name in http_libraries]
    return isinstance(
        error, (ConnectionError, socket.gaierror, *(kind for kind in kinds if isinstance(kind, type)))
    )


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return what a transport of the openai package may raise; `OSError` covers timeouts and TLS."""
    import httpx2

    own = (httpx2.RequestError, httpx2.StreamError, anyio.EndOfStream, OSError)
    aiohttp = sys.modules.get("aiohttp")  # some of its errors are passed on unchanged
    return own if aiohttp is None else (*own, aiohttp.ClientError)


def _transport_error(error: Exception, model: str, endpoint: str, timeout_s: float) -> TransientError:
    """Judge a failure below HTTP by its causes: the aiohttp transport calls a broken connection a timeout."""
    import httpx2

    chain = _causes(error)
    asked = f" for {model!r}" if model else ""  # a list of models is asked for without one
    if any(isinstance(cause, TimeoutError) for cause in chain):
        return CallTimedOut(f"{endpoint} gave no complete answer{asked} within {timeout_s:g} s", model=model)
    reason = redact(" ".join((str(chain[-1]) or type(chain[-1]).__name__).split()))[:SHOWN_CHARS]
    if any(isinstance(cause, httpx2.DecodingError) for cause in chain):
        return BadReply(f"{endpoint} sent a body{asked} that cannot be decoded: {reason}", model=model)
    if any(isinstance(cause, socket.gaierror) for cause in chain):
        host = endpoint.rpartition(":")[0] or endpoint
        message = f"the host {host} was not found: check base_url (--base-url), and the network or its proxy"
        return ConnectionFailed(message, model=model, sent=False)
    refused = any(isinstance(cause, (ConnectionRefusedError, httpx2.ConnectError)) for cause in chain)
    hint = "; is a server running there?" if refused else ""
    message = f"no answer from {endpoint}{asked}: {reason}{hint}"
    return ConnectionFailed(message, model=model, sent=not refused)


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error and its causes, the root cause last.

    Follows `__cause__` alone, since a `__context__` may be an error that the caller was handling when it made this
    call. Only httpcore leaves the error of the socket as a context; there it is made the cause.
    """
    chain = [error]
    while (last := chain[-1]).__cause__ is not None or type(last).__module__.startswith("httpcore"):
        last.__cause__ = cause = last.__cause__ or last.__context__
        if cause is None or cause in chain:
            break
        chain.append(cause)
    return chain


def _presentable(error: Exception, words: str, key: str) -> Exception:
    """Return the error, or a substitute if its `repr` shows the key: some errors of aiohttp quote the whole request."""
    import httpx2

    if not key or not any(key in repr(cause) for cause in _causes(error)):
        return error
    return httpx2.RemoteProtocolError(f"{type(error).__name__}: {words}")


def _without_key(error: CallError, key: str) -> CallError:
    """Remove the key from the message of an error, since a provider may quote the key that it refuses."""
    error.args = tuple(
        redact(argument, key) if isinstance(argument, str) else argument for argument in error.args
    )
    return error


KEY = re.compile(r"\b(?:sk|rk|pk|gsk|xai|hf)[-_][\w*.-]{8,}|\bAIza[\w-]{20,}|(?<=Bearer )\S+")
NO_SUCH_MODEL = re.compile(
    r"\bmodel\b[^.]*\b(?:not found|not exist|no such|unknown|not a valid model|is not available)"
    r"|\b(?:unknown|no such|invalid) model\b|not a valid model",
    re.IGNORECASE,
)
TOO_LONG = re.compile(
    r"context (?:length|window|size)|prompt is too long|too many (?:input )?tokens|input tokens exceed"
    r"|maximum input length|exceeds? the (?:model's )?(?:maximum|limit) .*tokens",
    re.IGNORECASE,
)
TOO_LARGE_AT_ONCE = re.compile(r"request too large", re.IGNORECASE)
UNSUPPORTED = re.compile(
    r"unsupported|not supported|does not support|unrecognized|unknown|unexpected|not permitted|not allowed",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """Conditions under which a failure is `error`.

    Without `wording`, one of the statuses or one of the codes is enough. With it, the status must be one of the
    statuses, and the code or the wording must match. Codes are compared with the fields `code` and `type`.
    """

    error: type[CallError]
    sentence: str
    statuses: Container[int] = ()
    codes: tuple[str, ...] = ()
    wording: re.Pattern[str] | None = None
    hint: str = ""

    def applies(self, failure: Failure) -> bool:
        has_code = failure.code in self.codes or failure.kind in self.codes
        has_status = failure.status in self.statuses
        if self.wording is None:
            return has_code or has_status
        return has_status and (has_code or self.wording.search(failure.message) is not None)


RULES = (
    _Rule(
        QuotaExhausted,
        "the account at {endpoint} has no credit left for {model}{said}",
        statuses=(402,),
        codes=("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"),
    ),
    _Rule(
        Refused,
        "the filter of {endpoint} declined the prompt for {model}{said}",
        codes=("content_filter", "content_policy_violation"),
    ),
    _Rule(
        UnknownModel,
        "{endpoint} has no model {model}{said}",
        statuses=(400, 403, 404, 422),
        codes=("model_not_found", "invalid_model", "model_not_available"),
        wording=NO_SUCH_MODEL,
    ),
    _Rule(
        AuthenticationFailed,
        "{endpoint} does not accept the API key for {model}{status}{said}",
        statuses=(401, 403),
        codes=("invalid_api_key", "authentication_error", "permission_error"),
        hint="check OPENAI_API_KEY or api_key=, and that the key belongs to this endpoint",
    ),
    _Rule(
        ContextTooLong,
        "the prompt does not fit {model} at {endpoint}{said}; send less, or split it",
        statuses=(200, 400, 413, 422),
        codes=("context_length_exceeded", "exceed_context_size_error", "string_above_max_length"),
        wording=TOO_LONG,
    ),
    _Rule(
        BadRequest,
        "one request is over the rate limit of {model} at {endpoint}, so waiting does not help{said}",
        statuses=(429,),
        wording=TOO_LARGE_AT_ONCE,
    ),
    _Rule(
        RateLimited,
        "{endpoint} wants fewer requests to {model}{status}{said}",
        statuses=(429,),
        codes=("rate_limit_exceeded", "rate_limit_error"),
    ),
    _Rule(
        ServerError,
        "{endpoint} failed to answer for {model}{status}{said}",
        statuses=frozenset({408, 409, 425, *range(500, 600)}),
        codes=("server_error", "internal_error", "overloaded_error", "internal_server_error"),
    ),
    _Rule(
        BadReply,
        "{endpoint} sent an error in place of an answer of {model}{said}",
        statuses=(200,),
    ),
    _Rule(
        BadRequest,
        "{endpoint} has no chat completions at this address{status}{said}",
        statuses=(404,),
        hint="check the base URL, which most often ends in /v1",
    ),
)
"""Tried in order; the first one that applies decides."""

OTHERWISE = _Rule(BadRequest, "{endpoint} refuses the request to {model}{status}{said}")
