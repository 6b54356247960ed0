from __future__ import annotations

from rlm.engine.run_events import OutputBacklog
from rlm.events import CellOutput, Warned

HERE = {"run_id": "r", "depth": 0, "at": 0.0}


def output(text):
    return CellOutput(**HERE, cell=1, stream="stdout", text=text)


def test_output_that_nobody_reads_is_dropped_with_its_size_and_no_other_event_is():
    waiting = []
    backlog = OutputBacklog(waiting.append, max_chars=10_000)
    for _ in range(100):
        backlog.put(output("x" * 1_000))
    for number in range(100):
        backlog.put(Warned(**HERE, message=str(number)))
    texts = [event.text for event in waiting if isinstance(event, CellOutput)]
    assert texts[:-1] == ["x" * 1_000] * 6
    assert texts[-1] == "\n… 94,000 characters dropped, because the events are read too slowly …\n"
    assert [event.message for event in waiting if isinstance(event, Warned)] == list(map(str, range(100)))


def test_output_passes_again_once_the_reader_has_caught_up():
    waiting = []
    backlog = OutputBacklog(waiting.append, max_chars=10_000)
    for _ in range(3):
        for _ in range(5):
            backlog.put(output("x" * 1_000))
        while waiting:
            event = waiting.pop(0)
            assert "dropped" not in event.text
            backlog.take(event)
