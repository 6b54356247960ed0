"""The Chat Completions format: calls to request bodies, response bodies to replies. No I/O.

`openai.py` sends these bodies over HTTP, `openai_batches.py` in files. The format is specified at
https://platform.openai.com/docs/api-reference/chat; it is read leniently, since compatible servers omit fields.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from rlm.clients.error_mapping import call_error, read_failure, redact
from rlm.clients.headers import non_negative, rate_limits
from rlm.errors import BadReply, BadRequest, ConnectionFailed
from rlm.metering.tokens import estimate
from rlm.values import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm.values import Call, FinishReason

__all__ = ["Dialect", "StreamReader", "encode_body", "read_reply", "request_body"]

OutputCap = Literal["max_completion_tokens", "max_tokens"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """The parameters that a model at an endpoint accepts, as far as known.

    `output_cap` is the name to try first for the cap on output tokens; `refused` holds the parameters that a 400
    called unsupported, which are not sent again.
    """

    output_cap: OutputCap = "max_tokens"
    refused: frozenset[str] = frozenset()

    def cap_name(self) -> OutputCap | None:
        """Return the name to send the output cap under, or None if the model accepts neither name."""
        other: OutputCap = "max_tokens" if self.output_cap != "max_tokens" else "max_completion_tokens"
        return next((name for name in (self.output_cap, other) if name not in self.refused), None)

    def without(self, parameter: str) -> tuple[Dialect, str]:
        """Return the dialect without the parameter, and a few words on what happens instead."""
        changed = replace(self, refused=self.refused | {parameter})
        if parameter == "temperature":
            return changed, "its own default is used"
        if parameter == "stream_options":
            return changed, "the usage of its streams is estimated"
        name = changed.cap_name()
        return changed, f"`{name}` is sent instead" if name else "its output is not capped"


def request_body(call: Call, dialect: Dialect, *, stream: bool = False) -> dict[str, Any]:
    """Build the JSON object of a request, with the parameters that the dialect accepts."""
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


def encode_body(body: Mapping[str, Any]) -> bytes:
    """Encode a request body as UTF-8 JSON; a lone surrogate, which no endpoint accepts, becomes `?`.

    Raises:
        BadRequest: a parameter is no JSON value.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"a parameter of the call is no JSON value: {error}", model=body["model"]) from error


def read_reply(content: bytes, call: Call, endpoint: str, headers: Mapping[str, str]) -> Reply:
    """Read the reply from the body of a response with status 200.

    Raises:
        BadReply: the body is no chat completion.
        CallError: the body reports an error in spite of its status.
    """
    body = _json_object(content, call, endpoint)
    if body.get("error") and not body.get("choices"):
        raise call_error(read_failure(_status_in(body), body, headers), call.model, endpoint)
    choice = _first_choice(body)
    if choice is None:
        raise _no_choices(body, call, endpoint)
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    return _reply(
        text=_text_of(message.get("content")),
        refusal=message.get("refusal"),
        finish_reason=choice.get("finish_reason"),
        body=body,
        call=call,
        endpoint=endpoint,
        headers=headers,
    )


