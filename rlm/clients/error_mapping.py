"""Failures to errors: the one error of `rlm.errors` for each way in which an endpoint or a transport fails."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlm.clients.headers import retry_after
from rlm.errors import (
    AuthenticationFailed,
    BadReply,
    BadRequest,
    CallError,
    ContextTooLong,
    QuotaExhausted,
    RateLimited,
    Refused,
    ServerError,
    TransientError,
    UnknownModel,
)

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

__all__ = ["Failure", "call_error", "quoted", "read_failure", "redact", "unsupported_parameter"]


SHOWN_CHARS = 300
"""How much of a provider's own words goes into an error."""
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


def call_error(failure: Failure, model: str, endpoint: str) -> CallError:
    """The one error of ours that a failure is."""
    rule = next(rule for rule in RULES if rule.applies(failure))
    sentence = rule.sentence.format(
        model=repr(model), endpoint=endpoint, status=failure.status, said=quoted(failure.message)
    )
    if issubclass(rule.error, TransientError):
        wait = retry_after(failure.headers)
        return rule.error(sentence, model=model, status=failure.status, retry_after=wait)
    return rule.error(sentence, model=model, status=failure.status)


def unsupported_parameter(failure: Failure, body: Mapping[str, Any]) -> str | None:
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


def redact(text: str, secret: str = "") -> str:
    """The text without `secret` and without anything in the form of an API key."""
    if secret:
        text = text.replace(secret, "[key]")
    return KEY.sub("[key]", text)


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


def quoted(said: str) -> str:
    """Return a provider's own words, shortened and without keys, as the end of a sentence; '' if there are none."""
    said = redact(said).rstrip(". ")
    return f": {said[:SHOWN_CHARS]}{'…' if len(said) > SHOWN_CHARS else ''}" if said else ""
