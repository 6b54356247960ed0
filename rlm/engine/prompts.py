"""Texts of the messages to the models.

One system prompt, built from the settings so that it states only what is true of this run; one first message
with the question and a description of the context; one message per turn with the output of the cells. A message
is never changed after it was sent: every request extends the one before, so prompt caches of providers hit.

The idea of a root model that reads its input through a REPL is from Zhang, Kraska and Khattab, "Recursive
Language Models" (2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlm.sandbox.guest.sketch import Sketch, sketch
from rlm.values import render
from rlm.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlm.settings import RunSettings
    from rlm.values import CellResult, Final

__all__ = [
    "DEFAULT_QUESTION",
    "INTERRUPTED_CELLS",
    "INTERRUPTED_REPLY",
    "answer_note",
    "clip",
    "describe_cells",
    "describe_context",
    "first_message",
    "next_question",
    "nudge",
    "plain_child_prompt",
    "system_prompt",
    "user_cells_note",
]

DEFAULT_QUESTION = "Answer the question, or follow the instructions, that the context itself contains."
INTERRUPTED_REPLY = "(This turn was stopped before I replied.)"
INTERRUPTED_CELLS = "The last turn was stopped while its code ran: what had not ended is undone."

_SYSTEM = """\
You answer questions about data that is too long to be put into a prompt. The data is the variable `context` in a \
Python REPL. You see only what your code prints.

