"""The context that the user gave, before any model is asked."""

from __future__ import annotations

import anyio
import pytest

from rlm import RLM_REPL, REPLEnv, ScriptedClient, loading
from rlm.events import ContextLoading


def test_reading_a_large_file_is_reported_before_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_REPORT_INTERVAL_S", 0.0)
    path = tmp_path / "large.txt"
    path.write_text("x" * 9_000_000)
    events = []
    with RLM_REPL(client=ScriptedClient(root=["FINAL(done)"]), on_event=events.append) as rlm:
        answer = rlm.completion(path, "a question")
    reads = [event for event in events if isinstance(event, ContextLoading)]
    assert events[: len(reads)] == reads
    assert {event.run_id for event in reads} == {answer.run_id}
    assert [(event.name, event.total_bytes) for event in reads] == [(str(path), 9_000_000)] * 3
    assert [event.read_bytes for event in reads] == [1 << 22, 1 << 23, 9_000_000]


def test_a_small_file_is_not_worth_a_report(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("x")
    events = []
    with RLM_REPL(client=ScriptedClient(root=["FINAL(done)"]), on_event=events.append) as rlm:
        rlm.session(path).close()
    assert events == []


def test_cancelling_ends_the_reading_of_a_file(tmp_path):
    path = tmp_path / "large.txt"
    path.write_text("x" * 9_000_000)
    pieces = []

    async def main():
        with anyio.CancelScope() as scope:
            original = loading.time.monotonic

            def cancel_after_the_first():
                pieces.append(1)
                if len(pieces) == 2:  # one look at the clock precedes the first piece
                    anyio.from_thread.run_sync(scope.cancel)
                return original()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    loading, "time", type("time", (), {"monotonic": staticmethod(cancel_after_the_first)})
                )
                await loading.load(path, lambda event: None)

    anyio.run(main)
    assert len(pieces) == 2


@pytest.mark.parametrize(
    "open_it", [lambda rlm: rlm.session("contract.txt"), lambda rlm: rlm.bare_session("contract.txt")]
)
def test_a_session_warns_of_a_file_name_as_a_context_before_any_call(open_it):
    client = ScriptedClient(str)
    with (
        RLM_REPL(client=client) as rlm,
        pytest.warns(UserWarning, match="'contract.txt', which looks like the name"),
    ):
        open_it(rlm).close()
    assert client.calls == []


def test_an_environment_of_cells_warns_of_a_file_name_as_a_context():
    with (
        pytest.warns(UserWarning, match="'contract.txt', which looks like the name"),
        REPLEnv(context_str="contract.txt", client=ScriptedClient(str)),
    ):
        pass
