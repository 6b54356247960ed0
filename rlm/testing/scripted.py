"""Client with prepared answers, for tests without a key, a network or randomness.

The root model and the sub-models may have separate scripts:

    client = ScriptedClient(root=["FINAL(the answer)"], sub=lambda call: "hi")
    RLM_REPL(client=client).completion("a context", "a question")
    assert "a question" in client.calls[0].messages[-1].content
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import anyio

from rlm.values import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

    from rlm.values import Call

__all__ = ["Script", "ScriptedAnswer", "ScriptedClient"]

ScriptedAnswer: TypeAlias = "str | Reply | Exception"
"""Answer to one call; an exception is raised."""

Script: TypeAlias = "Iterable[ScriptedAnswer] | Callable[[Call], ScriptedAnswer | Awaitable[ScriptedAnswer]]"
"""Answers in the order of the calls, or a function of the call, which may be async and may raise."""

SHOWN_CHARS = 500
CHARS_PER_TOKEN = 4


class ScriptedClient:
    """Client that answers from a script or a function.

    Attributes:
        calls: all calls so far, in order.
        most_in_flight: the largest number of calls in flight at once.

    A `str` becomes a reply with a usage of one token per four characters, rounded up. A `Reply` is returned unchanged,
    except that an empty `model` becomes the call's.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        root: Script | None = None,
        sub: Script | None = None,
        latency_s: float = 0.0,
    ) -> None:
        """Accept one script for all calls, or separate ones for the root model and the sub-models.

        Args:
            script: answers the calls of each role that has no separate script.
            root: answers the root model's calls.
            sub: answers the sub-models' calls.
            latency_s: duration of each call in seconds, on the clock of the event loop.

        Raises:
            TypeError: a script is a single `str`.
        """
        shared = _answers(script)
        self._answers = {
            "root": shared if root is None else _answers(root),
            "sub": shared if sub is None else _answers(sub),
        }
        self.latency_s = latency_s
        self.calls: list[Call] = []
        self.most_in_flight = 0
        self._in_flight = 0

    async def complete(self, call: Call) -> Reply:
        """Return the next answer for the role of the call.

        Raises:
            AssertionError: the script has no further answer; the message shows the prompt.
            Exception: an exception of the script.
        """
        self.calls.append(call)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            answer = self._answers[call.role](
                call
            )  # before any await, so that answers go out in the order of arrival
            if inspect.isawaitable(answer):
                answer = await answer
            await anyio.sleep(self.latency_s)
        finally:
            self._in_flight -= 1
        if isinstance(answer, Exception):
            raise answer
        return _as_reply(answer, call)

    async def stream(self, call: Call) -> AsyncIterator[str | Reply]:
        """Yield the text of `complete` in two parts, then the reply; raise what `complete` raises."""
        reply = await self.complete(call)
        middle = len(reply.text) // 2
        for piece in (reply.text[:middle], reply.text[middle:]):
            if piece:
                yield piece
        yield reply


def _answers(script: Script | None) -> Callable[[Call], ScriptedAnswer | Awaitable[ScriptedAnswer]]:
    if isinstance(script, str):
        raise TypeError(
            f"the script is the str {script[:SHOWN_CHARS]!r}: put it in a list, [{script[:20]!r}]"
        )
    if callable(script):
        return script
    return _in_order(iter(script or ()))


def _in_order(answers: Iterator[ScriptedAnswer]) -> Callable[[Call], ScriptedAnswer]:
    given = 0

    def answer(call: Call) -> ScriptedAnswer:
        nonlocal given
        try:
            following = next(answers)
        except StopIteration:
            raise AssertionError(_script_ended(call, given)) from None
        given += 1
        return following

    return answer


def _script_ended(call: Call, given: int) -> str:
    prompt = call.messages[-1].content if call.messages else ""
    cut = f" … ({len(prompt)} characters)" if len(prompt) > SHOWN_CHARS else ""
    return (
        f"the script for {call.role} calls ended after {given} answers, and {call.model!r} was asked: "
        f"{prompt[:SHOWN_CHARS]!r}{cut}"
    )


def _as_reply(answer: str | Reply, call: Call) -> Reply:
    if isinstance(answer, str):
        usage = Usage(
            calls=1,
            input_tokens=sum(_count(message.content) for message in call.messages),
            output_tokens=_count(answer),
        )
        return Reply(text=answer, model=call.model, usage=usage)
    return answer if answer.model else replace(answer, model=call.model)


def _count(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)
