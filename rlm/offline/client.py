"""Client without a language model: it answers by rules, with quotes, and says so.

It is called like any model, so a whole run works without a key or a network. As the root model it writes cells: look,
search, combine; or look and count; or look and list. As a sub-model it ranks the sentences of the passage in its
prompt and quotes the best by their positions. The cells are the files of `cells/`, sent verbatim below a few
assignments.

An answer quotes the text verbatim, with the position as an expression: `context[120:187]` evaluates to the quote. It is
NOT FOUND if the words of the question do not occur close together. The client cannot infer, summarise, compare,
translate or count distinct things; an answer to a question that needs this says so.

The client is stateless: it reads the next step from the dialogue alone, so one object serves any number of runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import anyio.to_thread

from rlm.offline.plans import CELLS, Plan, Step, plan_for
from rlm.offline.quotes import NO_MODEL, sub_reply
from rlm.values import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlm.values import Call, Message

__all__ = ["NO_MODEL", "Dialogue", "OfflineClient", "read_dialogue", "root_reply"]


class OfflineClient:
    """Client without a language model: fixed rules write the cells of the root model, and answer sub-calls with quotes."""

    only_model = "offline"

    def __init__(self) -> None:
        """Read the files of the cells, so that `complete` reads none."""
        for name in CELLS:
            _cell_text(name)

    async def complete(self, call: Call) -> Reply:
        """Answer one call; never fails. A long prompt is processed in a thread, to keep the event loop responsive."""
        if call.role == "root":
            text = root_reply(call.messages)
        else:
            prompt = call.messages[-1].content if call.messages else ""
            if len(prompt) > _LONG_PROMPT:
                text = await anyio.to_thread.run_sync(sub_reply, prompt, abandon_on_cancel=True)
            else:
                text = sub_reply(prompt)
        return Reply(text=text, model=self.only_model, usage=Usage(calls=1), cost_usd=0.0)


def root_reply(messages: Sequence[Message]) -> str:
    """Return the root model's next reply: a sentence and the next cell, or all remaining cells if replies run out."""
    dialogue = read_dialogue(messages)
    if dialogue.failures > 1:
        return _give_up(dialogue.last_failure)
    plan = plan_for(dialogue.question)
    start = _next_step(dialogue, plan)
    is_enough = dialogue.replies_left >= len(plan.steps) - start
    steps = plan.steps[start : start + 1] if is_enough else plan.steps[start:]
    return "\n\n".join(_show_step(step, plan) for step in steps)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """State of a root dialogue.

    Attributes:
        question: the latest question.
        is_first: True if it is the first question of its session.
        replies: the replies to it so far.
        failures: the number of these replies whose cell failed.
        has_just_failed: True if the cell of the last reply failed.
        last_failure: the error of the latest failed cell, or ''.
        replies_left: the number of replies that the run still allows.
    """

    question: str
    is_first: bool
    replies: tuple[str, ...]
    failures: int
    has_just_failed: bool
    last_failure: str
    replies_left: int


def read_dialogue(messages: Sequence[Message]) -> Dialogue:
    """Read the state of a run from its messages; the one function that knows the form of the runtime's prompts."""
    question, asked_at = "", -1
    for index, message in enumerate(messages):
        # Only the first message opens with `Question:`; in a later message, a cell printed it.
        pattern = _FIRST_QUESTION if asked_at < 0 else _NEXT_QUESTION
        if message.role == "user" and (found := pattern.search(message.content)):
            question, asked_at = _without_context(found["text"]), index
    is_first = not any(message.role == "assistant" for message in messages[: asked_at + 1])
    since = messages[asked_at + 1 :]
    replies = tuple(message.content for message in since if message.role == "assistant")
    outcomes = [_FAILURE.search(message.content) for message in since if message.role == "user"]
    failures = [found[0] for found in outcomes if found]
    limit = next((_LIMIT.search(message.content) for message in messages if message.role == "system"), None)
    return Dialogue(
        question=question,
        is_first=is_first,
        replies=replies,
        failures=len(failures),
        has_just_failed=bool(outcomes and outcomes[-1]),
        last_failure=failures[-1] if failures else "",
        replies_left=(int(limit[1].replace(",", "")) if limit else _USUAL_LIMIT) - len(replies),
    )


_LONG_PROMPT = 50_000
_USUAL_LIMIT = 20

_FIRST_QUESTION = re.compile(r"^Question:[ \t]*\n?(?P<text>.*)", re.MULTILINE | re.DOTALL)
_NEXT_QUESTION = re.compile(r"^New question:[ \t]*\n?(?P<text>.*)", re.MULTILINE | re.DOTALL)
_FAILURE = re.compile(r"^(?:Error:\n[\s\S]+|\[The cell (?:was stopped|ended|crashed)[^\n]*)", re.MULTILINE)
_LIMIT = re.compile(r"([\d,]+) repl(?:y|ies) for a question")


def _without_context(text: str) -> str:
    head, mark, _ = text.rpartition("\nContext:\n")
    return (head if mark else text).strip()


def _next_step(dialogue: Dialogue, plan: Plan) -> int:
    if dialogue.has_just_failed:
        return 0  # the variables may be lost: start again with `look`
    if not dialogue.replies:
        return 0 if dialogue.is_first else 1
    sent = [index for index, step in enumerate(plan.steps) if step.says in dialogue.replies[-1]]
    return min(max(sent, default=-1) + 1, len(plan.steps) - 1)


def _show_step(step: Step, plan: Plan) -> str:
    header = "".join(f"{name} = {_literal(plan.values[name])}\n" for name in step.values)
    cell = _cell_text(step.cell)
    return f"{step.says}\n\n```repl\n{header}{cell}```"


def _literal(value: object) -> str:
    return repr(value).replace("```", r"\x60\x60\x60")  # a fence in the question must not end the cell


def _give_up(failure: str) -> str:
    text = f"I could not answer: my cells failed twice. {NO_MODEL}.\n{failure[:500]}"
    return f"My cells failed twice; I stop here.\n\n```repl\nFINAL({_literal(text)})\n```"


@cache
def _cell_text(name: str) -> str:
    source = files("rlm.offline.cells").joinpath(f"{name}.py").read_text(encoding="utf-8")
    return source.partition("# The cell:\n")[2].strip("\n") + "\n"
