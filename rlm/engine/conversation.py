"""The dialogue with the root model, as a generator of steps without I/O and without a clock.

`Conversation.ask(question)` yields `AskRoot` and is sent a `Reply`, yields `RunCell` and is sent a `CellResult`,
and returns a `Conclusion`. Its driver performs the steps: a run with a model and a guest, a test with a list, a
resumed run with the records of its journal.

Messages are only ever appended to the transcript; user and assistant alternate. A driver may drop the generator in
the middle of a step: the next `ask` adds a message that says the turn was interrupted.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from rlm.engine import prompts
from rlm.engine.reply_parser import FinalText, FinalVariable, ParsedReply, parse_reply
from rlm.values import AnswerStatus, CellResult, Final, Message, Reply
from rlm.wording import counted

if TYPE_CHECKING:
    from rlm.settings import RunSettings

__all__ = ["AskRoot", "Conclusion", "Conversation", "RunCell", "Step", "Steps"]


@dataclass(frozen=True, slots=True)
class AskRoot:
    """Ask the root model with these messages; send back its `Reply`."""

    turn: int
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class RunCell:
    """Run this code as a cell; send back its `CellResult`. `cell` counts from 1 within the conversation."""

    turn: int
    cell: int
    code: str


Step: TypeAlias = AskRoot | RunCell


@dataclass(frozen=True, slots=True)
class Conclusion:
    """End of the dialogue about one question: `status` is `ok`, or `limit` gives the reason why it is not."""

    value: Any
    status: AnswerStatus
    limit: str
    turns: int


Steps: TypeAlias = Generator[Step, Any, Conclusion]


@dataclass(slots=True)
class Conversation:
    """The dialogue of one run, or of a session with several questions.

    Attributes:
        transcript: the messages to and from the root model so far.
        draft: the best partial answer to the current question, or None.
        turns: the number of replies to the current question.
        cells: the number of cells so far, over all questions.
    """

    settings: RunSettings
    context_summary: str
    depth: int = 0
    transcript: list[Message] = field(default_factory=list)
    draft: Any = None
    turns: int = 0
    cells: int = 0
    _note_for_next_question: str | None = None
    """How the last question ended, which the root model has not read yet; None while a question is open."""

    def ask(self, question: str, *, note: str = "") -> Steps:
        """Answer one question within `max_iterations` turns.

        Earlier questions stay in the transcript. `note` describes for the root model what happened since the last
        one, such as code that the user ran.
        """
        self.draft, self.turns = None, 0
        self._open(question, note)
        nudged = False
        for remaining in reversed(range(self.settings.max_iterations)):
            parsed = yield from self._next_reply()
            if parsed.code or parsed.final is not None:
                nudged = False
                conclusion = yield from self._act_on(parsed, remaining)
                if conclusion is not None:
                    return conclusion
            elif nudged or not remaining:
                return self._conclude_prose(parsed)
            else:
                nudged = True
                self._add_message(prompts.nudge(remaining))
        return self.conclude_early(
            "partial", f"no answer within {counted(self.settings.max_iterations, 'turn')}"
        )

    def conclude_early(self, status: AnswerStatus, limit: str) -> Conclusion:
        """Return the draft as the conclusion of a dialogue that is ended from outside."""
        return Conclusion("" if self.draft is None else self.draft, status, limit, self.turns)

    def keep_draft(self, result: CellResult) -> None:
        """Keep the answer of a cell, or else its draft, as the draft of this conversation."""
        given = result.draft if result.final is None else result.final.value
        if given not in (None, ""):
            self.draft = given

    def _open(self, question: str, note: str) -> None:
        if self.transcript:
            before = self._close_last_turn()
            self._add_message(prompts.next_question(question, note="\n\n".join(filter(None, (before, note)))))
            return
        self.transcript.append(Message("system", prompts.system_prompt(self.settings, depth=self.depth)))
        self._add_message(
            prompts.first_message(
                question, self.context_summary, note=note, remaining=self.settings.max_iterations
            )
        )

    def _close_last_turn(self) -> str:
        """End the transcript with an assistant message; return the note on how that turn ended."""
        note, self._note_for_next_question = self._note_for_next_question, None
        if self.transcript[-1].role == "user":
            self.transcript.append(Message("assistant", prompts.INTERRUPTED_REPLY))
            return ""
        return prompts.INTERRUPTED_CELLS if note is None else note

    def _next_reply(self) -> Generator[Step, Reply, ParsedReply]:
        self.turns += 1
        reply = yield AskRoot(self.turns, tuple(self.transcript))
        self.transcript.append(Message("assistant", reply.text))
        return parse_reply(reply.text)

    def _act_on(self, parsed: ParsedReply, remaining: int) -> Generator[Step, CellResult, Conclusion | None]:
        """Run the code of a reply; return the conclusion if there is an answer, else add the results as a message."""
        results = yield from self._run_blocks(parsed.code)
        skipped = len(parsed.code) - len(results)
        failed = bool(results) and results[-1].outcome != "ok"
        void = parsed.final is not None and failed and remaining > 0
        if isinstance(parsed.final, FinalVariable) and not _given(results) and not void:
            results.append((yield from self._run(f"FINAL_VAR({parsed.final.name!r})")))
        if given := _given(results):
            self._note_for_next_question = prompts.answer_note(results, self.settings, answer=given)
            return Conclusion(given.value, "ok", "", self.turns)
        if isinstance(parsed.final, FinalText) and not void:
            self._note_for_next_question = prompts.answer_note(results, self.settings)
            return Conclusion(parsed.final.text, "ok", "", self.turns)
        self._add_message(
            prompts.describe_cells(
                results, self.settings, skipped=skipped, remaining=remaining, final_void=void
            )
        )
        return None

    def _run_blocks(self, blocks: tuple[str, ...]) -> Generator[Step, CellResult, list[CellResult]]:
        """Run the blocks in order, up to the first that fails or gives the answer: later blocks depend on earlier ones."""
        results: list[CellResult] = []
        for code in blocks:
            results.append((yield from self._run(code)))
            if results[-1].outcome != "ok" or results[-1].final is not None:
                break
        return results

    def _run(self, code: str) -> Generator[Step, CellResult, CellResult]:
        self.cells += 1
        result = yield RunCell(self.turns, self.cells, code)
        self.keep_draft(result)
        return result

    def _add_message(self, text: str) -> None:
        self.transcript.append(Message("user", text))

    def _conclude_prose(self, parsed: ParsedReply) -> Conclusion:
        """Return the draft, or else the prose, of a model that wrote no code and no answer even when asked to."""
        self._note_for_next_question = ""
        if self.draft is None:
            self.draft = parsed.prose
        return self.conclude_early("partial", "the root model answered in prose, without FINAL")


def _given(results: list[CellResult]) -> Final | None:
    return results[-1].final if results else None
