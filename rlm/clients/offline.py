"""A client without a language model: it answers by rules, with quotes, and says so.

It is asked through the same machine as a model, so that a whole run works with no key and no network. As the
root model it writes cells: look, search, combine; or look and count; or look and list. As a sub-model it ranks the
sentences of the passage it is given and quotes the best by their positions. The cells are the files of
`offline_cells/`, sent as they stand below a few assignments.

An answer holds what the text says, verbatim, with its position as an expression: `context[120:187]` is the quote.
It is NOT FOUND where the words of the question do not stand together in the text. There is no inference, summary,
comparison, translation or counting of distinct things; an answer to a question that wants one says that too.

The client is stateless: what to do next is read from the dialogue alone, so one object serves any number of runs.
"""

# ruff: noqa: RUF001 - quotation marks of several languages are what it reads and writes
from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import anyio.to_thread

from rlm.clients.offline_words import key_terms, lowered, matcher, sentence_spans
from rlm.values import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlm.clients.offline_words import KeyTerm
    from rlm.values import Call, Message

__all__ = ["NO_MODEL", "OfflineClient"]

NO_MODEL = "No language model was used"
"""Stands in every answer of this client."""


class OfflineClient:
    """Answers calls with no language model: as root by writing cells, as sub-model by quoting the prompt."""

    model = "offline"

    def __init__(self) -> None:
        """Read the cells, so that answering touches no file."""
        for name in ("look", "search", "combine", "count", "places", "ask"):
            _cell_text(name)

    async def complete(self, call: Call) -> Reply:
        """Answer one call; never fails. A long prompt is read in a thread, because reading it takes a while."""
        if call.role == "root":
            text = root_reply(call.messages)
        else:
            prompt = call.messages[-1].content if call.messages else ""
            if len(prompt) > _LONG_PROMPT:
                text = await anyio.to_thread.run_sync(sub_reply, prompt, abandon_on_cancel=True)
            else:
                text = sub_reply(prompt)
        return Reply(text=text, model=self.model, usage=Usage(calls=1), cost_usd=0.0)


# --- The root role --------------------------------------------------------------------------------------------


