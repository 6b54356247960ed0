"""The frame at the bottom of a live view: the latest output, the running batch, and the status line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text

from rlm.display.run_state import of_cap
from rlm.display.text import last_lines, money, one_line, seconds, tail_of
from rlm.wording import counted

if TYPE_CHECKING:
    from rlm.display.run_state import BatchProgress, RunState

__all__ = ["frame_of"]

TAIL_LINES: Final = 6
SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def frame_of(state: RunState, *, columns: int, rows: int, now: float) -> list[Text]:
    """Return the lines of the frame, none if no run and no cell is running.

    Args:
        state: of the runs.
        columns: of the terminal.
        rows: of the terminal.
        now: seconds since the epoch.
    """
    if not state.doing and not state.open_runs:
        return []
    lines: list[Text] = []
    height = max(1, min(TAIL_LINES, rows - 4))
    if state.doing == "cell":
        tail, _ = last_lines(state.output, height, columns)
        lines += [Text.assemble(("│ ", "dim"), (line, "dim")) for line in tail]
    elif state.written:
        tail = tail_of(state.written, height, max(4, columns - 2))
        lines += [Text.assemble(("▏ ", "cyan"), (line, "dim")) for line in tail]
    if batch := state.batch():
        lines.append(_batch_line(batch, state, columns, now))
    elif state.retry:
        lines.append(Text(one_line(state.retry, columns), style="yellow"))
    lines.append(_status_line(state, columns, now))
    return lines


def _batch_line(batch: BatchProgress, state: RunState, columns: int, now: float) -> Text:
    """`━━━━━╌╌╌╌╌ 4 of 10 calls · 10 in flight · 20 s left · 100 prompts, 10 distinct`, as much as fits."""
    words = f" {batch.done:,} of {counted(batch.size, 'call')}"
    details = [f"{state.in_flight:,} in flight"]
    if batch.failed:
        details.insert(0, f"{batch.failed:,} failed")
    if left_s := batch.left_s(now):
        details.append(f"{seconds(left_s)} left")
    if batch.repeats:
        details.append(f"{counted(batch.prompts, 'prompt')}, {batch.size:,} distinct")
    bar = max(4, min(30, columns // 4))
    for detail in details:
        if bar + len(words) + len(detail) + 3 <= columns:
            words += f" · {detail}"
    full = round(bar * batch.done / max(1, batch.size))
    return Text.assemble(("━" * full, "green"), ("╌" * (bar - full), "dim"), words)


def _status_line(state: RunState, columns: int, now: float) -> Text:
    """The spinner and the fields; on a narrow terminal the least important fields are left out."""
    fields = [(importance, text) for importance, text in _fields(state, now) if text]
    while len(fields) > 1 and sum(len(text) + 3 for _, text in fields) > columns:
        fields.remove(min(fields))
    spin = SPINNER[int(now * 10) % len(SPINNER)]
    return Text.assemble((f"{spin} ", "cyan"), " · ".join(text for _, text in fields))


def _fields(state: RunState, now: float) -> list[tuple[int, str]]:
    asking = "the root model writes" if state.written else "asking the root model"
    doing = {"root": asking, "cell": f"running cell {state.cell}"}.get(state.doing, "")
    loading = "loading the context"
    turn = (
        f"turn {state.turn} of {state.max_iterations}" if state.turn else loading * bool(state.max_iterations)
    )
    caps, usage = state.caps, state.usage
    calls = counted(state.calls, "call") if caps.calls is None else of_cap(usage.calls, caps.calls, "call")
    tokens = of_cap(usage.total_tokens, caps.tokens, "token")
    return [
        (5, turn),
        (1, doing if turn else "running your code"),
        (0, counted(state.child_runs, "child run") if state.child_runs else ""),
        (4, calls),
        (2 if caps.tokens is None else 5, tokens if usage.total_tokens or caps.tokens is not None else ""),
        (3 if caps.usd is None else 7, _spent(state)),
        (6, seconds(now - state.started_at)),
    ]


def _spent(state: RunState) -> str:
    """`$0.12`, or `spent $0.12 of $1.00`; empty if a price is not known."""
    cost, cap = state.cost_usd, state.caps.usd
    if cost is not None and cap is not None:
        return f"spent {money(cost)} of {money(cap)}"
    return money(cost) if cost else ""
