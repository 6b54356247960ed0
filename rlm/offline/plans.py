"""Plans of the offline client: the cells that answer a question by counting, listing or searching.

A `Plan` holds the cells and the values assigned at their tops. Verbs of a question about the text itself (`occur`,
`mention`) select counting and listing; every other question is searched for.
"""

# ruff: noqa: RUF001 - quotation marks of several languages are what it reads and writes
from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlm.offline.language import key_terms

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CELLS", "Plan", "Step", "caveat_for", "plan_for"]

CELLS = ("look", "search", "combine", "count", "places", "ask")
"""Names of the files in `cells/` that a plan may use."""


@dataclass(frozen=True, slots=True)
class Step:
    """One cell and the sentence before it; `values` names the variables assigned at its top."""

    cell: str
    says: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps that answer a question, and the values of the variables of their cells."""

    steps: tuple[Step, ...]
    values: Mapping[str, object] = field(default_factory=dict)


def plan_for(question: str) -> Plan:
    """Return the plan for a question: counting, listing or else searching. Reads the first 2,000 characters."""
    if len(question) > _LONGEST_READ:
        question = question[:_LONGEST_READ].rpartition(" ")[0] or question[:_LONGEST_READ]
    caveat = caveat_for(question)
    if not question or _IN_CONTEXT in question:
        return Plan((_LOOK, _ASK))
    if wanted := _wanted_count(question):
        step = Step("count", f"“{wanted}” can be counted by code.", ("WANTED", "CAVEAT"))
        return Plan((_LOOK, step), {"WANTED": wanted, "CAVEAT": caveat})
    if listing := _wanted_list(question):
        unit, wanted = listing
        step = Step("places", f"Listing {unit}s needs no reading, only code.", ("UNIT", "WANTED", "CAVEAT"))
        return Plan((_LOOK, step), {"UNIT": unit, "WANTED": wanted, "CAVEAT": caveat})
    terms = key_terms(question)[:_MOST_TERMS]
    values = {
        "QUESTION": question,
        "TERMS": {term.word: term.stem for term in terms},
        "KINDS": [term.word for term in terms if term.is_kind],
        "CAVEAT": caveat,
    }
    return Plan((_LOOK, _SEARCH, _COMBINE), values)


def caveat_for(question: str) -> str:
    """Return a sentence that names what only a language model could answer about the question, or ''."""
    for pattern, what in _BEYOND:
        if pattern.search(question):
            return f"This question asks for {what}, which needs a language model; these are only quotes."
    return ""


_LONGEST_READ = 2_000
_MOST_TERMS = 40

_IN_CONTEXT = "that the context itself contains"
_ASK = Step("ask", "I was asked no question of its own; a sub-call looks for one in the context.")
_LOOK = Step("look", "I use no language model. First I look at the context.")
_SEARCH = Step(
    "search",
    "Now I search: the pieces with the rarest terms of the question go to sub-calls.",
    ("QUESTION", "TERMS", "KINDS"),
)
_COMBINE = Step(
    "combine", "The replies give positions. I take the quotes from the text itself and answer.", ("CAVEAT",)
)

_ASKED_TO = r"(?:^|[.?!:,]\s+|\b(?:you|please|to)\s+)"
_BEYOND = tuple(
    (re.compile(pattern, re.IGNORECASE), what)
    for pattern, what in (
        (r"\b(?:why|how come|pourquoi|warum|weshalb)\b|为什么", "a reason"),
        (r"\b(?:compare|comparison|differences?|differ|versus|vs|better|worse|similarit\w+|in common)\b", "a comparison"),
        (r"\b(?:summar\w+|overview|gist|tl;?dr|main (?:idea|point|theme|topic|argument)s?|in short|key points?|résume\w*|zusammenfass\w*|fasse)\b", "a summary"),
        (r"\bhow many (?:different|distinct|unique|other|kinds|types|sorts|people|persons|names|places)\b|\b(?:distinct|unique)\b", "a count of distinct things"),
        (r"\b(?:list|name|which|what|who) (?:are )?(?:all )?(?:of )?(?:the )?(?:people|persons|characters|companies|organi[sz]ations|places|cities|countries|names)\b", "things of a kind (people, places, …)"),
        (rf"{_ASKED_TO}(?:translate|rewrite|rephrase|paraphrase|write|draft|compose)\b", "a text to be written"),
        (r"\b(?:sentiment|opinion|should (?:i|we|you|one)|recommend|evaluate|assess|judge|classify|imply|implies|infer|conclude|prove|likely|probably)\b", "a judgement"),
        (rf"{_ASKED_TO}(?:explain|describe|discuss|analy[sz]e|interpret)\b", "an explanation in other words"),
    )
)  # fmt: skip

_COUNTS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        (
            r"\b(?:how (?:many times|often)|where) (?:do|does|did|is|are|was|were|has|have) (?P<what>.+?) (?:been )?"
            r"(?:occur|appear|mentioned|used|come up|repeated)\b"
        ),
        r"\bhow (?:many times|often) (?:do|does|did) (?:it|they|the \w+|this \w+) (?:mention|use|say|contain) (?P<what>.+)",
        r"\b(?:how many|count|number of)(?: all)?(?: the)?(?: number of)? (?:occurrences|mentions|instances) of (?P<what>.+)",
        r"\b(?:count|number of)(?: the)?(?: number of)? times(?: that)? (?P<what>.+?) (?:occurs?|appears?|is mentioned|is used)\b",
        r"\bcount (?:the )?(?:word|term|phrase|name)s? (?P<what>.+)",
    )
)
_QUOTED = re.compile(r"[\"“„«`‘']([^\"”“»`’']+)[\"”“»`’']")
_TRAILING = re.compile(
    r"(?:\s+(?:are there|there are|anywhere|here|in (?:it|them|(?:the|this) (?:text|document|book|file|context|passage))))*"
    r"[?.!\s]*$",
    re.IGNORECASE,
)
_WORDY = re.compile(r"^(?:the\s+)?(?:(?:word|term|phrase|name|string|expression)s?\s+)?", re.IGNORECASE)

_UNITS = {
    "heading": "heading", "title": "heading", "chapter": "section", "section": "section", "document": "document",
    "file": "document", "text": "document", "message": "document", "item": "document", "line": "line", "paragraph": "paragraph",
}  # fmt: skip
_LIST = re.compile(
    r"\b(?P<ask>list|count|enumerate|show|give me|which|what|how many)\b(?:\s+(?:me|all|of|the|are|is))*\s+"
    r"(?P<units>(?:section|chapter)?\s*(?:headings?|titles?)|chapters?|sections?|documents?|files?|texts?|messages?|items?|lines?|paragraphs?)\b"
    r"(?P<filter>.*?)[?.!]*\s*$",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"^\s*(?P<title>(?:whose|with|where)\s+(?:a\s+|the\s+)?(?:titles?|headings?|names?)?\s*)?(?:(?:that|which|do|does)\s+)?"
    r"(?:(?:mention|contain|include|use|have|has|with|containing|mentioning|including)s?)\s+(?P<what>.+)$"
    r"|^\s*(?:is|are|does|do|has|have)\s+(?P<whom>.+?)\s+(?:been\s+)?(?:occur|appear|mentioned|used|named)\w*$",
    re.IGNORECASE,
)
_NO_FILTER = re.compile(
    r"^\s*(?:(?:are|is)\s+there\b.*|(?:does|do|has)\s+.*\b(?:have|contain|include|got)|(?:in|of) (?:the|this) .*|of .*)?$",
    re.IGNORECASE,
)


def _wanted_count(question: str) -> str:
    found = next((found for pattern in _COUNTS if (found := pattern.search(question))), None)
    return _phrase(found["what"]) if found else ""


def _wanted_list(question: str) -> tuple[str, str] | None:
    found = _LIST.search(question)
    if not found:
        return None
    noun = found["units"].split()[-1].lower()
    unit = _UNITS[noun.removesuffix("s")]
    if narrowed := _FILTER.match(found["filter"]):
        if narrowed["title"] and unit == "section":
            unit = "heading"
        return unit, _phrase(narrowed["what"] or narrowed["whom"])
    if found["ask"].lower() != "which" and _NO_FILTER.match(found["filter"]):
        return ("heading" if unit == "section" else unit), ""
    return None


def _phrase(words: str) -> str:
    if quoted := _QUOTED.search(words):
        return quoted[1].strip()
    return _WORDY.sub("", _TRAILING.sub("", words)).strip()
