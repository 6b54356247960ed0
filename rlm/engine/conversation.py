"""The root dialogue, as a generator of steps without I/O and without a clock.

`Conversation.ask(question)` yields `AskRoot` and is sent a `Reply`, yields `RunCell` and is sent a `CellResult`,
and returns a `Conclusion`. Whoever drives it performs the steps: the runtime with a model and a guest, a test with
a list, a resumed run with what its journal recorded.

The transcript only ever grows and alternates user and assistant. A driver that stops in the middle of a step may
simply drop the generator: the next `ask` closes the open turn in words.
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
    """How the dialogue about one question ended: `status` is `ok`, or `partial` with the reason in `limit`."""

    value: Any
    status: AnswerStatus
    limit: str
    turns: int


Steps: TypeAlias = Generator[Step, Any, Conclusion]


@dataclass(slots=True)
class Conversation:
    """The dialogue of one run, or of a session with several questions.

    `transcript` is what the root model has been told and has said so far. `draft` is the best partial answer to
    the question at hand, or None. `turns` counts the replies to it.
    """

    settings: RunSettings
    context_summary: str
    depth: int = 0
    transcript: list[Message] = field(default_factory=list)
    draft: Any = None
    turns: int = 0
    cells: int = 0
    _untold: str | None = None

    def ask(self, question: str, *, note: str = "") -> Steps:
        """Answer one question within `max_iterations` turns.

        Earlier questions stay in the transcript. `note` tells the root model what happened since the last one,
        such as code that the user ran.
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
                self._tell(prompts.nudge(remaining))
        return self.conclude_early(
            "partial", f"no answer within {counted(self.settings.max_iterations, 'turn')}"
        )

    def conclude_early(self, status: AnswerStatus, limit: str) -> Conclusion:
        """The conclusion where something else ends the dialogue: the draft, whatever it is."""
        return Conclusion("" if self.draft is None else self.draft, status, limit, self.turns)

    def keep_draft(self, result: CellResult) -> None:
        """Take over what a cell has given so far: its answer, or else its draft."""
        given = result.draft if result.final is None else result.final.value
        if given not in (None, ""):
            self.draft = given

    def _open(self, question: str, note: str) -> None:
        if self.transcript:
            before = self._close_last_turn()
            self._tell(prompts.next_question(question, note="\n\n".join(filter(None, (before, note)))))
            return
        self.transcript.append(Message("system", prompts.system_prompt(self.settings, depth=self.depth)))
        self._tell(
            prompts.first_message(
                question, self.context_summary, note=note, remaining=self.settings.max_iterations
            )
        )

    def _close_last_turn(self) -> str:
        """Make the transcript end with the assistant; what the model was not told yet of how that turn ended."""
        untold, self._untold = self._untold, None
        if self.transcript[-1].role == "user":
            self.transcript.append(Message("assistant", prompts.INTERRUPTED_REPLY))
            return ""
        return prompts.INTERRUPTED_CELLS if untold is None else untold

    def _next_reply(self) -> Generator[Step, Reply, ParsedReply]:
        self.turns += 1
        reply = yield AskRoot(self.turns, tuple(self.transcript))
        self.transcript.append(Message("assistant", reply.text))
        return parse_reply(reply.text)

    def _act_on(self, parsed: ParsedReply, remaining: int) -> Generator[Step, CellResult, Conclusion | None]:
        """Run the reply's code, then judge its answer; return the conclusion, or tell the outcome and return None."""
        results = yield from self._run_blocks(parsed.code)
        skipped = len(parsed.code) - len(results)
        failed = bool(results) and results[-1].outcome != "ok"
        void = parsed.final is not None and failed and remaining > 0
        if isinstance(parsed.final, FinalVariable) and not _given(results) and not void:
            results.append((yield from self._run(f"FINAL_VAR({parsed.final.name!r})")))
        if given := _given(results):
            self._untold = prompts.answer_note(results, self.settings, answer=given)
            return Conclusion(given.value, "ok", "", self.turns)
        if isinstance(parsed.final, FinalText) and not void:
            self._untold = prompts.answer_note(results, self.settings)
            return Conclusion(parsed.final.text, "ok", "", self.turns)
        self._tell(
            prompts.describe_cells(
                results, self.settings, skipped=skipped, remaining=remaining, final_void=void
            )
        )
        return None

    def _run_blocks(self, blocks: tuple[str, ...]) -> Generator[Step, CellResult, list[CellResult]]:
        """Run the blocks in order, up to the first that fails or gives the answer: the later ones build on it."""
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

    def _tell(self, text: str) -> None:
        self.transcript.append(Message("user", text))

    def _conclude_prose(self, parsed: ParsedReply) -> Conclusion:
        """A model that was nudged and still only talks: its words are the best there is, unless it kept a draft."""
        self._untold = ""
        if self.draft is None:
            self.draft = parsed.prose
        return self.conclude_early("partial", "the root model answered in prose, without FINAL")


def _given(results: list[CellResult]) -> Final | None:
    return results[-1].final if results else None
