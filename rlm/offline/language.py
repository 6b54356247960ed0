"""Rules about words and sentences for the offline client.

A *key term* is a word of the question that may locate the answer. Its *stem* is the common part of its forms
(`raised`: `rais`), found by removing English endings; words of other languages mostly stay whole and match with a few
more letters. Text in scripts without spaces is split into pairs of characters.
"""

# ruff: noqa: RUF001 - quotation marks and full stops of several scripts are what it reads
from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FIRST_UNSPACED",
    "KeyTerm",
    "key_terms",
    "lowered",
    "matcher",
    "may_use",
    "sentence_spans",
    "stem_of",
]

FIRST_UNSPACED = "\u2e80"
"""First character of the scripts (Chinese, Japanese, …) that have no spaces between words."""


@dataclass(frozen=True, slots=True)
class KeyTerm:
    """Word of a question and its stem.

    `is_kind` marks a word that names the kind of thing asked for (`which city`, `how tall`): the sentence with the
    answer seldom uses it.
    """

    word: str
    stem: str
    is_kind: bool = False


def key_terms(question: str) -> list[KeyTerm]:
    """Return the words of a question that carry its meaning, each stem once, in their order.

    If all are small words (`Who is it?`), those are returned, because the search needs some word.
    """
    words = list(_words(question))
    small_words = _small_words(question)
    quoted = {word.lower() for words_quoted in _QUOTED.findall(question) for word in words_quoted.split()}
    terms = [term for term in words if term.word.lower() not in small_words - quoted]
    seen: dict[str, KeyTerm] = {}
    for term in terms or words:
        if term.stem not in seen or seen[term.stem].is_kind:
            seen[term.stem] = term
    return list(seen.values())


@lru_cache(maxsize=1_000)
def matcher(stem: str) -> re.Pattern[str]:
    """Return a pattern that finds the forms of a word in lower-case text; the search cell has a copy."""
    stem, *irregular = stem.split("|")
    if stem >= FIRST_UNSPACED:
        return re.compile(re.escape(stem))
    short = rf"(?:[edsn]|es|[ds]t|{re.escape(stem[-1:])}?(?:ed|er|ers|ing))?"
    ending = r"\w{0,4}" if len(stem) > _LONG_STEM else short
    regular = re.escape(stem) + ending
    if stem.endswith("y") and stem[-2:-1] not in "aeiou":
        regular = rf"{re.escape(stem[:-1])}(?:y|ys|ies|ied|ying)"
    return re.compile(rf"\b(?:{'|'.join([regular, *irregular])})\b")


def may_use(stem: str, text: str) -> bool:
    """Return False if lower-case text has no form of the word; a fast test before the exact `matcher`."""
    return any(form.removesuffix("y") in text for form in stem.split("|"))


def stem_of(word: str) -> str:
    """Return the common part of the forms of a lower-case word: `statements` → `statement`, `raising` → `rais`.

    Irregular forms are appended: `left` → `leav|left`.
    """
    stem = _regular_stem(word)
    return _IRREGULAR.get(word) or _IRREGULAR.get(stem) or stem


def _regular_stem(word: str) -> str:
    if word >= FIRST_UNSPACED or not word.isalpha():
        return word
    for ending in ("ies", "ied"):
        if word.endswith(ending) and len(word) > _SHORT_STEM:
            return word.removesuffix(ending) + "y"
    for ending in _STRIPPED:
        rest = word.removesuffix(ending)
        keeps_its_y = rest[-1:] == "y" and rest[-2:-1] not in "aeiou" and ending not in _AFTER_Y  # goodbyes
        if rest != word and len(rest) >= _SHORT_STEM and not keeps_its_y:
            doubled = ending in _DOUBLING and rest[-1] == rest[-2] and rest[-1] not in "aeiouls"
            return rest[:-1] if doubled else rest
    return word


