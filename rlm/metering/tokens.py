"""Count the tokens of texts, without any network access.

Three ways to count; the first available one is used:

- toktok-rs, if it is installed: exact for OpenAI's models, its vocabularies are inside the package.
- tiktoken, if the vocabulary is already in its cache on disk (`TIKTOKEN_CACHE_DIR`, or `data-gym-cache` in the
  temporary folder). tiktoken would download a missing vocabulary, so the cache is checked first.
- An estimate from the bytes of the text: how many letters, digits, signs and characters of each script, each with a
  weight fitted to o200k. `tests/benchmarks/tokens.py` shows its error. A `Counter` calibrates it, model by model,
  with what providers report.

A model whose vocabulary is not public (Claude, Gemini) is always estimated. An `Encoder` of your own takes precedence.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rlm.values import Call, Usage

__all__ = [
    "CHARS_PER_TOKEN",
    "Counter",
    "Encoder",
    "cached_vocabulary",
    "encoder_for",
    "estimate",
    "estimate_call",
    "is_exact",
]


CHARS_PER_TOKEN: Final = 3.3
"""Estimate for a text that does not exist yet, of which only the length is planned."""


@runtime_checkable
class Encoder(Protocol):
    """Interface of token counters; implement it for a model whose tokenizer you have."""

    def count(self, text: str) -> int:
        """Return the number of tokens of the text."""
        ...


def estimate(text: str) -> int:
    """Estimate the tokens of a text from its bytes; linear, about 0.01 s per megabyte."""
    return _ESTIMATE.count(text)


def estimate_call(call: Call) -> int:
    """Estimate the input tokens of a call, including those that mark its messages."""
    return sum(estimate(message.content) + _TOKENS_PER_MESSAGE for message in call.messages)


def encoder_for(model: str | None = None) -> Encoder:
    """Return the most exact encoder available for a model; loading a vocabulary may take a second, once."""
    name = _vocabulary_of(model or "gpt-5")
    if name is None:
        return _ESTIMATE
    return _toktok(name) or _tiktoken(name) or _ESTIMATE


def is_exact(model: str | None = None) -> bool:
    """Return True if texts are counted with the model's own vocabulary, not estimated."""
    return encoder_for(model) is not _ESTIMATE


class Counter:
    """Fast counter for the many calls of a run, calibrated per model by the usage that endpoints report.

    An estimate is multiplied by the ratio of reported to estimated tokens of the model; older reports weigh less. A
    model without reports is counted by `estimate`, or exactly if toktok-rs has its vocabulary.
    """

    def __init__(self, encoders: Mapping[str, Encoder] | None = None) -> None:
        self._encoders = dict(encoders or {})
        self._sums: dict[str, tuple[float, float]] = {}

    def count(self, text: str, model: str) -> int:
        """Estimate the tokens of the text for the model."""
        return round(self._uncalibrated(text, model) * self.factor(model))

    def count_call(self, call: Call) -> int:
        """Estimate the input tokens of the call, including the tokens that mark its messages."""
        texts = sum(self._uncalibrated(message.content, call.model) for message in call.messages)
        return round(texts * self.factor(call.model)) + _TOKENS_PER_MESSAGE * len(call.messages)

    def observe(self, model: str, text: str, tokens: int) -> None:
        """Calibrate by a provider's count of a text.

        A report below a quarter or above four times of the estimate is not believed: it says more of the endpoint,
        such as a prompt that was cut, than of the text. Short texts are ignored.
        """
        self._learn(model, self._uncalibrated(text, model), tokens)

    def observe_call(self, call: Call, usage: Usage) -> None:
        """Calibrate by the usage that was reported for a call; estimated usage is ignored."""
        if not usage.estimated:
            texts = sum(self._uncalibrated(message.content, call.model) for message in call.messages)
            self._learn(call.model, texts, usage.input_tokens - _TOKENS_PER_MESSAGE * len(call.messages))

    def factor(self, model: str) -> float:
        """Return the ratio of reported to estimated tokens; 1.0 for a model without reports."""
        estimated, reported = self._sums.get(model, (0.0, 0.0))
        return (reported + _PRIOR_TOKENS) / (estimated + _PRIOR_TOKENS)

    def _learn(self, model: str, estimated: int, reported: int) -> None:
        if estimated < _SHORTEST_REPORT or not 1 / _DISBELIEF <= reported / estimated <= _DISBELIEF:
            return
        old_estimated, old_reported = self._sums.get(model, (0.0, 0.0))
        keep = min(1.0, _MEMORY_TOKENS / (old_estimated + 1))
        self._sums[model] = (old_estimated * keep + estimated, old_reported * keep + reported)

    def _uncalibrated(self, text: str, model: str) -> int:
        if model in self._encoders:
            return self._encoders[model].count(text)
        name = _vocabulary_of(model)
        return ((_toktok(name) if name else None) or _ESTIMATE).count(text)


