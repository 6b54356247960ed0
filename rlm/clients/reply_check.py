"""Check replies: one that is declined, cut, filtered, empty or based on a cut prompt becomes an error or a warning.

Nothing else judges replies: `Client.complete` reports facts (text, refusal, `finish_reason`, usage), and the scheduler,
the Batch API and the methods of the OpenAI clients that return texts call `check_reply`.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

from rlm.clients.error_mapping import quoted
from rlm.errors import BadReply, OutputTruncated, PromptTruncated, Refused
from rlm.metering.bounds import utf8_size
from rlm.values import Call, Message, Reply

if TYPE_CHECKING:
    from rlm.metering.bounds import CountTokens

__all__ = ["check_reply"]

FEWEST_BYTES = 4_000
MOST_BYTES_PER_TOKEN = 8
MONOTONOUS = 8  # bytes of text per compressed byte
SAMPLE_BYTES = 1 << 16


def check_reply(call: Call, reply: Reply, count_tokens: CountTokens) -> Reply:
    """Return the reply with missing usage estimated and warnings added.

    Raises:
        PromptTruncated: the endpoint counted far fewer prompt tokens than were sent, without an error.
        OutputTruncated: the output cap left nothing of the answer, or broke the JSON that was asked for.
        Refused: the model declined to answer; the provider's filter left nothing of the answer, or broke the JSON that
            was asked for.
        BadReply: the reply is empty and used no tokens.
    """
    reply = _with_usage(call, reply, count_tokens)
    reply = _with_whole_prompt(call, reply)
    if reply.refusal:
        raise Refused(
            f"{call.model} declined to answer{quoted(reply.refusal)}", model=call.model, usage=reply.usage
        )
    if not reply.text.strip():
        return _check_empty(call, reply)
    if reply.finish_reason == "length":
        return _check_cut(call, reply)
    if reply.finish_reason == "filter":
        return _check_filtered(call, reply)
    return reply


def _with_usage(call: Call, reply: Reply, count_tokens: CountTokens) -> Reply:
    usage = reply.usage
    if reply.cost_usd == 0.0:  # free clients (rules, a script) use no tokens
        return reply
    no_input = usage.input_tokens <= 0
    no_output = usage.output_tokens <= 0 and bool(reply.text)
    if usage.calls == 1 and not no_input and not no_output:
        return reply
    if no_input:
        usage = replace(usage, input_tokens=count_tokens(call), estimated=True)
    if no_output:
        answer = replace(call, messages=(Message("assistant", reply.text),))
        usage = replace(usage, output_tokens=count_tokens(answer), estimated=True)
    return replace(reply, usage=replace(usage, calls=1))


def _with_whole_prompt(call: Call, reply: Reply) -> Reply:
    if reply.usage.estimated or not reply.usage.input_tokens:
        return reply
    counted = reply.usage.input_tokens + reply.usage.cached_tokens
    sent = sum(utf8_size(message.content) for message in call.messages)
    if sent < FEWEST_BYTES or counted * MOST_BYTES_PER_TOKEN >= sent:
        return reply
    found = f"{call.model} read {counted:,} tokens of a prompt of {sent:,} bytes"
    if _is_monotonous(call):
        return _warned(reply, f"{found}: it may have cut it")
    raise PromptTruncated(
        f"{found}, which is about {sent // 4:,} tokens: the endpoint cuts long prompts without an error. Give it a "
        "larger context window (Ollama: OLLAMA_CONTEXT_LENGTH or num_ctx) or send shorter prompts",
        model=call.model,
        usage=reply.usage,
    )


def _is_monotonous(call: Call) -> bool:
    """Return True for text such as rows of spaces, of which one token holds many bytes."""
    longest = max((message.content for message in call.messages), key=len)
    sample = longest[:SAMPLE_BYTES].encode("utf-8", "surrogatepass")
    return len(sample) > MONOTONOUS * len(zlib.compress(sample, 1))


def _check_empty(call: Call, reply: Reply) -> Reply:
    if reply.finish_reason == "length":
        raise OutputTruncated(
            f"{call.model} reached its output cap{_cap(call)} before it wrote any of its answer "
            f"({reply.usage.reasoning_tokens:,} tokens went into reasoning): raise max_output_tokens",
            text="",
            model=call.model,
            usage=reply.usage,
        )
    if reply.finish_reason == "filter":
        raise Refused(
            f"the provider's filter held back the answer of {call.model}", model=call.model, usage=reply.usage
        )
    if reply.usage.output_tokens == 0:
        raise BadReply(f"{call.model} gave no answer at all", model=call.model, usage=reply.usage)
    return _warned(reply, f"{call.model} gave an empty answer")


def _check_cut(call: Call, reply: Reply) -> Reply:
    message = f"an answer of {call.model} was cut at its output cap{_cap(call)}"
    if call.schema is not None:
        raise OutputTruncated(
            f"{message}, so its JSON is incomplete: raise max_output_tokens",
            text=reply.text,
            model=call.model,
            usage=reply.usage,
        )
    return _warned(reply, message)


def _check_filtered(call: Call, reply: Reply) -> Reply:
    message = f"the provider's filter cut an answer of {call.model} short"
    if call.schema is not None:
        raise Refused(f"{message}, so its JSON is incomplete", model=call.model, usage=reply.usage)
    return _warned(reply, message)


def _cap(call: Call) -> str:
    return f" of {call.max_output_tokens:,} tokens" if call.max_output_tokens else ""


def _warned(reply: Reply, warning: str) -> Reply:
    return replace(reply, warnings=(*reply.warnings, warning))