def lowered(text: str) -> str:
    """Return the text in lower case with the same length, so that positions are valid in both."""
    return text.replace("\u0130", "I").lower()


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of each sentence: it ends at a full stop, an empty line, a heading or a list item.

    A line without a full stop is joined with the indented sentence below it, so that a glossary term and its meaning,
    or a colon and its example, are one quote.
    """
    borders = [border.span(border.lastgroup or 0) for border in _BORDER.finditer(text)]
    starts = [0, *(end for _, end in borders)]
    ends = [*(start for start, _ in borders), len(text)]
    spans: list[tuple[int, int]] = []
    for start, end in zip(starts, ends, strict=True):
        for span in _trimmed(text, start, end):
            if spans and _belongs_to(text, spans[-1], span):
                spans[-1] = (spans[-1][0], span[1])
            else:
                spans.append(span)
    return spans


_SHORT_STEM = 4
_LONG_STEM = 4
_STRIPPED = ("ing", "ed", "es", "ly", "s", "e")
_DOUBLING = ("ing", "ed")
_AFTER_Y = ("ing", "s")
_FORMS = """
    become became; begin began begun; break broke broken; breed bred; bring brought; build built; burn burnt; buy
    bought; catch caught; choose chose chosen; draw drew drawn; drink drank drunk; drive drove driven; eat ate eaten;
    feed fed; feel felt; fight fought; flee fled; fly flew flown; forget forgot forgotten; forgive forgave forgiven;
    freeze froze frozen; grow grew grown; hear heard; hide hid hidden; hold held; keep kept; know knew known; lay
    laid; lead led; learn learnt; leave left; lose lost; meet met; pay paid; ride rode ridden; run ran; seek sought;
    sell sold; send sent; shoot shot; sing sang sung; sink sank sunk; sit sat; sleep slept; speak spoke spoken; spend
    spent; stand stood; steal stole stolen; swear swore sworn; swim swam swum; teach taught; tear tore torn; think
    thought; throw threw thrown; understand understood; wear wore worn; win won; withdraw withdrew withdrawn; write
    wrote written; child children; foot feet; goose geese; life lives; man men; mouse mice; person people; tooth
    teeth; wife wives; woman women
"""
_IRREGULAR = {
    key: "|".join([_regular_stem(base), *others])
    for base, *others in (group.split() for group in _FORMS.split(";"))
    for key in (base, f"{base}s", f"{base.removesuffix('e')}ing", _regular_stem(base), *others)
}
_HAS_WORD = re.compile(r"\w")
_WORD = re.compile(r"\w+(?:['’.-]\w+)*")
_JOINING = re.compile("多少|什么|什麼|怎么|怎樣|为什么|几时|[哪谁誰何吗嗎呢几幾么啥怎是的了]")
_HIRAGANA = re.compile("[\u3041-\u309f]+")
_UNSPACED = re.compile("[\u2e80-\ud7ff\uf900-\ufaff]+")
_QUOTED = re.compile(r"[\"“„«`]([^\"”“»`]+)[\"”“»`]")
_KIND = re.compile(
    r"\b(?:which|what|how|welche[mnrs]?|quel(?:le)?s?|qué|cuál|quale|qual|welke?)\s+(?P<kind>\w+)",
    re.IGNORECASE,
)
_BORDER = re.compile(
    r"(?<=[.!?…])[\"”’')\]]*(?P<border>\s+)(?=[\"“‘'(\[]*[^\Wa-z_])"  # a full stop, then a capital or a digit
    r"|(?<=[。！？])(?P<stop>)"
    r"|(?P<empty>\n[ \t]*\n\s*)"
    r"|(?P<item>\n(?=[ \t]*(?:[-*•]|\d+[.)])\s))"
    r"|(?P<ruler>\n(?=[*=~^#-]{3,})|(?<=[*=~-]{4})\n)"
)
_LONGEST_SENTENCE = 600
_SMALL_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "English": """
            a about above according after again all also am an and any anybody anyone anything are aren't as at be
            because been before being below between both but by can can't cannot could couldn't did didn't do does
            doesn't doing don't done down during each either else ever every everybody everyone everything few for
            from further get gets give given gives had has hasn't have haven't having he her here hers him his how i
            if in into is isn't it it's its itself just let like made make makes many may me might more most much
            must my need needed needs no nobody nor not nothing of off often on once one only or other our out over
            own per please said say says shall she should shouldn't since so some somebody someone something such
            tell than that that's the their them then there there's these they this those through thus to too under
            until up upon us use used uses using very was wasn't we were weren't what what's when where where's
            whether which while who who's whom whose why will with within without won't would wouldn't yes you your
            answer came come context contain contains document find happen happened happens kind mention mentioned
            mentions name named names occur occurs appear appears passage question quote show sort took take
        """,
        "German": """
            aber alle als am an auch auf aus bei bis das dass dem den der des die dies diese dieser durch ein eine
            einem einen einer eines er es für gegen gibt hat hatte hatten habe haben ich ihr im in ist kann keine
            man mit muss nach nicht noch nur ob oder ohne sein seine sich sie sind soll über um und uns unter vom
            von vor wann war waren warum was wem wen wer werden wessen wie wieviel wieviele viele viel wir wird wo
            wurde wurden welche welchem welchen welcher welches zu zum zur zwischen
        """,
        "French": """
            a à a-t-elle a-t-il au aux avec ce ces cette combien comment dans de des du elle elles en est est-ce et
            été étaient était il ils je la le les leur mais ne nous on ou où par pas pour pourquoi quand que quel
            quelle quelles quels qui quoi sa sans se sera ses son sont sur un une vous y
        """,
        "Spanish": """
            a al como cómo con cuál cuáles cuándo cuánta cuántas cuánto cuántos de del dónde el ella en entre era es
            esta este está fue fueron ha hay la las le lo los más no o para pero por qué que quién quiénes se sin
            sobre son su sus un una y
        """,
        "Italian": """
            a al alla che chi ci come con cosa cui da dal dalla dei del della delle di dove è e era gli ha hanno i il
            in la le lo ma nel nella non o per perché più quale quali quando quanta quante quanti quanto se si sono
            stato su sul sulla tra un una uno
        """,
        "Portuguese": """
            a ao aos as com como da das de do dos e ela ele em entre era é foi foram há mas na não nas no nos o onde
            os ou para pela pelo por porque qual quais quando quanta quantas quanto quantos que quem se sem seu são
            sobre sua um uma
        """,
        "Dutch": """
            aan als bij dat de deze die door een en er heeft hebben het hij hoe hoeveel hun in is kan maar met naar
            niet of om onder ook op over te tot uit van voor waar waarom wanneer waren wat welk welke werd wie
            worden wordt zij zijn
        """,
    }.items()
}
"""Function words by language: `die` and `war` carry meaning in English and none in German."""


def _small_words(question: str) -> frozenset[str]:
    """Return the function words of the question's language: the one with most of its words, English if in doubt."""
    words = [word.lower() for word in _WORD.findall(question)]
    return max(_SMALL_WORDS.values(), key=lambda small: sum(word in small for word in words))


