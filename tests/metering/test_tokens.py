from __future__ import annotations

import base64
import hashlib
import sys
import types
from pydoc_data.topics import topics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlm.errors import SettingsError
from rlm.metering import tokens
from rlm.metering.tokens import Counter, Encoder, count, encoder_for, estimate, split, truncate
from rlm.values import Call, Message, Usage

ENGLISH = "\n".join(topics.values())


class Words:
    """One token per word and the space before it: exact, so that expectations can be."""

    def count(self, text):
        return len(text.split())


class Characters:
    def count(self, text):
        return len(text)


class Unfriendly:
    """Whose prefixes may have more tokens than the whole, and whose characters may have three."""

    def count(self, text):
        return (
            len(text.replace("ab", "")) + text.count("ab") + 2 * sum(character > "\xff" for character in text)
        )


ENCODERS = [Words(), Characters(), Unfriendly(), tokens._ESTIMATE]


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


def test_an_encoder_of_your_own_goes_first():
    assert isinstance(Words(), Encoder)
    assert count("one two three", "gpt-5", encoder=Words()) == 3


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
def test_a_models_vocabulary_is_told_by_its_name(model, vocabulary):
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


# Truncating


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: type(encoder).__name__)
@given(text=st.text(max_size=300), most=st.integers(0, 60))
@example(text="a\r\nb", most=2)
@settings(max_examples=150, deadline=None)
def test_a_truncated_text_is_a_beginning_that_fits(encoder, text, most):
    short = truncate(text, most, encoder=encoder)
    assert text.startswith(short)
    assert encoder.count(short) <= most
    if encoder.count(text) <= most and not isinstance(encoder, Unfriendly):
        assert encoder.count(short) == encoder.count(text)


def test_truncating_keeps_as_much_as_fits():
    assert truncate("x" * 1_000, 123, encoder=Characters()) == "x" * 123
    assert truncate("one two three four", 2, encoder=Words()).split() == ["one", "two"]
    assert truncate(ENGLISH, 10**9) == ENGLISH


def test_truncating_does_not_part_a_letter_from_its_accent_or_cr_from_lf():
    assert truncate("ae\u0301b", 2, encoder=Characters()) == "a"
    assert truncate("a\r\nb", 2, encoder=Characters()) == "a"


def test_a_negative_limit_is_refused():
    with pytest.raises(SettingsError, match="max_tokens=-1"):
        truncate("a", -1)


# Splitting

pieces = st.lists(
    st.sampled_from(
        ["word ", "a", "ab", "\n", "\n\n", "\r\n", "。", ". ", "é", "e\u0301", "東京", "😀", "\ud800", " "]
    ),
    max_size=80,
).map("".join)


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: type(encoder).__name__)
@given(text=pieces, most=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_parts_join_to_the_text_and_fit(encoder, text, most):
    parts = split(text, most, encoder=encoder)
    assert "".join(parts) == text
    assert all(parts)
    assert all(encoder.count(part) <= most or len(part) == 1 for part in parts)


@given(documents=st.lists(pieces, max_size=12), most=st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_documents_are_lossless_too_and_one_that_fits_is_never_cut(documents, most):
    parts = split(documents, most, encoder=Characters())
    assert "".join(parts) == "\n\n".join(documents)
    borders = {0}
    for part in parts:
        borders.add(max(borders) + len(part))
    start = 0
    for document in documents:
        end = start + len(document) + 2
        if len(document) + 2 <= most:
            assert not any(start < border < end for border in borders if border < len("\n\n".join(documents)))
        start = end


@given(text=pieces, most=st.integers(2, 40), data=st.data())
@settings(max_examples=150, deadline=None)
def test_with_overlap_each_part_begins_with_what_came_before_and_nothing_is_left_out(text, most, data):
    overlap = data.draw(st.integers(1, most - 1))
    parts = split(text, most, overlap=overlap, encoder=Characters())
    position = 0
    for number, part in enumerate(parts):
        assert len(part) <= most
        start = text.index(part, max(0, position - overlap)) if number else 0
        assert position - overlap <= start <= position
        assert start + len(part) > position
        position = start + len(part)
    assert position == len(text)


def test_a_cut_falls_between_paragraphs_before_lines_sentences_and_words():
    text = "One two three. Four five.\nSix seven eight.\n\nNine ten. Eleven twelve thirteen."
    assert split(text, 10, encoder=Words())[0] == "One two three. Four five.\nSix seven eight.\n\n"
    assert split(text, 7, encoder=Words())[0] == "One two three. Four five.\n"
    assert split(text, 4, encoder=Words())[0] == "One two three. "
    assert split(text, 2, encoder=Words())[0] == "One two "
    assert split("漢字です。仮名です。" * 2, 14, encoder=Characters())[0] == "漢字です。仮名です。"
    assert split("one\r\n\r\ntwo\r\nthree", 12, encoder=Characters())[0] == "one\r\n\r\n"


def test_documents_are_packed_and_only_a_long_one_is_cut():
    parts = split(["a b", "c d", "e f g h i j k", "l"], 4, encoder=Words())
    assert parts[0] == "a b\n\nc d\n\n"
    assert parts[-1].split()[-1] == "l"
    assert len(parts) <= 4


def test_overlap_begins_at_a_word():
    parts = split("alpha beta gamma delta epsilon zeta", 20, overlap=8, encoder=Characters())
    assert parts[0] == "alpha beta gamma "
    assert parts[1].startswith("gamma delta")


def test_nothing_has_no_parts():
    assert split("", 10) == split([], 10) == []


def test_a_text_that_fits_is_one_part():
    assert split("Hello.\n\nWorld.", 100) == ["Hello.\n\nWorld."]


@pytest.mark.parametrize(("most", "overlap"), [(0, 0), (-1, 0), (5, 5), (5, -1)])
def test_impossible_sizes_are_refused(most, overlap):
    with pytest.raises(SettingsError):
        split("text", most, overlap=overlap)


def test_parts_of_a_long_text_are_well_filled(no_vocabularies):
    parts = split(ENGLISH, 5_000)
    assert "".join(parts) == ENGLISH
    sizes = [estimate(part) for part in parts]
    assert max(sizes) <= 5_000
    assert sum(sizes) / len(sizes) > 3_500


def test_tiny_parts_hold_words_and_not_single_characters(no_vocabularies):
    assert len(split("word " * 2_000, 2)) < 4_000


class Metered:
    """Counts like the estimate and notes how much it was given."""

    def __init__(self):
        self.characters = 0

    def count(self, text):
        self.characters += len(text)
        return estimate(text)


def test_splitting_measures_every_character_only_a_few_times():
    metered = Metered()
    split(ENGLISH, 2_000, encoder=metered)
    assert metered.characters < 5 * len(ENGLISH)


def test_truncating_a_long_text_measures_only_its_beginning():
    metered = Metered()
    truncate(ENGLISH, 500, encoder=metered)
    assert metered.characters < 100_000


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
