"""The offline client as a sub-model: it ranks the sentences of a passage and quotes the best.

Prompts of the search cell are answered with lines of positions and scores, which the combine cell parses. In any
other prompt, labels, question marks and blank lines separate question and passage, and the answer is the best
sentence, verbatim.
"""

# ruff: noqa: RUF001 - quotation marks of several languages are what it reads and writes
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm.offline.language import key_terms, lowered, matcher, may_use, sentence_spans
from rlm.offline.plans import caveat_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlm.offline.language import KeyTerm

__all__ = ["NO_MODEL", "Quote", "rank", "split_prompt", "sub_reply"]

NO_MODEL = "No language model was used"
"""Part of every answer of the offline client."""


def sub_reply(prompt: str) -> str:
    """Quote from a passage: in lines for the combine cell, or in words for any other prompt."""
    if own := _OWN_PROMPT.match(prompt):
        weights = {word: float(weight) for word, weight in _WEIGHT.findall(own["terms"])}
        found = rank(own["question"], weights, own["passage"])
        offset = int(own["offset"])
        lines = [
            f"[{offset + quote.start}:{offset + quote.end}] has {', '.join(quote.has)}; "
            f"covers {quote.covers:.2f}, rank {quote.rank:.2f}"
            for quote in found[:3]
            if quote.covers >= _WORTH_SHOWING
        ]
        return "\n".join(lines) or "NOT FOUND"
    return _quote_in_words(prompt)


@dataclass(frozen=True, slots=True)
class Quote:
    """Sentence of a passage.

    Attributes:
        start, end: its position in the passage, in characters.
        has: the key terms that it or a neighbour uses.
        covers: the weight of these terms as a share of the weight of all terms.
        rank: `covers` with bonuses and penalties; the higher, the better.
    """

    start: int
    end: int
    has: tuple[str, ...]
    covers: float
    rank: float


def rank(question: str, weights: Mapping[str, float], passage: str) -> list[Quote]:
    """Return the sentences of a passage that use a key term, the best first.

    A term counts in full if the sentence uses it, and in part if a neighbour does. Ties are decided by the kind of
    thing asked for (a number, a name) and by length.
    """
    small = lowered(passage)
    terms = [term for term in key_terms(question) if term.word in weights]
    total = sum(weights.values()) or 1.0
    spans = sentence_spans(passage)
    shares = [_shares(terms, small[start:end]) for start, end in spans]
    cue = next((cue for asks, cue in _CUES if asks.search(question)), None)
    is_definition = _DEFINES.search(question) is not None
    quotes = []
    for index, (start, end) in enumerate(spans):
        if not shares[index]:
            continue
        around = shares[max(0, index - 1) : index + 2]
        near = list(dict.fromkeys(word for share in around for word in share if word not in shares[index]))
        here = sum(weights[word] * share for word, share in shares[index].items())
        covers = (here + _NEIGHBOUR * sum(weights[word] for word in near)) / total
        quote = passage[start:end]
        bonus = _BONUS * bool(cue and cue.search(quote))
        if is_definition:
            bonus += 2 * _BONUS * _defines(quote, terms) or _BONUS * _opens_with(quote, terms)
        penalty = min(_BONUS, len(quote) / 4_000) + 2 * _BONUS * (_is_table(quote) or _is_heading(quote))
        quotes.append(Quote(start, end, (*shares[index], *near), covers, covers + bonus - penalty))
    return sorted(quotes, key=lambda quote: -quote.rank)


def split_prompt(prompt: str) -> tuple[str, str]:
    """Split a free-form prompt into question and passage, by labels, question marks and blank lines."""
    question, passage = _split_by_label(prompt) or _split_by_form(prompt.strip())
    if instruction := _INSTRUCTION.match(passage):
        passage = passage[instruction.end() :]
    return question, passage


def _split_by_label(prompt: str) -> tuple[str, str] | None:
    label = _PASSAGE_LABEL.search(prompt)
    if not label:
        question = _QUESTION_LABEL.search(prompt)
        if not question:
            return None
        rest = prompt[: question.start()].strip() or prompt[question.end() :].strip()
        return question["text"].strip(), rest
    before, passage = prompt[: label.start()], prompt[label.end() :]
    if question := _QUESTION_LABEL.search(before):
        return question["text"].strip(), passage.strip()
    if question := _last_match(_QUESTION_LABEL, passage):
        return question["text"].strip(), passage[: question.start()].strip()
    if before.strip():
        return before.strip(), passage.strip()
    return None


def _split_by_form(prompt: str) -> tuple[str, str]:
    first, _, rest = prompt.partition("\n")
    body, _, last = prompt.rpartition("\n")
    if _is_question(first) and rest.strip():
        return first.strip(), rest.strip()
    if _is_question(last) and body.strip():
        return last.strip(), body.strip()
    if (asked := _LEADING_QUESTION.match(prompt)) and prompt[asked.end() :].strip():
        return asked[0].strip(), prompt[asked.end() :].strip()
    head, _, tail = prompt.partition("\n\n")
    if tail.strip() and len(head) < _LONGEST_QUESTION:
        return head.strip(), tail.strip()
    if rest.strip() and len(first) < _LONGEST_QUESTION:
        return first.strip(), rest.strip()
    return prompt, ""