_TOKENS_PER_MESSAGE = 4  # role and borders, in OpenAI's chat format
_SHORTEST_REPORT = 100
_DISBELIEF = 4
_PRIOR_TOKENS = 200.0
_MEMORY_TOKENS = 1_000_000.0


# --- The estimate -------------------------------------------------------------------------------------------------

# Tokens per byte of each kind, fitted to o200k on 25 MB of text in 90 languages, code, markup and tables. A character
# outside ASCII is classified by its first byte in UTF-8, which depends on its script; its other bytes weigh 0.
_WEIGHTS: tuple[tuple[float, Iterable[int]], ...] = (
    (0.180, range(0x61, 0x7B)),  # a to z
    (0.635, range(0x41, 0x5B)),  # A to Z
    (0.700, range(0x30, 0x3A)),  # digits
    (0.010, b" "),
    (0.500, b"\t\n\r"),
    (0.380, [byte for byte in range(0x80) if not chr(byte).isalnum() and byte not in b" \t\n\r"]),
    (1.000, range(0xC2, 0xCC)),  # Latin with accents
    (0.500, range(0xCC, 0xCE)),  # accents alone
    (0.459, range(0xCE, 0xD0)),  # Greek
    (0.370, range(0xD0, 0xD4)),  # Cyrillic
    (0.544, range(0xD4, 0xD8)),  # Armenian, Hebrew
    (0.490, range(0xD8, 0xE0)),  # Arabic
    (0.509, (0xE0,)),  # India, Thailand
    (0.486, (0xE1,)),  # Georgia, Ethiopia, Vietnam
    (0.907, (0xE2,)),  # signs
    (0.700, (0xE3,)),  # kana
    (1.028, range(0xE4, 0xEA)),  # Chinese characters
    (0.817, range(0xEA, 0xEE)),  # Hangul
    (0.700, range(0xEE, 0xF0)),  # full-width forms
    (3.000, range(0xF0, 0x100)),  # emoji and rare characters
)
_IGNORED = 0xFF
_LETTER_AFTER_SIGN, _LETTER_AFTER_DIGIT, _LETTER_AFTER_SPACE, _TWO_SIGNS = b"SL", b"DL", b" L", b"SS"


def _kinds() -> bytes:
    table = bytearray([_IGNORED]) * 256
    for kind, (_, members) in enumerate(_WEIGHTS):
        for byte in members:
            table[byte] = kind
    return bytes(table)


def _shapes() -> bytes:
    table = bytearray(b"?") * 256
    for byte in range(0x80):
        character = chr(byte)
        table[byte] = ord(
            "L" if character.isalpha() else "D" if character.isdigit() else " " if byte in b" \t\n\r" else "S"
        )
    return bytes(table)


class _Estimate:
    """Encoder that estimates; every step is one pass in C."""

    def __init__(self) -> None:
        self._kinds = _kinds()
        self._shapes = _shapes()

    def count(self, text: str) -> int:
        tokens = sum(
            self._tokens(text[start : start + _PIECE].encode("utf-8", "surrogatepass"))
            for start in range(0, len(text), _PIECE)
        )
        return max(round(tokens), 1) if text else 0

    def _tokens(self, data: bytes) -> float:
        kinds = data.translate(self._kinds)
        shapes = data.translate(self._shapes)
        by_kind = sum(weight * kinds.count(kind) for kind, (weight, _) in enumerate(_WEIGHTS))
        glued = shapes.count(_LETTER_AFTER_SIGN) + shapes.count(_LETTER_AFTER_DIGIT)
        return max(
            by_kind
            + 0.743 * glued
            + 0.524 * shapes.count(_LETTER_AFTER_SPACE)
            - 0.303 * shapes.count(_TWO_SIGNS)
            # Vocabularies hold more English than anything else; this word is a sign of English.
            - 3.0 * data.count(b" the "),
            len(data) / 64,
        )