Reply with one ```repl block of Python. It runs as a cell; the next message shows what it printed. Variables, \
functions and imports stay for later cells. The value of a last line that is an expression is shown.

In the REPL, besides Python's standard library:
- `context`: the data.
- `llm_query(prompt) -> str`: asks a sub-model. It sees only this prompt, which may hold up to about \
{sub_context_chars:,} characters. Raises LLMError when it fails.
- `llm_batch(prompts, max_concurrent=None) -> list[str]`: asks many prompts at once; answers in the order of the \
prompts. A prompt that failed gives a falsy string that names the error.
- `llm_map(items, instruction, schema=None) -> list`: asks the same of many short items, packed into few calls; \
with a schema such as "label: str, score: float" each answer is data of that form.
{children}\
- `FINAL(value)` gives the answer and ends the run; `FINAL_VAR("name")` does it with a variable.
- `answer["content"] = draft` keeps a draft; `answer["ready"] = True` gives it as the answer.
- `SHOW_VARS()`: the variables there are.

How to work:
1. Look first: the type, length and structure of `context`, and samples of it.
2. Filter in Python what Python can filter: search, split, count, compare. Ask sub-models for what needs reading.
3. Batch what is independent: one `llm_batch` over many pieces, not a loop of `llm_query`. Give each prompt the \
question, as much text as fits well, and what to reply where the text does not have the answer.
4. Check before you answer: print what the answer rests on, and look at it. If the data does not have the answer, \
say so.

Limits: {max_iterations} replies for a question; {cell_timeout_s:,g} seconds of work per cell, where waiting for \
models does not count; of a cell's output you are shown {shown_output_chars:,} characters, its head and its tail. \
A cell that breaks a limit is undone.
"""

_CHILDREN = """\
- `rlm_query(question, context) -> value`: a child run: a model with a REPL and a context of its own, for a piece \
that is itself too long or needs several steps. `rlm_batch([(question, context), ...])` starts several at once.
"""


def system_prompt(settings: RunSettings, *, depth: int = 0) -> str:
    """Return the system prompt of a run at this depth; it names child runs only if the depth allows them."""
    return _SYSTEM.format(
        sub_context_chars=settings.sub_context_chars,
        children=_CHILDREN if depth + 1 < settings.max_depth else "",
        max_iterations=settings.max_iterations,
        cell_timeout_s=settings.sandbox.cell_timeout_s,
        shown_output_chars=settings.shown_output_chars,
    )


def first_message(question: str, context_summary: str, *, note: str = "", remaining: int) -> str:
    """Return the user message that opens a run; `note` describes events before it."""
    last = _remaining(remaining) if remaining == 1 else ""
    return "\n\n".join(filter(None, (f"Question:\n{question}", f"Context:\n{context_summary}", note, last)))


def next_question(question: str, *, note: str = "") -> str:
    """Return the user message with a further question of a session; `note` describes events since the last one."""
    lead = f"{note}\n\n" if note else ""
    return (
        f"{lead}New question:\n{question}\n\nContext:\n`context` and your variables are as they were; this question "
        "needs an answer of its own."
    )


def describe_context(context: Any) -> str:
    """Describe the context for the first message: type, size and, for a mapping, the keys.

    `context` may be the `Sketch` of a context that is in shared memory.
    """
    seen = context if isinstance(context, Sketch) else sketch(context)
    match seen:
        case Sketch(form="str"):
            return f"`context` is a str of {seen.length:,} characters."
        case Sketch(form="bytes"):
            return f"`context` is {seen.kind} of length {seen.length:,}."
        case Sketch(form="dict"):
            return f"`context` is a dict with {counted(seen.length, 'key')}: {_keys(seen)}.{_text_size(seen)}"
        case Sketch():
            kind = "a list of chat messages" if seen.is_messages else f"a {seen.kind}"
            types = f" Items: {', '.join(seen.types)}." if seen.types else ""
            return f"`context` is {kind} with {counted(seen.length, 'item')}.{types}{_text_size(seen)}"
    if context is None:
        return "`context` is None: there is no data, only the question."
    return f"`context` is of type {type(context).__name__}: {clip(render(context), 200)}."


def describe_cells(
    results: Sequence[CellResult],
    settings: RunSettings,
    *,
    skipped: int,
    remaining: int,
    final_void: bool = False,
) -> str:
    """Return the user message after a reply with code: output and end of each cell, and the replies left."""
    share = max(1, settings.shown_output_chars // max(1, len(results)))
    parts = [_describe_cell(result, share) for result in results]
    if skipped:
        parts.append(f"[{counted(skipped, 'later block')} of the same reply did not run.]")
    if final_void:
        parts.append("[The answer in the same reply does not count, because the code before it failed.]")
    parts.append(_remaining(remaining))
    return "\n\n".join(part for part in parts if part)


def answer_note(results: Sequence[CellResult], settings: RunSettings, *, answer: Final | None = None) -> str:
    """Return the note before the next question of a session: output of the last cells, and the answer given."""
    printed = [_describe_cell(result, settings.shown_output_chars // 4) for result in results]
    given = [] if answer is None else [f"The answer you gave:\n{clip(render(answer.value), 4_000)}"]
    return "\n\n".join(printed + given)


def user_cells_note(cells: Sequence[str]) -> str:
    """Return the note before the next question of a session in which the user ran code of their own."""
    return "Meanwhile the user ran this in the REPL:\n\n" + clip("\n\n".join(cells), 4_000)


def nudge(remaining: int) -> str:
    """Return the user message after a reply without code and without an answer."""
    return (
        "Your reply held neither a ```repl block nor an answer. Write Python in a ```repl block to go on, or give "
        f"the answer: FINAL(your answer) at the start of a line.\n\n{_remaining(remaining)}"
    ).rstrip()


def plain_child_prompt(question: str, context: Any) -> str:
    """Return the prompt of a child run that is a plain call at the depth limit."""
    return question if context is None else f"{question}\n\n{render(context)}"


def clip(text: str, limit: int, *, length: int | None = None) -> str:
    """Return `text` in about `limit` characters: head, tail, and between them the number of characters cut.

    `length` is the original length of a text that was cut in the middle before.
    """
    if len(text) <= limit:
        return text
    tail = limit // 3
    head = limit - tail
    cut = (len(text) if length is None else length) - head - tail
    return f"{text[:head]}\n[... {cut:,} characters cut ...]\n{text[len(text) - tail :]}"


_ENDINGS = {
    "timeout": "The cell was stopped: it worked longer than its limit.",
    "memory": "The cell was stopped: it used more memory than its limit.",
    "exited": "The cell ended the interpreter.",
    "crashed": "The cell crashed the interpreter.",
    "protocol": "The cell was stopped: it interfered with the REPL's own channel.",
    "cancelled": "The user stopped the cell.",
}
_STATES = {
    "rolled back": "Your variables are as they were before this cell.",
    "lost": "Your variables are lost; `context` is there as at the beginning.",
}


def _describe_cell(result: CellResult, share: int) -> str:
    printed = clip(result.stdout, share, length=result.stdout_chars or None).rstrip("\n")
    lines = ["Output:", printed or "(nothing printed)"]
    if result.stderr:
        printed = clip(result.stderr, share // 4, length=result.stderr_chars or None)
        lines += ["Standard error:", printed.rstrip("\n")]
    if result.error:
        lines += ["Error:", clip(result.error, 4_000).rstrip("\n")]
    ending = " ".join(filter(None, (_ENDINGS.get(result.outcome), _STATES.get(result.state))))
    if ending:
        lines.append(f"[{ending}]")
    return "\n".join(lines)


def _remaining(remaining: int) -> str:
    if remaining <= 0:
        return ""
    if remaining == 1:
        return "This is your last reply: give the best answer you have with FINAL(your answer)."
    return f"[{remaining} replies left.]"


def _keys(seen: Sketch) -> str:
    names = [clip(ends, 80, length=length) for ends, length in seen.keys]
    more = seen.length - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


def _text_size(seen: Sketch) -> str:
    if seen.texts is None:
        return ""
    total, longest = seen.texts
    return f" Text in all: {total:,} characters, longest {longest:,}."
