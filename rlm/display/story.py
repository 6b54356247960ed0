"""What the live view says: the blocks that an event leaves behind, and the frame at the bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from rlm.display.lines import calls_in_words, cell_in_words, prose_of
from rlm.display.paint import Block, highlighted
from rlm.display.progress import answer_summary, of_cap
from rlm.display.text import count, first_lines, last_lines, money, one_line, seconds, tail_of
from rlm.events import (
    AnswerGiven,
    BatchFinished,
    CallFailed,
    CallFinished,
    CallRetried,
    CallStarted,
    CellFinished,
    CellStarted,
    Event,
    RootReplied,
    RunFailed,
    RunStarted,
    TurnStarted,
    Warned,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm.display.progress import Batch, Progress
    from rlm.values import CellResult

__all__ = ["frame_of", "story_of"]

SHOWN_CHARS = 400
"""The longest line of code, output or prose that is shown whole."""

CODE_LINES = 16
OUTPUT_LINES = 10
PROSE_LINES = 6
MOST_LINES = 1_000
TAIL_LINES = 6

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def story_of(event: Event, progress: Progress, *, verbosity: int, columns: int) -> Iterator[Block]:
    """The blocks that an event adds to what stays on the screen."""
    if event.depth and not isinstance(event, Warned):
        if verbosity:
            yield from _of_child(event)
        return
    yield from _of_run(event, progress, verbosity, columns)
    yield from _of_ending(event, progress, columns)
    yield from _of_calls(event, verbosity)


def frame_of(progress: Progress, *, columns: int, rows: int, now: float) -> list[Text]:
    """The lines at the bottom: the end of what is written or printed, the running batch, where the run stands."""
    if not progress.doing and not progress.open_runs:
        return []
    lines: list[Text] = []
    height = max(1, min(TAIL_LINES, rows - 4))
    if progress.doing == "cell":
        tail, _ = last_lines(progress.output, height, columns)
        lines += [Text.assemble(("│ ", "dim"), (line, "dim")) for line in tail]
    elif progress.written:
        tail = tail_of(progress.written, height, max(4, columns - 2))
        lines += [Text.assemble(("▏ ", "cyan"), (line, "dim")) for line in tail]
    if batch := progress.batch():
        lines.append(_batch_line(batch, progress, columns, now))
    elif progress.retry:
        lines.append(Text(one_line(progress.retry, columns), style="yellow"))
    lines.append(_status_line(progress, columns, now))
    return lines


def _of_run(event: Event, progress: Progress, verbosity: int, columns: int) -> Iterator[Block]:
    match event:
        case RunStarted():
            yield Block(Text(_clipped(event.question, PROSE_LINES), style="bold"))
            summary = one_line(event.context_summary.replace("`", ""), SHOWN_CHARS)
            models = " and ".join(dict.fromkeys((event.model, event.recursive_model)))
            yield Block(Text(f"{summary} Asked: {one_line(models, 200)}.", style="dim"))
        case TurnStarted():
            yield Block(Text())
            yield Block(_rule(f"Turn {event.turn}", columns))
        case RootReplied() if prose := prose_of(event.reply.text):
            yield Block(Text(_clipped(prose, MOST_LINES if verbosity else PROSE_LINES)))
        case CellStarted() if event.turn:
            lines, more = first_lines(event.code, MOST_LINES if verbosity else CODE_LINES, SHOWN_CHARS)
            yield Block(highlighted("\n".join(lines)), margin="  ", cut=not verbosity)
            if more:
                yield Block(Text(f"… {count(more, 'more line')}", style="dim"), margin="  ")
        case CellFinished() if event.turn:
            yield from _of_output(event.result, MOST_LINES if verbosity else OUTPUT_LINES)
            style = "dim" if event.result.outcome == "ok" else "red"
            yield Block(
                Text(cell_in_words(event.result, calls_in_words(progress), shown=True), style=style),
                margin="└ ",
            )
        case Warned():
            yield Block(
                Text(one_line(event.message, SHOWN_CHARS), style="yellow"), "! ", "yellow", hanging=True
            )
        case _:
            pass


def _of_ending(event: Event, progress: Progress, columns: int) -> Iterator[Block]:
    match event:
        case AnswerGiven(answer=answer):
            yield Block(Text())
            if answer.status == "ok":
                yield Block(_rule("Answered", columns, "green"))
            else:
                yield Block(_rule("Stopped", columns, "yellow"))
                yield Block(Text(one_line(answer.limit, SHOWN_CHARS), style="yellow"))
            yield Block(Text(f"{answer_summary(answer, progress.caps)}\n", style="dim"))
        case RunFailed(kind="Cancelled"):
            yield Block(_rule("Stopped", columns, "yellow"))
        case RunFailed():
            yield Block(_rule("Failed", columns, "red"))
        case _:
            pass


def _of_output(result: CellResult, most: int) -> Iterator[Block]:
    for text, style in ((result.stdout, ""), (result.stderr, "yellow"), (result.error, "red")):
        lines, before = last_lines(text, most, SHOWN_CHARS)
        if before:
            yield Block(Text(f"… {count(before, 'line')} before", style="dim"), margin="│ ")
        if lines:
            yield Block(Text("\n".join(lines), style=style), margin="│ ")


def _of_calls(event: Event, verbosity: int) -> Iterator[Block]:
    match event:
        case BatchFinished(failed=failed) if failed:
            yield Block(
                Text(f"{count(failed, 'prompt')} of a batch failed", style="yellow"),
                "! ",
                "yellow",
                hanging=True,
            )
        case CallRetried() if verbosity:
            said = f"call {event.call} failed ({one_line(event.error, SHOWN_CHARS)}), again in {seconds(event.wait_s)}"
            yield Block(Text(said, style="yellow"), "  ")
        case CallFailed() if verbosity:
            yield Block(
                Text(f"call {event.call} failed: {one_line(event.error, SHOWN_CHARS)}", style="red"), "  "
            )
        case CallStarted() if verbosity > 1:
            prompt = event.messages[-1].content if event.messages else ""
            yield Block(
                Text(f"call {event.call} → {event.model}: {one_line(prompt, SHOWN_CHARS)}", style="dim"), "  "
            )
        case CallFinished() if verbosity > 1:
            yield Block(
                Text(f"call {event.call} ← {one_line(event.reply.text, SHOWN_CHARS)}", style="dim"), "  "
            )
        case _:
            pass


def _of_child(event: Event) -> Iterator[Block]:
    margin = "  " * event.depth
    match event:
        case RunStarted():
            yield Block(Text(f"child run: {one_line(event.question, SHOWN_CHARS)}", style="cyan"), margin)
        case CellFinished():
            words = cell_in_words(event.result, "", shown=False)
            yield Block(Text(f"child turn {event.turn}: {words}", style="dim"), margin)
        case AnswerGiven():
            yield Block(Text(f"child answer: {one_line(event.answer, SHOWN_CHARS)}", style="cyan"), margin)
        case RunFailed():
            yield Block(Text(f"child failed: {one_line(event.error, SHOWN_CHARS)}", style="red"), margin)
        case _:
            pass


def _clipped(text: str, most: int) -> str:
    lines, more = first_lines(text, most, SHOWN_CHARS)
    return "\n".join([*lines, f"… {count(more, 'more line')}"] if more else lines)


def _rule(title: str, columns: int, style: str = "cyan") -> Text:
    return Text.assemble(
        ("── ", style), (title, f"bold {style}"), (f" {'─' * max(0, columns - len(title) - 4)}", style)
    )


def _batch_line(batch: Batch, progress: Progress, columns: int, now: float) -> Text:
    """`━━━━━╌╌╌╌╌ 4 of 10 calls · 10 in flight · 20 s left · 100 prompts, 10 distinct`, as much as fits."""
    words = f" {batch.done:,} of {count(batch.size, 'call')}"
    extras = [f"{progress.in_flight:,} in flight"]
    if batch.failed:
        extras.insert(0, f"{batch.failed:,} failed")
    if left_s := batch.left_s(now):
        extras.append(f"{seconds(left_s)} left")
    if batch.repeats:
        extras.append(f"{count(batch.prompts, 'prompt')}, {batch.size:,} distinct")
    bar = max(4, min(30, columns // 4))
    for extra in extras:
        if bar + len(words) + len(extra) + 3 <= columns:
            words += f" · {extra}"
    full = round(bar * batch.done / max(1, batch.size))
    return Text.assemble(("━" * full, "green"), ("╌" * (bar - full), "dim"), words)


def _status_line(progress: Progress, columns: int, now: float) -> Text:
    """The spinner, and the fields that fit: the less needed ones go first where a terminal is narrow."""
    fields = [(importance, text) for importance, text in _fields(progress, now) if text]
    while len(fields) > 1 and sum(len(text) + 3 for _, text in fields) > columns:
        fields.remove(min(fields))
    spin = SPINNER[int(now * 10) % len(SPINNER)]
    return Text.assemble((f"{spin} ", "cyan"), " · ".join(text for _, text in fields))


def _spent(progress: Progress) -> str:
    """`$0.12`, or `spent $0.12 of $1.00`; nothing where a price is not known."""
    cost, cap = progress.cost_usd, progress.caps.usd
    if cost is not None and cap is not None:
        return f"spent {money(cost)} of {money(cap)}"
    return money(cost) if cost else ""


def _fields(progress: Progress, now: float) -> list[tuple[int, str]]:
    asking = "the root model writes" if progress.written else "asking the root model"
    doing = {"root": asking, "cell": f"running cell {progress.cell}"}.get(progress.doing, "")
    turn = f"turn {progress.turn} of {progress.max_iterations}" if progress.max_iterations else ""
    caps, usage = progress.caps, progress.usage
    calls = count(progress.calls, "call") if caps.calls is None else of_cap(usage.calls, caps.calls, "call")
    tokens = of_cap(usage.total_tokens, caps.tokens, "token")
    return [
        (5, turn),
        (1, doing if turn else "running your code"),
        (0, count(progress.child_runs, "child run") if progress.child_runs else ""),
        (4, calls),
        (2 if caps.tokens is None else 5, tokens if usage.total_tokens or caps.tokens is not None else ""),
        (3 if caps.usd is None else 7, _spent(progress)),
        (6, seconds(now - progress.started_at)),
    ]