def _words(question: str) -> Iterator[KeyTerm]:
    kinds = {found.start("kind") for found in _KIND.finditer(question)}
    for found in _WORD.finditer(question):
        word = re.sub(r"['’]s$", "", found[0]).rstrip(".")
        for run in _UNSPACED.findall(word):
            yield from (KeyTerm(pair, pair) for pair in _pairs(run))
        if _UNSPACED.search(word):
            continue
        small = lowered(word)
        yield KeyTerm(word, stem_of(small), found.start() in kinds)


def _pairs(run: str) -> list[str]:
    """Return each two adjacent characters, but not across a word that only asks or joins."""
    parts = [part for part in _JOINING.split(run) if part]
    pairs = [part[i : i + 2] for part in parts for i in range(max(1, len(part) - 1))]
    return [pair for pair in pairs if not _HIRAGANA.fullmatch(pair)] or pairs or [run]


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > _LONGEST_SENTENCE:
        cut = max(
            text.rfind(mark, start + 200, start + _LONGEST_SENTENCE) for mark in ("; ", ": ", "\n", ", ")
        )
        cut = cut + 1 if cut > start else start + _LONGEST_SENTENCE
        yield from _trimmed(text, start, cut)
        start = cut
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end -= len(piece) - len(piece.rstrip())
    if _HAS_WORD.search(text, start, end):  # otherwise it is a ruler or an underline
        yield start, end


def _belongs_to(text: str, before: tuple[int, int], span: tuple[int, int]) -> bool:
    ending = text[before[0] : before[1]].rstrip("\"”’')]")
    is_sentence = ending.endswith((".", "!", "?", "…")) and not ending.endswith("...")
    if is_sentence or span[1] - before[0] > _LONGEST_SENTENCE:
        return False
    gap = text[before[1] : span[0]]
    first_line = text.rfind("\n", 0, before[0]) + 1
    indented = len(gap) - gap.rfind("\n") - 1 > before[0] - first_line
    return "\n" in gap and gap.isspace() and indented