def _is_question(line: str) -> bool:
    return line.rstrip().endswith(("?", "？")) and len(line) < _LONGEST_QUESTION


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(pattern.finditer(text), key=re.Match.start, default=None)


def _quote_in_words(prompt: str) -> str:
    question, passage = split_prompt(prompt)
    if not passage:
        return (
            f"{NO_MODEL}: I can only quote from text in the prompt, and I see no text besides the question."
        )
    terms = key_terms(question)
    small = lowered(passage)
    missing = [term.word for term in terms if not matcher(term.stem).search(small)]
    weights = {term.word: _KIND_WEIGHT if term.is_kind else 1.0 for term in terms}
    quotes = rank(question, weights, passage)
    caveat = caveat_for(question)
    if not quotes or quotes[0].covers < _ENOUGH:
        unused = f" The passage never uses: {', '.join(missing)}." if missing else ""
        return f"NOT FOUND\n({NO_MODEL}.{unused} {caveat}".rstrip() + ")"
    best = quotes[0]
    source = (
        f"({NO_MODEL}: quoted from characters {best.start}–{best.end} of the passage. {caveat}".rstrip() + ")"
    )
    return f"{passage[best.start : best.end]}\n{source}"


def _shares(terms: Sequence[KeyTerm], sentence: str) -> dict[str, float]:
    """Return the key terms of a lower-case sentence: 1.0 for the form in the question, less for another form."""
    found = {}
    for term in terms:
        if may_use(term.stem, sentence) and (form := matcher(term.stem).findall(sentence)):
            found[term.word] = 1.0 if lowered(term.word) in form else _INFLECTED
    return found


def _opens_with(quote: str, terms: Sequence[KeyTerm]) -> bool:
    opening = _OPENING.match(quote)
    return opening is not None and any(lowered(opening[1]) == lowered(term.word) for term in terms)


def _defines(quote: str, terms: Sequence[KeyTerm]) -> bool:
    """Return True if a sentence defines one of the terms, as contracts do: `Ms Novak ("the Tenant")`."""
    return any(
        lowered(named[1] or named[2]) == lowered(term.word)
        for named in _NAMED.finditer(quote)
        for term in terms
    )


def _is_table(quote: str) -> bool:
    return len(_WIDE_GAP.findall(quote)) * 6 > len(quote.split())


def _is_heading(quote: str) -> bool:
    return len(quote) < _LONGEST_HEADING and "\n" not in quote and quote[-1] not in ".!?…。:;\"”’')]"


_LONGEST_QUESTION = 600
_LONGEST_HEADING = 80
_NEIGHBOUR = 0.6
_KIND_WEIGHT = 0.4
_INFLECTED = 0.85
_BONUS = 0.1
_ENOUGH = 0.6
_WORTH_SHOWING = 0.3

_OWN_PROMPT = re.compile(
    r"Quote the sentences of the passage[^\n]*\nQuestion: (?P<question>.*?)\nKey terms, rarest first: (?P<terms>[^\n]*)\n"
    r"Passage from character (?P<offset>\d+):\n(?P<passage>.*)",
    re.DOTALL,
)
_WEIGHT = re.compile(r"(\S+) ([\d.]+)(?:, |$)")

_LEADING_QUESTION = re.compile(r"[^?\n]{3,300}\?(?=\s)")
_INSTRUCTION = re.compile(
    r"(?:reply|answer|respond|quote|return|give|output|say|use|if|only|be)\b[^\n]{0,300}\n\s*\n",
    re.IGNORECASE,
)
_PASSAGE_LABEL = re.compile(
    r"^(?:context|passage|text|document|article|excerpt|chunk)\s*\d*:[ \t]*\n?", re.MULTILINE | re.IGNORECASE
)
_QUESTION_LABEL = re.compile(
    r"^(?:question|query|q|task)\s*:[ \t]*\n?(?P<text>\S[\s\S]*?)(?=\n\s*\n|\Z)", re.MULTILINE | re.IGNORECASE
)

_DEFINES = re.compile(
    r"\b(?:what (?:is|are|was|were|does|do|did|happens?)|who (?:is|are)|define|definition|meaning|was ist|qu.est-ce)\b",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"\((?:[^()\"“]{0,40}[\s])?[\"“](?:the\s+)?(\w+)[\"”]\)|[\"“](\w+)[\"”]\s+means\b", re.IGNORECASE
)
_OPENING = re.compile(r"[\W_]*(?:(?:the|a|an)\s+)?[\W_]*(\w+)", re.IGNORECASE)
_WIDE_GAP = re.compile(r"\S[ \t]{2,}\S")
_NUMBER = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty|thirty|forty|fifty|sixty"
    r"|seventy|eighty|ninety|hundred|thousand|million|once|twice|first)\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z]\w+")
_CUES = (
    (
        re.compile(
            r"\b(?:how (?:many|much|old|long|tall|far|big|high|large|heavy|often)|when|which year|what year|combien|wie viele?)\b",
            re.IGNORECASE,
        ),
        _NUMBER,
    ),
    (
        re.compile(
            r"\b(?:who|whom|whose|where|which (?:city|country|place|mountains?|person|king|man|woman)|wer|wo|qui|où)\b",
            re.IGNORECASE,
        ),
        _NAME,
    ),
)
