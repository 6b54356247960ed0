"""A provider in this process: answers after a while, bills, refuses, fails, and remembers all of it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import anyio

from rlm.errors import CallError, ConnectionFailed, RateLimited, ServerError
from rlm.values import Call, Message, Reply, Usage


def call(prompt="hello", **changes):
    return Call(model=changes.pop("model", "m"), messages=(Message("user", prompt),), **changes)


def price(model, usage):
    """A microdollar for each token of input and three for each of output; 'free-text' has no known price."""
    return None if model == "free-text" else (usage.input_tokens + 3 * usage.output_tokens) * 1e-6


@dataclass
class FakeProvider:
    """Attributes:
    seconds: how long an answer takes, or a function of the call.
    capacity: requests at once above which it answers 429.
    faults: pairs of probability and a function that makes an error; an error with usage is billed.
    usage: the usage of a call, as a function of it.
    """

    seconds: float = 1.0
    capacity: int | None = None
    faults: tuple = ()
    usage: object = lambda _call: Usage(calls=1, input_tokens=10, output_tokens=2)
    random: random.Random = field(default_factory=lambda: random.Random(1))
    answer: object = None
    requests: list = field(default_factory=list)
    answered: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)
    billed: Usage = field(default_factory=Usage)
    billed_usd: float = 0.0
    in_flight: int = 0
    most_in_flight: int = 0
    closed: bool = False

    async def complete(self, call):
        prompt = call.messages[-1].content
        self.requests.append((anyio.current_time(), prompt))
        if self.capacity is not None and self.in_flight >= self.capacity:
            self.failures["RateLimited"] += 1
            raise RateLimited("too many at once", model=call.model, status=429)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._serve(call, prompt)
        finally:
            self.in_flight -= 1

    async def aclose(self):
        self.closed = True

    @property
    def prompts(self):
        return [prompt for _, prompt in self.requests]

    async def _serve(self, call, prompt):
        fault = self._fault()
        if fault is not None and not isinstance(fault, ConnectionFailed):
            await anyio.sleep(0.01)
            self._note_failure(call, fault)
            raise fault
        await anyio.sleep(self.seconds(call) if callable(self.seconds) else self.seconds)
        usage = self.usage(call)
        self._bill(call, usage)
        if fault is not None:
            self._note_failure(call, fault)
            raise fault  # the answer was made, and billed, and never arrived
        self.answered[prompt] += 1
        reply = self.answer(call) if self.answer is not None else Reply(text=f"answer to {prompt}")
        return Reply(
            text=reply.text,
            model=call.model,
            usage=usage,
            finish_reason=reply.finish_reason,
            rate_limits=reply.rate_limits,
        )

    def _fault(self):
        draw = self.random.random()
        for probability, make in self.faults:
            if draw < probability:
                return make()
            draw -= probability
        return None

    def _note_failure(self, call, fault):
        self.failures[type(fault).__name__] += 1
        if isinstance(fault, CallError) and fault.usage is not None:
            self._bill(call, fault.usage)

    def _bill(self, call, usage):
        self.billed = self.billed + usage
        self.billed_usd += price(call.model, usage) or 0.0


def too_many(retry_after=None):
    return lambda: RateLimited("slow down", status=429, retry_after=retry_after)


def broken(status=500):
    return lambda: ServerError("oops", status=status)


def dropped():
    return ConnectionFailed("connection reset")