class StreamReader:
    """Parser of one reply from the lines of a server-sent event stream."""

    def __init__(self, call: Call, endpoint: str, headers: Mapping[str, str]) -> None:
        self._call = call
        self._endpoint = endpoint
        self._headers = headers
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._body: dict[str, Any] = {}
        self._finish_reason: Any = None
        self._complete = False
        self._has_choices = False

    def feed(self, line: str) -> str:
        """Parse one line and return the text that it adds to the answer, often ''.

        Raises:
            CallError: the line reports an error, or does not have this format.
        """
        if not line.startswith("data:"):  # a comment, an event name or an empty line
            return ""
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self._complete = True
            return ""
        chunk = _json_object(data.encode(), self._call, self._endpoint)
        if chunk.get("error"):
            failure = read_failure(_status_in(chunk), chunk, self._headers)
            raise call_error(failure, self._call.model, self._endpoint)
        self._body.update({key: chunk[key] for key in ("model", "usage") if chunk.get(key)})
        choice = _first_choice(chunk)
        self._has_choices = self._has_choices or choice is not None
        return self._add(choice or {})

    def reply(self) -> Reply:
        """Return the complete reply, after the last line.

        Raises:
            ConnectionFailed: the stream ended before the answer was complete.
            CallError: as `read_reply`.
        """
        text = "".join(self._texts)
        if not self._complete and self._finish_reason is None:
            message = (
                f"{self._endpoint} ended the stream of {self._call.model!r} before the answer was complete"
            )
            usage = _usage(self._body, self._call, text)
            raise ConnectionFailed(message, model=self._call.model, usage=usage)
        if not self._has_choices:
            raise _no_choices(self._body, self._call, self._endpoint)
        return _reply(
            text=text,
            refusal="".join(self._refusals),
            finish_reason=self._finish_reason,
            body=self._body,
            call=self._call,
            endpoint=self._endpoint,
            headers=self._headers,
        )

    def _add(self, choice: Mapping[str, Any]) -> str:
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return ""
        if isinstance(refusal := delta.get("refusal"), str):
            self._refusals.append(refusal)
        text = _text_of(delta.get("content"))
        self._texts.append(text)
        return text


FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "content_filter": "filter"}


def _reply(
    *,
    text: str,
    refusal: object,
    finish_reason: object,
    body: Mapping[str, Any],
    call: Call,
    endpoint: str,
    headers: Mapping[str, str],
) -> Reply:
    """Build the reply; `check_reply` judges it."""
    usage = _usage(body, call, text)
    unreported = f"{endpoint} reports no usage for {call.model!r}: its tokens are estimated"
    return Reply(
        text=text,
        model=str(body.get("model") or call.model),
        usage=usage,
        refusal=refusal if isinstance(refusal, str) else "",
        finish_reason=FINISH_REASONS.get(str(finish_reason), "unknown"),
        rate_limits=rate_limits(headers),
        warnings=(unreported,) if usage.estimated else (),
    )


def _no_choices(body: Mapping[str, Any], call: Call, endpoint: str) -> BadReply:
    usage = _usage(body, call, "")
    return BadReply(f"{endpoint} sent no choices for {call.model!r}", model=call.model, usage=usage)


def _usage(body: Mapping[str, Any], call: Call, text: str) -> Usage:
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    input_tokens = _token_count(usage.get("prompt_tokens"))
    if not input_tokens:
        prompt_tokens = sum(estimate(message.content) for message in call.messages)
        return Usage(calls=1, input_tokens=prompt_tokens, output_tokens=estimate(text), estimated=True)
    return Usage(
        calls=1,
        input_tokens=input_tokens,
        cached_tokens=min(input_tokens, _detail(usage, "prompt_tokens_details", "cached_tokens")),
        output_tokens=_token_count(usage.get("completion_tokens")),
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
    )


def _detail(usage: Mapping[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return _token_count(details.get(name)) if isinstance(details, dict) else 0


def _token_count(value: object) -> int:
    return max(0, int(value)) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def _text_of(content: object) -> str:
    """Return the text of a message's content, which some servers send as a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def _first_choice(body: Mapping[str, Any]) -> dict[str, Any] | None:
    choices = body.get("choices")
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
    """Return the status that an error carries in its body although the response has 200, else 200."""
    error = body["error"]
    code = (
        non_negative(str(error.get("code") or error.get("status") or "")) if isinstance(error, dict) else None
    )
    return int(code) if code is not None and 400 <= code < 600 else 200  # noqa: PLR2004


def _is_strict(schema: object) -> bool:
    """Return True if OpenAI's strict mode accepts the schema: objects closed, all of their properties required."""
    if isinstance(schema, list):
        return all(_is_strict(item) for item in schema)
    if not isinstance(schema, dict):
        return True
    if "properties" in schema or schema.get("type") == "object":
        closed = schema.get("additionalProperties") is False
        if not closed or set(schema.get("properties", ())) != set(schema.get("required", ())):
            return False
    return all(_is_strict(value) for value in schema.values())
