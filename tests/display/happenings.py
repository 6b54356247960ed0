"""Events made by hand: a run of three turns with a batch, in the order in which they come."""

from __future__ import annotations

from rlm.events import (
    AnswerGiven,
    BatchFinished,
    BatchStarted,
    CallFailed,
    CallFinished,
    CallStarted,
    CellFinished,
    CellOutput,
    CellStarted,
    RootReplied,
    RunStarted,
    TurnStarted,
)
from rlm.values import Answer, CellResult, Message, Reply, Usage

__all__ = ["HERE", "started", "whole_run"]

HERE = {"run_id": "20260101T000000Z-abcdef01", "depth": 0, "at": 100.0}


def started(question="What is it?", at=100.0, run_id=HERE["run_id"], depth=0, parent_id="", **budget):
    return RunStarted(
        run_id=run_id,
        depth=depth,
        at=at,
        question=question,
        context_summary="`context` is a str of 5 characters.",
        model="big",
        recursive_model="small",
        max_iterations=20,
        parent_id=parent_id,
        **budget,
    )


def whole_run(*, output="hello\n", calls=4, failed=1, code="print('hello')", step_s=1.0, cost_usd=None):
    """A generator of events, `step_s` seconds apart."""
    at = 100.0

    def here():
        nonlocal at
        at += step_s
        return {**HERE, "at": at}

    usage = Usage(calls=1, input_tokens=100, output_tokens=10)
    yield started()
    yield TurnStarted(**here(), turn=1)
    yield CallStarted(**here(), call=1, role="root", model="big", messages=(Message("user", "q"),))
    yield CallFinished(**here(), call=1, reply=Reply(text="x", usage=usage, cost_usd=0.01))
    yield RootReplied(**here(), turn=1, reply=Reply(text=f"I look.\n```repl\n{code}\n```"))
    yield CellStarted(**here(), turn=1, cell=1, code=code)
    yield CellOutput(**here(), cell=1, stream="stdout", text=output)
    yield BatchStarted(**here(), batch=1, size=calls, distinct=calls, max_concurrent=10)
    for number in range(calls):
        call = 2 + number
        yield CallStarted(
            **here(), call=call, role="sub", model="small", messages=(Message("user", "p" * 50),), batch=1
        )
        if number < failed:
            yield CallFailed(**here(), call=call, kind="Refused", error="declined")
        else:
            yield CallFinished(**here(), call=call, reply=Reply(text="r", usage=usage, cost_usd=0.001))
    yield BatchFinished(**here(), batch=1, failed=failed)
    yield CellFinished(**here(), turn=1, cell=1, result=CellResult(stdout=output, execution_time=2.0))
    yield AnswerGiven(
        **here(),
        answer=Answer(
            "done",
            turns=1,
            seconds=9.0,
            cost_usd=cost_usd,
            usage=Usage(calls=5, input_tokens=500, output_tokens=50),
        ),
    )