_PIECE = 1 << 20
_ESTIMATE = _Estimate()


# --- Vocabularies -------------------------------------------------------------------------------------------------

_VOCABULARIES = (
    ("gpt-oss", "o200k_harmony"),
    *((prefix, "o200k_base") for prefix in ("gpt-5", "gpt-4o", "gpt-4.1", "gpt-4.5", "chatgpt-4o", "o1", "o3", "o4")),
    *((prefix, "cl100k_base") for prefix in ("gpt-4", "gpt-3.5", "gpt-35", "text-embedding-3")),
    ("qwen3.5", "qwen3.5"),
)  # fmt: skip

# As in tiktoken_ext/openai_public.py; a file that is not this would make tiktoken download it again.
_TIKTOKEN_FILES = {
    "o200k_base": (
        "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": (
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}
_TIKTOKEN_FILES["o200k_harmony"] = _TIKTOKEN_FILES["o200k_base"]


@lru_cache(maxsize=256)
def _vocabulary_of(model: str) -> str | None:
    """Return the name of a model's vocabulary; prefixes for a provider or a fine-tune are ignored."""
    name = model.lower().rpartition("/")[2].removeprefix("ft:")
    return next((vocabulary for prefix, vocabulary in _VOCABULARIES if name.startswith(prefix)), None)


@cache
def _toktok(name: str) -> Encoder | None:
    try:
        toktok = import_module("toktok")
    except ImportError:
        return None
    if not hasattr(toktok, "batch_count"):
        return None  # another package has this name too
    try:
        toktok.batch_count([""], name)
    except (KeyError, TypeError):
        return None
    return _Toktok(toktok, name)


class _Toktok:
    def __init__(self, toktok: Any, name: str) -> None:
        self._toktok = toktok
        self._name = name

    def count(self, text: str) -> int:
        return int(self._toktok.batch_count([_encodable(text)], self._name)[0])


def _tiktoken(name: str) -> Encoder | None:
    path = cached_vocabulary(name)
    return _load_tiktoken(name, path) if path and path.is_file() else None


def cached_vocabulary(name: str) -> Path | None:
    """Return the path where tiktoken looks for a vocabulary before it downloads it, or None if its cache is off."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if name not in _TIKTOKEN_FILES or folder == "":
        return None
    url, _ = _TIKTOKEN_FILES[name]
    key = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    return Path(folder or Path(tempfile.gettempdir(), "data-gym-cache")) / key


@cache
def _load_tiktoken(name: str, path: Path) -> Encoder | None:
    if hashlib.sha256(path.read_bytes()).hexdigest() != _TIKTOKEN_FILES[name][1]:
        return None
    import tiktoken

    return _Tiktoken(tiktoken.get_encoding(name))


class _Tiktoken:
    """Encoder by tiktoken: exact up to a few million characters; longer texts are sampled, because it is slow."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    def count(self, text: str) -> int:
        if len(text) <= _EXACT_CHARACTERS:
            return sum(self._exactly(piece) for piece in _pieces(text))
        stride = len(text) // _SAMPLES
        samples = [text[start : start + _SAMPLE] for start in range(0, stride * _SAMPLES, stride)]
        exact = sum(self._exactly(sample) for sample in samples)
        return round(_ESTIMATE.count(text) * exact / sum(_ESTIMATE.count(sample) for sample in samples))

    def _exactly(self, text: str) -> int:
        return len(self._encoding.encode_ordinary(_encodable(text)))


_EXACT_CHARACTERS = 4_000_000
_SAMPLES = 100
_SAMPLE = 20_000
_TIKTOKEN_PIECE = 100_000


def _pieces(text: str) -> Iterator[str]:
    """Split the text before spaces where possible: no token crosses such a border."""
    start = 0
    while start < len(text):
        end = start + _TIKTOKEN_PIECE
        if end < len(text):
            space = text.rfind(" ", end - 1_000, end)
            end = space if space > start else end
        yield text[start:end]
        start = end


def _encodable(text: str) -> str:
    """Return the text with lone surrogates replaced, which tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