def root_reply(messages: Sequence[Message]) -> str:
    """What to do next in a root dialogue: a sentence and the next cell, or several when replies run out."""
    dialogue = read_dialogue(messages)
    if dialogue.failures > 1:
        return _give_up(dialogue.last_failure)
    plan = plan_for(dialogue.question)
    start = _next_step(dialogue, plan)
    is_enough = dialogue.replies_left >= len(plan.steps) - start
    steps = plan.steps[start : start + 1] if is_enough else plan.steps[start:]
    return "\n\n".join(_show_step(step, plan) for step in steps)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a root dialogue says of where it stands.

    Attributes:
        question: the latest question.
        is_first: whether it is the first of its session.
        replies: what was replied to it so far.
        failures: how many of these replies had a cell that failed.
        has_just_failed: whether the last one did.
        last_failure: the error of the latest cell that failed, or ''.
        replies_left: how many replies the run still allows.
    """

    question: str
    is_first: bool
    replies: tuple[str, ...]
    failures: int
    has_just_failed: bool
    last_failure: str
    replies_left: int


def read_dialogue(messages: Sequence[Message]) -> Dialogue:
    """Read the state of a run off its messages; the one place that knows the form of the runtime's prompts."""
    question, asked_at = "", -1
    for index, message in enumerate(messages):
        # Only the first message opens with `Question:`; in a later one it is something that a cell printed.
        pattern = _FIRST_QUESTION if asked_at < 0 else _NEXT_QUESTION
        if message.role == "user" and (found := pattern.search(message.content)):
            question, asked_at = _without_context(found["text"]), index
    is_first = not any(message.role == "assistant" for message in messages[: asked_at + 1])
    since = messages[asked_at + 1 :]
    replies = tuple(message.content for message in since if message.role == "assistant")
    outcomes = [_FAILURE.search(message.content) for message in since if message.role == "user"]
    failures = [found[0] for found in outcomes if found]
    limit = next((_LIMIT.search(message.content) for message in messages if message.role == "system"), None)
    return Dialogue(
        question=question,
        is_first=is_first,
        replies=replies,
        failures=len(failures),
        has_just_failed=bool(outcomes and outcomes[-1]),
        last_failure=failures[-1] if failures else "",
        replies_left=(int(limit[1].replace(",", "")) if limit else _USUAL_LIMIT) - len(replies),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """One cell and the sentence before it; `values` names what is assigned at its top."""

    cell: str
    says: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps that answer a question, and the values their cells need."""

    steps: tuple[Step, ...]
    values: Mapping[str, object] = field(default_factory=dict)


def plan_for(question: str) -> Plan:
    """Choose how to answer: by counting, by listing, or, for all else, by searching. Reads 2,000 characters."""
    question = question[:_LONGEST_READ]
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
    """What this question wants that only a language model could do, as a sentence, or ''."""
    for pattern, what in _BEYOND:
        if pattern.search(question):
            return f"This question asks for {what}, which needs a language model; these are only quotes."
    return ""


# --- The sub role ---------------------------------------------------------------------------------------------


def sub_reply(prompt: str) -> str:
    """Quote from a passage: in the line format of our own root role, or in words for any other prompt."""
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
    """A sentence of a passage: where it stands, its terms, the share of all terms' weight these are, its rank."""

    start: int
    end: int
    has: tuple[str, ...]
    covers: float
    rank: float


def rank(question: str, weights: Mapping[str, float], passage: str) -> list[Quote]:
    """The sentences of a passage that use a key term, the best first.

    A term counts in full where the sentence has it and in part where a neighbour has it. What breaks the ties is
    whether the sentence holds the kind of thing that is asked for (a number, a name), and its length.
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
        near = [
            word
            for share in shares[max(0, index - 1) : index + 2]
            for word in share
            if word not in shares[index]
        ]
        near = list(dict.fromkeys(near))
        here = sum(weights[word] * share for word, share in shares[index].items())
        covers = (here + _NEIGHBOUR * sum(weights[word] for word in near)) / total
        quote = passage[start:end]
        bonus = _BONUS * bool(cue and cue.search(quote)) + _BONUS * (
            is_definition and _opens_with(quote, terms)
        )
        penalty = min(_BONUS, len(quote) / 4_000) + 2 * _BONUS * (_is_table(quote) or _is_heading(quote))
        quotes.append(Quote(start, end, (*shares[index], *near), covers, covers + bonus - penalty))
    return sorted(quotes, key=lambda quote: -quote.rank)


def _shares(terms: Sequence[KeyTerm], sentence: str) -> dict[str, float]:
    """The key terms that a lowered sentence has: 1.0 as in the question, less in another form."""
    found = {}
    for term in terms:
        if term.stem.removesuffix("y") in sentence and (form := matcher(term.stem).findall(sentence)):
            found[term.word] = 1.0 if lowered(term.word) in form else _INFLECTED
    return found


def _opens_with(quote: str, terms: Sequence[KeyTerm]) -> bool:
    opening = _OPENING.match(quote)
    return opening is not None and any(lowered(opening[1]) == lowered(term.word) for term in terms)


def _is_table(quote: str) -> bool:
    return len(_WIDE_GAP.findall(quote)) * 6 > len(quote.split())


def _is_heading(quote: str) -> bool:
    return len(quote) < _LONGEST_HEADING and "\n" not in quote and quote[-1] not in ".!?…。:;\"”’')]"


def _quote_in_words(prompt: str) -> str:
    question, passage = split_prompt(prompt)
    if not passage:
        return f"{NO_MODEL}: I can only quote from text that stands in the prompt, and I see no text besides the question."
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


def split_prompt(prompt: str) -> tuple[str, str]:
    """The question and the passage of a prompt that somebody wrote, by labels, question marks and blank lines."""
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


# --- Details --------------------------------------------------------------------------------------------------

_LONG_PROMPT = 50_000
_LONGEST_QUESTION = 600
_LONGEST_READ = 2_000
_MOST_TERMS = 40
_USUAL_LIMIT = 20
_LONGEST_HEADING = 80
_NEIGHBOUR = 0.6
_KIND_WEIGHT = 0.4
_INFLECTED = 0.85
_BONUS = 0.1
_ENOUGH = 0.6
_WORTH_SHOWING = 0.3

_IN_CONTEXT = "that the context itself contains"
_ASK = Step("ask", "I was asked no question of its own; a sub-call looks for one in the context.")
_LOOK = Step("look", "I use no language model. First I look at what there is.")
_SEARCH = Step(
    "search",
    "Now I search: the pieces with the rarest terms of the question go to sub-calls.",
    ("QUESTION", "TERMS", "KINDS"),
)
_COMBINE = Step(
    "combine", "The replies give positions. I take the quotes from the text itself and answer.", ("CAVEAT",)
)

_FIRST_QUESTION = re.compile(r"^Question:[ \t]*\n?(?P<text>.*)", re.MULTILINE | re.DOTALL)
_NEXT_QUESTION = re.compile(r"^New question:[ \t]*\n?(?P<text>.*)", re.MULTILINE | re.DOTALL)
_FAILURE = re.compile(r"^(?:Error:\n[\s\S]+|\[The cell (?:was stopped|ended|crashed)[^\n]*)", re.MULTILINE)
_LIMIT = re.compile(r"([\d,]+) repl(?:y|ies) for a question")

_OWN_PROMPT = re.compile(
    r"Quote the sentences of the passage[^\n]*\nQuestion: (?P<question>.*?)\nKey terms, rarest first: (?P<terms>[^\n]*)\n"
    r"Passage from character (?P<offset>\d+):\n(?P<passage>.*)",
    re.DOTALL,
)
_DEFINES = re.compile(
    r"\b(?:what (?:is|are|was|were|does|do|did|happens?)|define|definition|meaning|was ist|qu.est-ce)\b",
    re.IGNORECASE,
)
_OPENING = re.compile(r"[\W_]*(?:(?:the|a|an)\s+)?[\W_]*(\w+)", re.IGNORECASE)
_WIDE_GAP = re.compile(r"\S[ \t]{2,}\S")
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


def _without_context(text: str) -> str:
    head, mark, _ = text.rpartition("\nContext:\n")
    return (head if mark else text).strip()


def _show_step(step: Step, plan: Plan) -> str:
    header = "".join(f"{name} = {_literal(plan.values[name])}\n" for name in step.values)
    cell = _cell_text(step.cell)
    return f"{step.says}\n\n```repl\n{header}{cell}```"


def _next_step(dialogue: Dialogue, plan: Plan) -> int:
    if dialogue.has_just_failed:
        return 0  # the variables may be gone: start again with a look
    if not dialogue.replies:
        return 0 if dialogue.is_first else 1
    sent = [index for index, step in enumerate(plan.steps) if step.says in dialogue.replies[-1]]
    return min(max(sent, default=-1) + 1, len(plan.steps) - 1)


def _literal(value: object) -> str:
    return repr(value).replace("```", r"\x60\x60\x60")  # a fence in the question must not end the cell


def _give_up(failure: str) -> str:
    text = f"I could not answer: my cells failed twice. {NO_MODEL}.\n{failure[:500]}"
    return f"My cells failed twice; I stop here.\n\n```repl\nFINAL({_literal(text)})\n```"


@cache
def _cell_text(name: str) -> str:
    source = files("rlm.clients.offline_cells").joinpath(f"{name}.py").read_text(encoding="utf-8")
    return source.partition("# The cell:\n")[2].strip("\n") + "\n"
