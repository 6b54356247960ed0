"""The run of `rlm demo`: a long text that every Python ships, and a client that sends three short cells over it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rlm.offline.client import OfflineClient
from rlm.offline.language import key_terms
from rlm.values import Reply, Usage

if TYPE_CHECKING:
    from rlm.values import Call

__all__ = ["DemoClient", "python_topics"]

LOOK: Final = """\
I look at the text first.

```repl
print(len(context), "characters:")
print(context[:160])
```"""

BATCH: Final = """\
I cut it into parts, and ask a sub-model about the most promising ones, all at once.

```repl
question = QUESTION
words = WORDS
parts = [context[i : i + 6_000] for i in range(0, len(context), 5_000)]
parts.sort(key=lambda part: -sum(word in part.lower() for word in words))
quotes = llm_batch([f"{question}\\n\\n{part}" for part in parts[:24]])
found = [quote for quote in quotes if quote != "NOT FOUND"]
print(len(found), "of 24 parts have a quote")
```"""

ANSWER: Final = """\
I ask for the best of these quotes, and add where it is.

```repl
best = llm_query("\\n\\n".join([question, *found])) if found else "NOT FOUND"
if best in context:
    start = context.index(best)
    best += f"\\n\\n— context[{start}:{start + len(best)}]"
FINAL(best)
```"""


class DemoClient(OfflineClient):
    """Offline client whose root model sends the same three cells for any question; sub-models quote by rules.

    Args:
        question: the question of the run.
    """

    def __init__(self, question: str) -> None:
        super().__init__()
        words = [term.stem for term in key_terms(question)]
        batch = BATCH.replace("QUESTION", _literal(question)).replace("WORDS", _literal(words))
        self._cells = (LOOK, batch, ANSWER)

    async def complete(self, call: Call) -> Reply:
        """Answer one call; the root model's next cell is the one after its replies so far."""
        if call.role != "root":
            reply = await super().complete(call)
            quote, _, _note = reply.text.rpartition("\n(")  # the cells show what a model would reply
            return replace(reply, text=quote or reply.text)
        replies = sum(message.role == "assistant" for message in call.messages)
        text = self._cells[min(replies, len(self._cells) - 1)]
        return Reply(text=text, model=self.only_model, usage=Usage(calls=1), cost_usd=0.0)


def python_topics() -> str:
    """Return the help topics of the Python language (`pydoc_data.topics`) as one text.

    Some 465,000 characters with Python 3.11, more with later ones. Each topic starts with its own underlined
    heading, so the text reads as a book of chapters in the alphabetical order of the topics' names.
    """
    from pydoc_data.topics import topics

    return "\n\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def _literal(value: object) -> str:
    return repr(value).replace("```", r"\x60\x60\x60")  # a fence in the question must not end the cell
