"""Checks that every launcher must pass: `check_launcher` starts guests with the launcher and runs them.

    for check in await check_launcher(Launcher(name="docker", prefix=("docker", "run", "-i", "--rm", IMAGE))):
        print(check)

Users of a launcher rely on these properties: values arrive as they were sent, cells behave as in a real REPL, limits
hold, a cell that dies costs only itself, and the isolation that the guest reports is in force.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from rlm.errors import CallError, SandboxError
from rlm.sandbox.process import CONFINED
from rlm.sandbox.session import Session, open_session
from rlm.settings import SandboxSettings

if TYPE_CHECKING:
    from rlm.sandbox.launchers import Launcher
    from rlm.values import CellResult, HostCall

__all__ = ["LauncherCheck", "check_launcher"]

Trial: TypeAlias = Callable[[Session], Awaitable[None]]

SETTINGS = SandboxSettings(cell_timeout_s=3.0, memory_bytes=512 << 20, scratch_bytes=16 << 20)

PATIENT_SECONDS = 120.0

VALUES: dict[str, Any] = {
    "none and booleans": [None, True, False],
    "integers": [0, -1, 2**63, -(2**63) - 1, 10**5000],
    "floats": [0.0, -0.0, 1e-320, math.inf, -math.inf, complex(1, -0.0)],
    "text": ["", "é漢😀", "\r\n\r", "\0", "\ud800", "\ud83d\ude00", "x" * 300_000],
    "bytes": [b"", bytes(range(256)), bytearray(b"ab"), b"y" * 300_000],
    "containers": [[], (), {}, set(), frozenset({1}), (1, (2, [3])), {1: "a", (2, "b"): None, "c": {}}],
    "times": [
        datetime(2026, 11, 21, 1, 2, 3, 4, timezone(timedelta(hours=-3))),
        datetime(2026, 10, 25, 2, 30, fold=1),  # noqa: DTZ001 - a time without a zone must arrive without one
        date(2026, 11, 21),
        time(1, 2, 3),
        timedelta(-1, 2, 3),
    ],
    "others": [Decimal("1.10"), Decimal("-0"), UUID(int=7), PurePosixPath("a/b")],
}


@dataclass(frozen=True, slots=True)
class LauncherCheck:
    """Result of one check: `problem` is '' if it passed, else it describes what was observed."""

    name: str
    problem: str = ""

    @property
    def passed(self) -> bool:
        """True if the property holds."""
        return not self.problem

    def __str__(self) -> str:
        return f"{'ok     ' if self.passed else 'FAILED '} {self.name}" + (
            f": {self.problem}" if self.problem else ""
        )


async def check_launcher(
    launcher: Launcher | None = None, *, settings: SandboxSettings = SETTINGS
) -> list[LauncherCheck]:
    """Run all checks on guests of this launcher and return their results.

    Args:
        launcher: starts the guest; by default a process on this machine.
        settings: limits of the guest; the defaults keep the checks of limits short.

    Raises:
        GuestStartFailed: the launcher did not start a guest.
    """
    # Only the checks of limits need a short time; the others must pass on a busy machine too.
    patient = dataclasses.replace(settings, cell_timeout_s=max(settings.cell_timeout_s, PATIENT_SECONDS))
    return [
        *await _checks(patient, launcher, limits=False),
        *await _checks(settings, launcher, limits=True),
    ]


async def _checks(
    settings: SandboxSettings, launcher: Launcher | None, *, limits: bool
) -> list[LauncherCheck]:
    """Run the checks of limits, or all others, on a guest of their own."""
    session = await open_session(settings, launcher=launcher)
    try:
        await session.load("")
        return [
            await _try(name, trial, session)
            for name, trial in _trials(session).items()
            if name.startswith("limits: ") == limits
        ]
    finally:
        await session.aclose()


async def _try(name: str, trial: Trial, session: Session) -> LauncherCheck:
    try:
        await trial(session)
    except (_Failed, SandboxError) as failure:
        return LauncherCheck(name, str(failure) or type(failure).__name__)
    return LauncherCheck(name)


class _Failed(Exception):
    """An observation differs from the expectation."""


def _require(*, seen: object, wanted: object) -> None:
    if seen != wanted:
        raise _Failed(f"wanted {wanted!r}, saw {seen!r}"[:500])


async def _serve(call: HostCall) -> Any:
    """Answer a host call: uppercase for a prompt, the context itself for a child run."""
    match call.name, call.arguments:
        case "llm_query", {"prompt": "fail"}:
            raise CallError("no such luck")
        case "llm_query", {"prompt": str(prompt)}:
            return prompt.upper()
        case "llm_batch", {"prompts": list(prompts)}:
            return [_slot(prompt) for prompt in prompts]
        case "rlm_query", {"context": context}:
            return context
        case _:
            raise CallError(f"no answer to {call.name}")


def _slot(prompt: str) -> dict[str, str]:
    return {"error": "no such luck", "kind": "CallError"} if prompt == "fail" else {"text": prompt.upper()}


async def _run(session: Session, code: str) -> CellResult:
    return await session.run(code, serve=_serve)


async def _expect(session: Session, code: str, *, stdout: str = "", outcome: str = "ok") -> CellResult:
    """Run a cell that must end with this outcome and print text that contains `stdout`."""
    result = await _run(session, code)
    if result.outcome != outcome or stdout not in result.stdout:
        raise _Failed(f"{code!r} gave {result.outcome}: {result.stdout!r} {result.error!r}"[:500])
    return result


def _trials(session: Session) -> dict[str, Trial]:
    trials: dict[str, Trial] = {f"context: {name}": _crosses(value) for name, value in VALUES.items()}
    trials |= {
        "cells: names are kept": _cell("x = 1", "def f(): return x", "x = 2", "f()", stdout="2\n"),
        "cells: a trailing expression is shown": _cell("1 == 1", stdout="True\n"),
        "cells: state before an exception is kept": _state_before_exception,
        "cells: a traceback names the line": _traceback,
        "cells: await at the top": _cell("import asyncio\nawait asyncio.sleep(0, 'woke')", stdout="woke"),
        "cells: classes are importable from __main__": _cell(
            "import pickle, dataclasses\n@dataclasses.dataclass\nclass P:\n  a: int",
            "pickle.loads(pickle.dumps(P(3)))",
            stdout="P(a=3)",
        ),
        "cells: reserved names come back": _cell(
            "llm_query = context = FINAL = 3", "callable(llm_query)", stdout="True"
        ),
        "output: nothing breaks the channel": _cell(
            "import os\nos.write(1, b'a'); os.write(2, b'b')\nfor i in range(3, 20):\n  try: os.write(i, b'c')\n"
            "  except OSError: pass",
            stdout="a",
        ),
        "calls: a query and its error": _query_and_error,
        "calls: a batch keeps its order": _cell(
            "r = llm_batch(['a', 'fail', 'b'])\n[r[0], bool(r[1]), r[2]]", stdout="['A', False, 'B']"
        ),
        "calls: threads call at once": _cell(
            "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as p:\n"
            "  print(list(p.map(llm_query, 'abcdefgh')))",
            stdout="['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H']",
        ),
        "calls: a large context of a child run arrives": _cell(
            "t = [('é\\r\\n\\0\\ud800', n, {n: b'\\xff'}) for n in range(20_000)]\nrlm_query('q', t) == t",
            stdout="True",
        ),
        "answers: FINAL, FINAL_VAR, answer": _answers,
        "limits: time": _dies("while True: pass", {"timeout"}),
        "limits: memory": _dies(
            "x = []\nwhile True: x.append(bytearray(1 << 26))", {"memory", "timeout", "crashed"}
        ),
        "deaths: exit of the process": _dies("import os; os._exit(3)", {"exited", "crashed"}),
        "deaths: a crash": _dies("import os; os.abort()", {"crashed"}),
        "isolation: no secrets in the environment": _cell(
            "import os\nsorted(n for n in os.environ if 'KEY' in n or 'TOKEN' in n or 'SECRET' in n)",
            stdout="[]",
        ),
    }
    if set(session.isolation.levels) >= CONFINED:
        trials["isolation: what is claimed holds"] = _claims_hold
    return trials


def _crosses(value: Any) -> Trial:
    async def trial(session: Session) -> None:
        await session.load(value)
        await _expect(session, "copy = context")
        _require(seen=await _identity(session), wanted=_form(value))

    return trial


async def _identity(session: Session) -> Any:
    return _form(await session.fetch("copy"))


def _form(value: Any) -> Any:
    """Return a value with its types, so that 1, 1.0 and True compare as different, and -0.0 and 0.0."""
    if isinstance(value, (list, tuple)):
        return [type(value), *map(_form, value)]
    if isinstance(value, dict):
        return [dict, *((_form(key), _form(item)) for key, item in value.items())]
    if isinstance(value, PurePosixPath):
        return str(value)
    return type(value), value if isinstance(value, (str, set, frozenset)) else repr(value) if _is_short(
        value
    ) else value


def _is_short(value: object) -> bool:
    return not isinstance(value, int) or value.bit_length() < 1000  # noqa: PLR2004 - repr has a limit beyond


def _cell(*cells: str, stdout: str) -> Trial:
    async def trial(session: Session) -> None:
        for code in cells[:-1]:
            await _expect(session, code)
        await _expect(session, cells[-1], stdout=stdout)

    return trial


def _dies(code: str, outcomes: set[str]) -> Trial:
    async def trial(session: Session) -> None:
        await _expect(session, "before = 'there'")
        result = await _run(session, code)
        if result.outcome not in outcomes:
            raise _Failed(
                f"wanted {' or '.join(sorted(outcomes))}, saw {result.outcome}: {result.error}"[:500]
            )
        _require(seen=result.state, wanted="rolled back")
        await _expect(session, "before", stdout="")

    return trial


async def _state_before_exception(session: Session) -> None:
    await _expect(session, "seen = [1]\nseen.append(2)\n1 / 0", outcome="raised")
    await _expect(session, "seen", stdout="[1, 2]")


async def _traceback(session: Session) -> None:
    result = await _expect(session, "def f():\n    return 1 / 0\n\nf()", outcome="raised")
    for part in ("line 4", "line 2, in f", "return 1 / 0", "ZeroDivisionError"):
        if part not in result.error:
            raise _Failed(f"no {part!r} in {result.error!r}")
    if "guest" in result.error:
        raise _Failed(f"the harness shows in {result.error!r}")


async def _query_and_error(session: Session) -> None:
    await _expect(
        session,
        "try:\n    llm_query('fail')\nexcept LLMError as e:\n    print(e, llm_query('a'))",
        stdout="no such luck A",
    )


async def _answers(session: Session) -> None:
    for code, source in (
        ("FINAL([1])", "FINAL"),
        ("v = [1]\nFINAL_VAR('v')", "FINAL_VAR"),
        ("answer.update(content=[1], ready=True)", "answer"),
    ):
        result = await _expect(session, code)
        _require(seen=result.final and (result.final.value, result.final.source), wanted=([1], source))


async def _claims_hold(session: Session) -> None:
    """Attempt from within a cell what the reported isolation forbids."""
    attempts = {
        "files": "__import__('os').listdir('/')",
        "network": "__import__('socket').socket()",
        "signals": "__import__('os').kill(1, 0)",
        "programs": "__import__('os').execv('/bin/sh', ['sh'])",
    }
    for name, code in attempts.items():
        result = await _run(session, code)
        if "PermissionError" not in result.error:
            raise _Failed(f"{name} is claimed, but {code} gave {result.outcome}: {result.error[-200:]!r}")
