"""The Chat Completions format on paper: calls to request bodies, response bodies to replies, failures to errors.

Nothing here sends or receives. `openai.py` carries these values over HTTP; a batch file of requests could carry
them as well. The format is the one of https://platform.openai.com/docs/api-reference/chat, read leniently, since
compatible servers differ in what they leave out.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from rlm.errors import (
    AuthenticationFailed,
    BadReply,
    BadRequest,
    CallError,
    ConnectionFailed,
    ContextTooLong,
    OutputTruncated,
    QuotaExhausted,
    RateLimited,
    Refused,
    ServerError,
    TransientError,
    UnknownModel,
)
from rlm.values import RateLimits, Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from rlm.values import Call, FinishReason

__all__ = [
    "Dialect",
    "Failure",
    "StreamReader",
    "encode",
    "error_of",
    "learned",
    "lesson_of",
    "rate_limits",
    "read_failure",
    "read_reply",
    "redact",
    "request_body",
    "retry_after",
]

OutputCap = Literal["max_completion_tokens", "max_tokens"]

CHARS_PER_TOKEN = 3.3
"""For the estimate where an endpoint reports no usage; measured over code, Markdown and prose."""

SHOWN_CHARS = 300
"""How much of a provider's own words goes into an error."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which parameters a model at an endpoint takes, as far as it has told.

    `output_cap` is the name to try first for the cap on the output; `refused` holds the parameters that were
    answered with a 400, which are not sent again.
    """

    output_cap: OutputCap = "max_tokens"
    refused: frozenset[str] = frozenset()

    def cap_name(self) -> OutputCap | None:
        """The name under which a cap on the output is sent, or None where the model takes neither."""
        other: OutputCap = "max_tokens" if self.output_cap != "max_tokens" else "max_completion_tokens"
        return next((name for name in (self.output_cap, other) if name not in self.refused), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as an endpoint reported it; `kind` is the `type` field of the body."""

    status: int
    message: str
    code: str = ""
    kind: str = ""
    param: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def request_body(call: Call, dialect: Dialect, *, stream: bool = False) -> dict[str, Any]:
    """The JSON object that asks for this call in this dialect."""
    body: dict[str, Any] = {
        "model": call.model,
        "messages": [{"role": message.role, "content": message.content} for message in call.messages],
    }
    if call.max_output_tokens is not None and (name := dialect.cap_name()):
        body[name] = call.max_output_tokens
    if call.temperature is not None and "temperature" not in dialect.refused:
        body["temperature"] = call.temperature
    if call.schema is not None:
        schema = {"name": "reply", "schema": dict(call.schema), "strict": _is_strict(call.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if stream:
        body["stream"] = True
        if "stream_options" not in dialect.refused:
            body["stream_options"] = {"include_usage": True}
    return {**body, **call.extra}


def encode(body: Mapping[str, Any]) -> bytes:
    """The body as UTF-8; a lone surrogate, which no endpoint takes, becomes `?`.

    Raises:
        BadRequest: a parameter is no JSON value.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"a parameter of the call is no JSON value: {error}", model=body["model"]) from error


def read_reply(content: bytes, call: Call, endpoint: str, headers: Mapping[str, str]) -> Reply:
    """The reply in the body of a 200.

    Raises:
        BadReply: it is no chat completion, or one without text.
        OutputTruncated: the output cap was reached before any text came.
        Refused: the model or the provider's filter declined.
        CallError: the body is an error after all; the class that its own words call for.
    """
    body = _json_object(content, call, endpoint)
    if body.get("error") and not body.get("choices"):
        raise error_of(read_failure(_status_in(body), body, headers), call.model, endpoint)
    choice = _first(body.get("choices"))
    if choice is None:
        usage = _usage(body, call, "")
        raise BadReply(f"{endpoint} sent no choices for {call.model!r}", model=call.model, usage=usage)
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    return _judged(
        text=_text_of(message.get("content")),
        refusal=message.get("refusal"),
        finish_reason=choice.get("finish_reason"),
        body=body,
        call=call,
        endpoint=endpoint,
        headers=headers,
    )


class StreamReader:
    """Reads a reply from the lines of a server-sent event stream."""

    def __init__(self, call: Call, endpoint: str, headers: Mapping[str, str]) -> None:
        self._call = call
        self._endpoint = endpoint
        self._headers = headers
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._body: dict[str, Any] = {}
        self._finish_reason: Any = None
        self._complete = False

    def feed(self, line: str) -> str:
        """Take one line and give the text it adds to the answer, often ''.

        Raises:
            CallError: the line reports an error, or is none of this format.
        """
        if not line.startswith("data:"):  # comments, event names and empty lines carry nothing here
            return ""
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self._complete = True
            return ""
        chunk = _json_object(data.encode(), self._call, self._endpoint)
        if chunk.get("error"):
            failure = read_failure(_status_in(chunk), chunk, self._headers)
            raise error_of(failure, self._call.model, self._endpoint)
        self._body.update({key: chunk[key] for key in ("model", "usage") if chunk.get(key)})
        return self._take(_first(chunk.get("choices")) or {})

    def reply(self) -> Reply:
        """The whole reply, once there are no more lines.

        Raises:
            ConnectionFailed: the stream ended before the answer did.
            CallError: as `read_reply`.
        """
        text = "".join(self._texts)
        if not self._complete and self._finish_reason is None:
            message = (
                f"{self._endpoint} ended the stream of {self._call.model!r} before the answer was complete"
            )
            usage = _usage(self._body, self._call, text)
            raise ConnectionFailed(message, model=self._call.model, usage=usage)
        return _judged(
            text=text,
            refusal="".join(self._refusals),
            finish_reason=self._finish_reason,
            body=self._body,
            call=self._call,
            endpoint=self._endpoint,
            headers=self._headers,
        )

    def _take(self, choice: Mapping[str, Any]) -> str:
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return ""
        if isinstance(refusal := delta.get("refusal"), str):
            self._refusals.append(refusal)
        text = _text_of(delta.get("content"))
        self._texts.append(text)
        return text


def read_failure(status: int, body: object, headers: Mapping[str, str]) -> Failure:
    """What an error response says, whatever form it has."""
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


def error_of(failure: Failure, model: str, endpoint: str) -> CallError:
    """The one error of ours that a failure is."""
    rule = next(rule for rule in RULES if rule.applies(failure))
    sentence = rule.sentence.format(
        model=repr(model), endpoint=endpoint, status=failure.status, said=_sentence(failure.message)
    )
    if issubclass(rule.error, TransientError):
        wait = retry_after(failure.headers)
        return rule.error(sentence, model=model, status=failure.status, retry_after=wait)
    return rule.error(sentence, model=model, status=failure.status)


def lesson_of(failure: Failure, body: Mapping[str, Any]) -> str | None:
    """The parameter of `body` that a 400 says the model does not take, or None where it says something else."""
    if failure.status not in (400, 422) or not (
        failure.code in ("unsupported_parameter", "unsupported_value", "unknown_parameter")
        or NOT_TAKEN.search(failure.message)
    ):
        return None
    names = ("max_completion_tokens", "max_tokens", "temperature", "stream_options")
    sent = [name for name in names if name in body]
    if failure.param in sent:
        return failure.param
    first = {name: found.start() for name in sent if (found := re.search(rf"\b{name}\b", failure.message))}
    return min(first, key=first.__getitem__) if first else None


def learned(dialect: Dialect, parameter: str) -> tuple[Dialect, str]:
    """The dialect without the parameter, and in words what is done instead."""
    changed = replace(dialect, refused=dialect.refused | {parameter})
    if parameter == "temperature":
        return changed, "its own default is used"
    if parameter == "stream_options":
        return changed, "the usage of its streams is estimated"
    name = changed.cap_name()
    return changed, f"`{name}` is sent instead" if name else "its output is not capped"


def rate_limits(headers: Mapping[str, str]) -> RateLimits | None:
    """What the `x-ratelimit-*` headers say, or None where there are none."""
    values = {
        f"{kind}_{name}": read(headers.get(f"x-ratelimit-{header}-{kind}", ""))
        for kind in ("requests", "tokens")
        for name, header, read in (
            ("per_minute", "limit", _number),
            ("remaining", "remaining", _number),
            ("reset_s", "reset", _duration),
        )
    }
    return RateLimits(**values) if any(value is not None for value in values.values()) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `Retry-After` (seconds, or a date).

    A date is held against the server's own `Date`, where it sends one, so that our clock may be wrong.
    """
    if (milliseconds := _number(headers.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "")
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        until = parsedate_to_datetime(value)
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (until - now).total_seconds())
    except (TypeError, ValueError):
        return None


def redact(text: str, secret: str = "") -> str:
    """The text without `secret` and without anything in the form of an API key."""
    if secret:
        text = text.replace(secret, "[key]")
    return KEY.sub("[key]", text)


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
NOT_TAKEN = re.compile(
    r"unsupported|not supported|does not support|unrecognized|unknown|unexpected|not permitted|not allowed",
    re.IGNORECASE,
)
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "content_filter": "filter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """When a failure is which error: every condition that is given must hold."""

    error: type[CallError]
    sentence: str
    statuses: Container[int] | None = None
    words: frozenset[str] = frozenset()
    wording: re.Pattern[str] | None = None

    def applies(self, failure: Failure) -> bool:
        if self.statuses is not None and failure.status not in self.statuses:
            return False
        if not self.words and self.wording is None:
            return True
        worded = self.wording is not None and self.wording.search(failure.message) is not None
        return worded or not self.words.isdisjoint((failure.code, failure.kind))


RULES = (
    _Rule(
        error=QuotaExhausted,
        sentence="the account at {endpoint} has no credit left for {model}{said}",
        words=frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}),
    ),
    _Rule(
        error=QuotaExhausted,
        sentence="the account at {endpoint} has no credit left for {model}{said}",
        statuses=(402,),
    ),
    _Rule(
        error=Refused,
        sentence="the filter of {endpoint} declined the prompt for {model}{said}",
        words=frozenset({"content_filter", "content_policy_violation"}),
    ),
    _Rule(
        error=UnknownModel,
        sentence="{endpoint} has no model {model}{said}",
        statuses=(400, 403, 404, 422),
        words=frozenset({"model_not_found", "invalid_model", "model_not_available"}),
        wording=NO_SUCH_MODEL,
    ),
    _Rule(
        error=AuthenticationFailed,
        sentence="{endpoint} does not accept the API key for {model} ({status}){said}; "
        "check OPENAI_API_KEY or api_key=, and that the key belongs to this endpoint",
        statuses=(401, 403),
    ),
    _Rule(
        error=AuthenticationFailed,
        sentence="{endpoint} does not accept the API key for {model}{said}; check OPENAI_API_KEY or api_key=",
        words=frozenset({"invalid_api_key", "authentication_error", "permission_error"}),
    ),
    _Rule(
        error=ContextTooLong,
        sentence="the prompt does not fit {model} at {endpoint}{said}; send less, or split it",
        statuses=(200, 400, 413, 422),
        words=frozenset({"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}),
        wording=TOO_LONG,
    ),
    _Rule(
        error=BadRequest,
        sentence="one request is over the rate limit of {model} at {endpoint}, so waiting does not help{said}",
        statuses=(429,),
        wording=TOO_LARGE_AT_ONCE,
    ),
    _Rule(
        error=RateLimited,
        sentence="{endpoint} wants fewer requests to {model} ({status}){said}",
        statuses=(429,),
    ),
    _Rule(
        error=RateLimited,
        sentence="{endpoint} wants fewer requests to {model}{said}",
        words=frozenset({"rate_limit_exceeded", "rate_limit_error"}),
    ),
    _Rule(
        error=ServerError,
        sentence="{endpoint} failed to answer for {model} ({status}){said}",
        statuses=frozenset({408, 409, 425, *range(500, 600)}),
    ),
    _Rule(
        error=ServerError,
        sentence="{endpoint} failed to answer for {model}{said}",
        words=frozenset({"server_error", "internal_error", "overloaded_error", "internal_server_error"}),
    ),
    _Rule(
        error=BadReply,
        sentence="{endpoint} sent an error in place of an answer of {model}{said}",
        statuses=(200,),
    ),
    _Rule(
        error=BadRequest,
        sentence="{endpoint} has no chat completions there (404){said}; "
        "check the base URL, which most often ends in /v1",
        statuses=(404,),
    ),
    _Rule(error=BadRequest, sentence="{endpoint} refuses the request to {model} ({status}){said}"),
)
"""Tried from the top; the last one always applies."""


def _judged(
    *,
    text: str,
    refusal: object,
    finish_reason: object,
    body: Mapping[str, Any],
    call: Call,
    endpoint: str,
    headers: Mapping[str, str],
) -> Reply:
    """The reply, unless what came is none."""
    usage = _usage(body, call, text)
    known: dict[str, Any] = {"model": call.model, "usage": usage}
    finished = FINISH_REASONS.get(str(finish_reason), "unknown")
    if refusal:
        raise Refused(f"{call.model!r} declined to answer{_sentence(str(refusal))}", **known)
    if finished == "filter":
        raise Refused(f"the filter of {endpoint} stopped the answer of {call.model!r}", **known)
    if finished == "length" and not text:
        message = f"{call.model!r} reached its output cap before it wrote any text; raise the cap"
        raise OutputTruncated(message, text=text, **known)
    if not text:
        raise BadReply(f"{endpoint} sent an answer of {call.model!r} without text", **known)
    warnings = []
    if finished == "length":
        warnings.append(f"an answer of {call.model!r} was cut at its output cap")
    if usage.estimated:
        warnings.append(f"{endpoint} reports no usage for {call.model!r}: its tokens are estimated")
    return Reply(
        text=text,
        model=str(body.get("model") or call.model),
        usage=usage,
        finish_reason=finished,
        rate_limits=rate_limits(headers),
        warnings=tuple(warnings),
    )


def _usage(body: Mapping[str, Any], call: Call, text: str) -> Usage:
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    input_tokens = _count(usage.get("prompt_tokens"))
    if not input_tokens:
        prompt_chars = sum(len(message.content) for message in call.messages)
        return Usage(
            calls=1, input_tokens=_estimate(prompt_chars), output_tokens=_estimate(len(text)), estimated=True
        )
    return Usage(
        calls=1,
        input_tokens=input_tokens,
        cached_tokens=min(input_tokens, _detail(usage, "prompt_tokens_details", "cached_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
    )


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else 0


def _count(value: object) -> int:
    return max(0, int(value)) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def _estimate(chars: int) -> int:
    return math.ceil(chars / CHARS_PER_TOKEN)


def _text_of(content: object) -> str:
    """The text of a message's content, which some servers send in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def _first(choices: object) -> dict[str, Any] | None:
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _json_object(content: bytes, call: Call, endpoint: str) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        return body
    head = redact(content[:80].decode("utf-8", "replace"))
    message = f"{endpoint} sent no chat completion for {call.model!r} but {head!r}"
    if head.lstrip().startswith("<"):
        hint = "a web page: check the base URL, which most often ends in /v1"
        raise BadRequest(f"{message}; {hint}", model=call.model, status=200)
    raise BadReply(message, model=call.model, status=200)


def _status_in(body: Mapping[str, Any]) -> int:
    """The status that an error with status 200 carries in its body, or 200."""
    error = body["error"]
    code = _number(str(error.get("code") or error.get("status") or "")) if isinstance(error, dict) else None
    return int(code) if code is not None and 400 <= code < 600 else 200  # noqa: PLR2004


def _sentence(said: str) -> str:
    said = redact(said).rstrip(". ")
    return f": {said[:SHOWN_CHARS]}{'…' if len(said) > SHOWN_CHARS else ''}" if said else ""


def _is_strict(schema: object) -> bool:
    """Whether OpenAI's strict mode takes the schema: every object closed, all of its properties required."""
    if isinstance(schema, list):
        return all(_is_strict(item) for item in schema)
    if not isinstance(schema, dict):
        return True
    if "properties" in schema or schema.get("type") == "object":
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("properties", ())) != set(schema.get("required", ())):
            return False
    return all(_is_strict(value) for value in schema.values())


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _duration(text: str) -> float | None:
    """Seconds from `6m0s`, `20ms` or a plain number."""
    if (number := _number(text)) is not None:
        return number
    parts = DURATION.findall(text)
    if not parts or "".join(amount + unit for amount, unit in parts) != text.strip():
        return None
    return sum(float(amount) * UNIT_SECONDS[unit] for amount, unit in parts)
