"""Drives the offline client without the runtime: its cells run in a scratch namespace, its sub role answers them."""

from __future__ import annotations

import contextlib
import io
import re
import traceback
from dataclasses import dataclass, field

import anyio

from rlm.offline.client import OfflineClient
from rlm.values import Call, Message

__all__ = ["BLOCK", "QUOTED", "Drive"]

BLOCK = re.compile(r"```repl\n(.*?)```", re.DOTALL)


QUOTED = re.compile(
    r"(?:\n\n|\n\d+\. )“(.*?)”\s+— ((?:str\()?context.*?\[\d+:\d+\])$", re.DOTALL | re.MULTILINE
)
"""A quote of an answer and the expression that gives it."""


class Finished(BaseException):
    """A cell gave its answer."""


@dataclass
class Drive:
    """One guest's namespace and one dialogue; `ask` as often as wanted."""

    context: object
    max_iterations: int = 20
    client: OfflineClient = field(default_factory=OfflineClient)
    messages: list[Message] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    answer: object = None

    def __post_init__(self):
        self.messages.append(
            Message("system", f"Limits: {self.max_iterations} replies for a question; 60 s.")
        )
        self.namespace = {
            "context": self.context,
            "llm_batch": self.llm_batch,
            "llm_query": lambda prompt: self.llm_batch([prompt])[0],
            "FINAL": self.final,
            "__name__": "__main__",
        }

    def llm_batch(self, prompts):
        prompts = list(prompts)
        self.prompts += prompts
        return [self.complete("sub", (Message("user", prompt),)) for prompt in prompts]

    def final(self, value):
        self.answer = value
        raise Finished

    def complete(self, role, messages):
        async def ask():
            return await self.client.complete(Call(model="offline", messages=messages, role=role))

        return anyio.run(ask).text

    def ask(self, question):
        """The answer to a question; the first of a dialogue and later ones come in the runtime's forms."""
        first = len(self.messages) == 1
        lead = "Question:" if first else "New question:"
        self.messages.append(Message("user", f"{lead}\n{question}\n\nContext:\n`context` is data."))
        self.answer = None
        for turn in range(self.max_iterations):
            reply = self.complete("root", tuple(self.messages))
            self.messages.append(Message("assistant", reply))
            blocks = BLOCK.findall(reply)
            assert blocks, reply
            for block in blocks:
                output = self.run(block)
                if self.answer is not None:
                    self.turns = turn + 1
                    return self.answer
            self.messages.append(Message("user", output))
        raise AssertionError("no answer within the limit of replies")

    def run(self, code):
        printed = io.StringIO()
        error = ""
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "<cell>", "exec"), self.namespace)
        except Finished:
            pass
        except Exception:  # noqa: BLE001 - a cell may raise anything
            error = f"\nError:\n{traceback.format_exc()}"
        output = f"Output:\n{printed.getvalue()}{error}"
        self.outputs.append(output)
        return output
