from __future__ import annotations

import base64
import hashlib
import sys
import types
from pydoc_data.topics import topics

import pytest

from rlm.metering import tokens
from rlm.metering.tokens import Counter, Encoder, encoder_for, estimate
from rlm.values import Call, Message, Usage

ENGLISH = "\n".join(topics.values())


class Words:
    """One token per word and the space before it: exact, so that expectations can be."""

    def count(self, text):
        return len(text.split())


@pytest.fixture
def no_vocabularies(monkeypatch, tmp_path):
    """Neither toktok nor a cached vocabulary of tiktoken."""
    monkeypatch.setitem(sys.modules, "toktok", None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    clear_caches()
    yield tmp_path
    clear_caches()


def clear_caches():
    tokens._toktok.cache_clear()
    tokens._load_tiktoken.cache_clear()


# Counting


def count(text, model=None):
    return encoder_for(model).count(text)


def test_an_empty_text_has_no_tokens_and_any_other_has_some(no_vocabularies):
    assert count("") == 0
    assert all(count(text) >= 1 for text in ("a", " ", "\ud800", "\0", "東", " the  the "))


def test_without_a_vocabulary_a_count_is_the_estimate_and_nothing_is_downloaded(no_vocabularies, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert count("hello world", "gpt-5") == estimate("hello world")
    assert encoder_for("claude-sonnet-4-5") is encoder_for("gpt-5")


@pytest.mark.parametrize(
    ("text", "o200k"),
    [
        (ENGLISH[:100_000], 22_802),
        ("Der Vertrag endet am 31. Dezember, sofern er nicht schriftlich verlängert wird. " * 20, 361),
        ("契約は書面により延長されない限り、12月31日に終了します。" * 20, 420),
        ("Договор заканчивается 31 декабря, если он не продлён в письменной форме. " * 20, 381),
        ("def add(left: int, right: int) -> int:\n    return left + right\n\n\n" * 20, 380),
    ],
    ids=["english", "german", "japanese", "russian", "code"],
)
def test_the_estimate_is_within_a_third_of_the_true_count(text, o200k):
    assert estimate(text) == pytest.approx(o200k, rel=0.34)


def test_the_estimate_of_a_long_text_is_the_sum_of_its_pieces():
    text = "A short line.\n" * 200_000
    assert estimate(text) == pytest.approx(200 * estimate("A short line.\n" * 1_000), rel=0.01)


def test_anything_that_counts_is_an_encoder():
    assert isinstance(Words(), Encoder)


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-5", "o200k_base"),
        ("openai/gpt-4o-2024-08-06", "o200k_base"),
        ("ft:gpt-4o-mini:org::id", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-32k", "cl100k_base"),
        ("GPT-4.1-nano", "o200k_base"),
        ("openai/gpt-oss-120b", "o200k_harmony"),
        ("claude-sonnet-4-5", None),
        ("", None),
    ],
)
def test_the_name_of_a_model_decides_its_vocabulary(model, vocabulary):
    assert tokens._vocabulary_of(model) == vocabulary


def test_a_vocabulary_in_tiktokens_cache_is_used(no_vocabularies, monkeypatch):
    """The file holds what tiktoken checks for: a small vocabulary stands in, with its hash."""
    data = b"\n".join(base64.b64encode(bytes([byte])) + f" {byte}".encode() for byte in range(256))
    cached = no_vocabularies / "fb374d419588a4632f3f557e76b4b70aebbca790"
    url = tokens._TIKTOKEN_FILES["o200k_base"][0]
    assert cached.name == hashlib.sha1(url.encode()).hexdigest()
    cached.write_bytes(data)
    monkeypatch.setitem(tokens._TIKTOKEN_FILES, "o200k_base", (url, hashlib.sha256(data).hexdigest()))
    encoding = types.SimpleNamespace(encode_ordinary=lambda text: list(text.encode()))
    monkeypatch.setitem(
        sys.modules, "tiktoken", types.SimpleNamespace(get_encoding={"o200k_base": encoding}.get)
    )
    assert count("héllo", "gpt-5") == 6
    assert count("a b" * 100_000, "gpt-5") == 300_000
    assert count("\ud800", "gpt-5") == 1
    assert count("the cat sat. " * 500_000, "gpt-5") == pytest.approx(6_500_000, rel=0.02)


def test_a_damaged_file_in_tiktokens_cache_is_not_used_because_tiktoken_would_download(
    no_vocabularies, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    (no_vocabularies / "fb374d419588a4632f3f557e76b4b70aebbca790").write_bytes(b"half a file")
    assert count("hello", "gpt-5") == estimate("hello")


def test_a_switched_off_cache_of_tiktoken_is_no_cache(no_vocabularies, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert count("hello", "gpt-5") == estimate("hello")


def test_toktok_counts_exactly_where_it_is_installed():
    pytest.importorskip("toktok")
    clear_caches()
    assert count("hello world", "gpt-5") == 2
    assert count("\ud800<|endoftext|>", "gpt-4") > 2
    assert estimate(ENGLISH) == pytest.approx(count(ENGLISH), rel=0.1)


# Calibration


def test_a_counter_learns_a_models_factor_from_reports(no_vocabularies):
    counter = Counter()
    text = ENGLISH[:20_000]
    before = counter.count(text, "claude")
    for _ in range(20):
        counter.observe("claude", text, round(before * 1.4))
    assert counter.count(text, "claude") == pytest.approx(before * 1.4, rel=0.02)
    assert counter.count(text, "other") == before
    assert counter.factor("claude") == pytest.approx(1.4, rel=0.02)


def test_a_counter_forgets_slowly(no_vocabularies):
    counter = Counter()
    text = ENGLISH[:400_000]
    for factor in (1.0, 2.0):
        for _ in range(40):
            counter.observe("m", text, round(estimate(text) * factor))
    assert counter.factor("m") == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize("tokens_reported", [0, -5, 4, 10**9])
def test_a_report_that_cannot_be_true_teaches_nothing(no_vocabularies, tokens_reported):
    counter = Counter()
    counter.observe("m", ENGLISH, tokens_reported)
    counter.observe("m", "short", 9)
    counter.observe("m", "", 9)
    assert counter.factor("m") == 1.0


def test_a_call_is_counted_with_the_marks_of_its_messages_and_observed_by_its_usage():
    counter = Counter({"m": Words()})
    call = Call(model="m", messages=(Message("system", "a b"), Message("user", "c " * 998)))
    assert counter.count_call(call) == 1_000 + 2 * 4
    counter.observe_call(call, Usage(calls=1, input_tokens=2_008, estimated=True))
    assert counter.factor("m") == 1.0
    for _ in range(50):
        counter.observe_call(call, Usage(calls=1, input_tokens=2_008))
    assert counter.count_call(call) == pytest.approx(2_008, rel=0.02)
