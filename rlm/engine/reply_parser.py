r"""Reply text to code blocks, a final answer, or prose. Pure, without I/O, never raises.

A reply is read from top to bottom into segments that together spell it:

Thinking    `<think>` to `</think>` (also thinking, thought, reasoning). An opening tag at the start of a line that
            is never closed reaches to the end; a closing tag that was never opened, at the start or the end of a
            line, makes thinking of everything before it. Nothing inside counts.
Code        A fence of three or more backticks or tildes whose language is repl, python, py, python3, ipython or
            tool_code. A fence without a language counts where its content parses as Python and does something:
            output such as `42` or `total: 5` parses too. Other languages never count, nor does a block that opens
            with `>>>`. A fence that is never closed reaches to the end of the reply, or to the next one.
Final       `FINAL(...)` or `FINAL_VAR(...)` at the start of a line, behind nothing but white space, `#`, `>`, `*`,
            `_` or a "Final answer:". Within a line of prose, in inline code or in a list it is talk about an
            answer; in a code block it is the cell's business. `FINAL()` with nothing in it is no answer.
Prose       All else.

Where a block ends is decided by Python's own grammar: a fence inside a string is part of the string. If a
string is never closed, the code that parses wins, and failing that the first fence.

The work is linear in the length of the reply. What could grow faster, parsing Python and looking past a fence, draws
on one allowance of characters per reply; when that is spent, the first fence wins.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from bisect import bisect_left
from dataclasses import dataclass

from rlm.thinking import CLOSING_TAG, TAG

__all__ = ["Code", "FinalText", "FinalVariable", "ParsedReply", "Prose", "Segment", "Thinking", "parse_reply"]


@dataclass(frozen=True, slots=True)
class Prose:
    """Text for people: everything that is no other segment."""

    source: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """Thinking of the model, with its tags."""

    source: str


@dataclass(frozen=True, slots=True)
class Code:
    """A block to run: `source` is the block with its fences, `code` its content with LF line ends."""

    source: str
    code: str


@dataclass(frozen=True, slots=True)
class FinalText:
    """`FINAL(...)`: `text` is the text in the parentheses, unquoted if it is a single string literal."""

    source: str
    text: str


@dataclass(frozen=True, slots=True)
class FinalVariable:
    """`FINAL_VAR(...)`: `name` is the text in the parentheses, unquoted; the variable may not exist."""

    source: str
    name: str


Segment = Prose | Thinking | Code | FinalText | FinalVariable


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A reply in segments; joined, their `source`s are the reply."""

    segments: tuple[Segment, ...]

    @property
    def code(self) -> tuple[str, ...]:
        """The code blocks in order, ready to run."""
        return tuple(segment.code for segment in self.segments if isinstance(segment, Code))

    @property
    def final(self) -> FinalText | FinalVariable | None:
        """The first final answer outside code and thinking."""
        for segment in self.segments:
            if isinstance(segment, FinalText | FinalVariable):
                return segment
        return None

    @property
    def prose(self) -> str:
        """The reply without thinking, code and final answer, stripped."""
        return "".join(segment.source for segment in self.segments if isinstance(segment, Prose)).strip()


def parse_reply(text: str) -> ParsedReply:
    """Read a model's reply.

    Args:
        text: any text; half a reply, an empty one and hostile ones are read too.
    """
    allowance = _Allowance(_ALLOWED_CHARACTERS)
    kept: list[Segment] = []
    start = 0
    for announcements_left in reversed(range(_ANNOUNCEMENTS + 1)):
        segments, opening = _read_blocks(text, start, allowance)
        if opening is None:
            kept += segments
            break
        final = _read_final(text, opening)
        kept += _up_to(segments, opening.start - start)
        start = opening.start + len(final.source)
        after, _ = _read_blocks(text, start, allowance)
        if not (announcements_left and _is_announcement(text, start, after)):
            kept += [final, *after]
            break
        kept.append(Prose(final.source))
    return ParsedReply(tuple(kept))


_ALLOWED_CHARACTERS = 400_000
_ANNOUNCEMENTS = 3
_WORDS_FOLLOW = re.compile(r"[ \t]*[^\W\d_]{2}")


def _is_announcement(text: str, end: int, after: list[Segment]) -> bool:
    """Return True if words follow, as in `FINAL(x) will be called once I know.`, and then code: that is only a plan."""
    return any(isinstance(segment, Code) for segment in after) and bool(_WORDS_FOLLOW.match(text, end))


class _Allowance:
    """Number of characters that may still be read for one reply beyond the first reading."""

    def __init__(self, characters: int) -> None:
        self.characters = characters

    def spend(self, characters: int) -> bool:
        if characters > self.characters:
            return False
        self.characters -= characters
        return True


def _up_to(segments: list[Segment], border: int) -> list[Segment]:
    kept: list[Segment] = []
    position = 0
    for segment in segments:
        if position + len(segment.source) > border:
            kept += [Prose(segment.source[: border - position])] if position < border else []
            break
        kept.append(segment)
        position += len(segment.source)
    return kept


# --- Events: the lines and tags at which something may begin or end ----------------------------------------------

_EVENT = re.compile(
    rf"""
    ^(?P<indent>[ \t]*+)(?:(?P<mark>`{{3,}}+)(?P<info>[^`<\n]*+)|(?P<wave>~{{3,}}+)(?P<wave_info>[^<\n]*+))$
    | (?<![`\n])(?P<late_mark>`{{3,}}+)(?P<late_info>(?:repl|python3?|py|tool_code)[ \t\r]*+)$
    | (?P<line_start>^[ \t]*+)?{TAG}(?P<line_end>[ \t\r]*+$)?
    """,
    re.MULTILINE | re.VERBOSE | re.IGNORECASE,
)
_LANGUAGE = re.compile(r"[\s{.]*([\w+#-]*)")
_CODE_LANGUAGES = frozenset({"repl", "python", "py", "python3", "py3", "ipython", "ipython3", "tool_code"})
_OUR_LANGUAGES = frozenset({"repl", "tool_code"})


@dataclass(frozen=True, slots=True)
class _Fence:
    """A line that opens or closes a block; `end` is after its line end. A late fence has prose before it on its line."""

    start: int
    end: int
    indent: int
    mark: str
    language: str
    is_bare: bool
    is_late: bool

    def may_be_ended_by(self, other: _Fence) -> bool:
        return other.mark[0] == self.mark[0] and len(other.mark) >= len(self.mark)


@dataclass(frozen=True, slots=True)
class _Tag:
    """An opening or closing tag of thinking."""

    start: int
    end: int
    closes: bool
    starts_line: bool
    ends_line: bool


def _find_events(text: str, start: int) -> list[_Fence | _Tag]:
    return [_as_event(match) for match in _EVENT.finditer(text, start)]


def _as_event(match: re.Match[str]) -> _Fence | _Tag:
    if match["slash"] is not None:
        return _Tag(
            match.start() + len(match["line_start"] or ""),
            match.end() - len(match["line_end"] or ""),
            closes=match["slash"] == "/",
            starts_line=match["line_start"] is not None,
            ends_line=match["line_end"] is not None,
        )
    info = match["info"] or match["wave_info"] or match["late_info"] or ""
    language = _LANGUAGE.match(info)
    return _Fence(
        match.start(),
        min(match.end() + 1, len(match.string)),
        len(match["indent"] or ""),
        match["mark"] or match["wave"] or match["late_mark"],
        language[1].lower() if language else "",
        is_bare=not info.strip(),
        is_late=match["late_mark"] is not None,
    )


# --- Blocks: thinking, fences, and the prose between them ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opening:
    """Start of a final answer; `inside` is the position after its opening parenthesis.

    An answer with unbalanced parentheses reaches to `limit`. `prose_end` is the end of the prose around it. If it fills
    a block of its own, `block_end` is the end of that block.
    """

    start: int
    inside: int
    is_variable: bool
    prose_end: int
    limit: int
    block_end: int | None = None


@dataclass(frozen=True, slots=True)
class _Block:
    """A segment that is not plain prose, its end, and the final answer that fills it, if any."""

    segment: Prose | Thinking | Code
    end: int
    opening: _Opening | None = None


def _read_blocks(text: str, start: int, allowance: _Allowance) -> tuple[list[Segment], _Opening | None]:
    """Return the segments of `text[start:]`, with the final answer still as prose, and where that answer opens."""
    segments: list[Segment] = []
    opening: _Opening | None = None
    done = thought = start
    reader = _BlockReader(text, _find_events(text, start), allowance)
    index = 0
    while index < len(reader.events):
        event = reader.events[index]
        index += 1
        if isinstance(event, _Tag) and event.closes:
            if event.starts_line or event.ends_line:
                # Nothing in the reply opened it, so the chat template did, ahead of the reply.
                segments, opening, thought, done = [], None, event.end, event.end
            continue
        block = reader.read(index - 1)
        if block is None:
            continue
        if done < event.start:
            segments.append(Prose(text[done : event.start]))
            opening = opening or _find_opening(text, done, event.start)
        segments.append(block.segment)
        opening = opening or block.opening
        done = block.end
        index = bisect_left(reader.starts, done, index)
    if done < len(text):
        segments.append(Prose(text[done:]))
        opening = opening or _find_opening(text, done, len(text))
    if thought > start:
        segments.insert(0, Thinking(text[start:thought]))
    return segments, opening


class _BlockReader:
    """Reads the block that begins at an event of a text, if one does."""

    def __init__(self, text: str, events: list[_Fence | _Tag], allowance: _Allowance) -> None:
        self.text = text
        self.events = events
        self.starts = [event.start for event in events]
        self.allowance = allowance
        self._last_close = max(
            (event.start for event in events if isinstance(event, _Tag) and event.closes), default=-1
        )

    def read(self, index: int) -> _Block | None:
        event = self.events[index]
        return (
            self._read_thinking(event, index) if isinstance(event, _Tag) else self._read_fenced(event, index)
        )

    def _read_thinking(self, tag: _Tag, index: int) -> _Block | None:
        end = len(self.text)
        if tag.start < self._last_close:
            while not (isinstance(event := self.events[index], _Tag) and event.closes):
                index += 1
            end = event.end
        elif not tag.starts_line:
            return None
        return _Block(Thinking(self.text[tag.start : end]), end)

    def _read_fenced(self, fence: _Fence, index: int) -> _Block | None:
        border = self._first_border(fence, index)
        if fence.is_late and not border.is_closing:
            return None
        if fence.is_bare or fence.language in _CODE_LANGUAGES:
            chosen = self._border_of_code(fence, border)
            code = _outdented(self.text[fence.end : chosen.start], fence.indent)
            if self._is_code(code, fence):
                return _Block(Code(self.text[fence.start : chosen.end], code), chosen.end)
            border = border if fence.is_bare else chosen
        return self._quoted(fence, border)

    def _first_border(self, fence: _Fence, index: int) -> _Border:
        """Return the end of the block if the strings of Python are ignored."""
        enders = (
            _OUR_LANGUAGES if fence.language not in _CODE_LANGUAGES and not fence.is_bare else _CODE_LANGUAGES
        )
        for position in range(index + 1, len(self.events)):
            event = self.events[position]
            if isinstance(event, _Tag):
                if event.closes and (event.starts_line or event.ends_line):
                    return _Border(event.start, event.start, is_closing=False)
            elif fence.may_be_ended_by(event):
                if event.is_bare:
                    return _Border(event.start, event.end, is_closing=True)
                if event.language in enders:
                    return _Border(event.start, event.start, is_closing=False)
        return _Border(len(self.text), len(self.text), is_closing=False)

    def _border_of_code(self, fence: _Fence, first: _Border) -> _Border:
        """Return the end of a block of Python: the first fence outside its strings."""
        scanned = _first_fence_outside_strings(self.text, fence, first.start, self.allowance)
        if scanned is None:
            return first
        if scanned.start <= first.start or self._parses(self.text[fence.end : scanned.start], fence):
            return scanned
        return first

    def _parses(self, source: str, fence: _Fence) -> bool:
        return self.allowance.spend(len(source)) and _parse(_outdented(source, fence.indent)) is not None

    def _is_code(self, code: str, fence: _Fence) -> bool:
        if not code or code.lstrip().startswith(">>>"):
            return False
        return not fence.is_bare or (self.allowance.spend(len(code)) and _does_something(_parse(code)))

    def _quoted(self, fence: _Fence, border: _Border) -> _Block:
        opening = None
        if fence.is_bare:
            opening = _find_opening_at(self.text, fence.end, border.start, block_end=border.end)
        return _Block(Prose(self.text[fence.start : border.end]), border.end, opening)


# --- Python -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Border:
    """The end of a block: the line from `start` to `end` closes it, or `start == end` and something else begins."""

    start: int
    end: int
    is_closing: bool


# Possessive, so that a string that is never closed fails in one pass.
_PYTHON_TOKEN = re.compile(
    rf"""
    \#[^\n]*+
    | \"\"\"(?:[^"\\]++|\\.|"(?!""))*+\"\"\"
    | \'\'\'(?:[^'\\]++|\\.|'(?!''))*+\'\'\'
    | (?P<never_closed>\"\"\"|\'\'\')
    | "(?:[^"\\\n]++|\\\r\n|\\.)*+"
    | '(?:[^'\\\n]++|\\\r\n|\\.)*+'
    | \\.
    | ^[ \t]*+(?P<mark>`{{3,}}+|~{{3,}}+)(?P<info>[^`<\n]*+)$\n?
    | (?P<trailing_mark>`{{3,}}+)[ \t\r]*+$\n?
    | (?P<tag>^[ \t]*+{CLOSING_TAG})
    """,
    re.MULTILINE | re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_LOOK_AHEAD = 100_000


def _first_fence_outside_strings(
    text: str, fence: _Fence, first: int, allowance: _Allowance
) -> _Border | None:
    """Return the fence that ends a block of Python, else the end of the text; None if a string is never closed."""
    limit = min(len(text), first + min(_LOOK_AHEAD, allowance.characters) + 1)
    for token in _PYTHON_TOKEN.finditer(text, fence.end, limit):
        if token.end() > first:
            allowance.spend(min(token.end() - first, allowance.characters))
            first = token.end()
        if token["never_closed"]:
            allowance.spend(min(limit - first, allowance.characters))
            return None
        if token["tag"]:
            return _Border(token.start(), token.start(), is_closing=False)
        mark = token["mark"] or token["trailing_mark"]
        if mark and mark[0] == fence.mark[0] and len(mark) >= len(fence.mark):
            if (token["info"] or "").strip():
                return _Border(token.start(), token.start(), is_closing=False)
            return _Border(token.start(), token.end(), is_closing=True)
    return _Border(limit, limit, is_closing=False) if limit == len(text) else None


def _outdented(source: str, indent: int) -> str:
    """Return a block's content as a program: LF line ends, without the indent of the fence or of the first line."""
    source = source.replace("\r\n", "\n").rstrip()
    first_line = source.lstrip("\n").partition("\n")[0]
    indent = max(indent, len(first_line) - len(first_line.lstrip(" \t")))
    return re.sub(rf"^[ \t]{{1,{indent}}}", "", source, flags=re.MULTILINE) if indent else source


# Escapes say nothing about where a program ends, and unknown ones make the compiler warn.
_ESCAPE = re.compile(r"\\(?:N\{[^}\n]*+\}|[^\r\n])")


def _parse(code: str) -> ast.Module | None:
    """Return the syntax tree of a program, or None. The program is not compiled and not run."""
    try:
        return ast.parse(_ESCAPE.sub("__", code))
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError, Warning):
        return None


def _does_something(tree: ast.Module | None) -> bool:
    """Return True if a program is more than values, names and `key: value` lines, which may be printed output."""
    return tree is not None and any(_acts(statement) for statement in tree.body)


def _acts(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.AnnAssign):
        return statement.value is not None
    if not isinstance(statement, ast.Expr):
        return True
    return any(
        isinstance(node, ast.Call | ast.Await) or (isinstance(node, ast.Name) and node.id == "context")
        for node in ast.walk(statement)
    )


# --- Final answers ------------------------------------------------------------------------------------------------

_OPENING = re.compile(
    r"""
    [ \t]*+(?:(?:\#{1,6}|>)[ \t]*+)?(?:[*]{1,3}|__)?[ \t]*+
    (?i:(?:(?:my|the)\ )?(?:final\ )?answer(?:\ is)?[ \t:*]*+)?
    (?P<in_code>`(?=[^`\n]*+`\s*+\Z))?
    FINAL(?P<variable>_VAR)?\((?!\s*+(?:\.\.\.|…)?\s*+\))
    """,
    re.VERBOSE,
)
_LINE_WITH_OPENING = re.compile(rf"^{_OPENING.pattern}", re.VERBOSE | re.MULTILINE)


def _find_opening(text: str, start: int, end: int) -> _Opening | None:
    match = _OPENING.match(text, start, end) or _LINE_WITH_OPENING.search(text, start, end)
    if match is None or (match["in_code"] and end < len(text)):
        return None
    return _as_opening(match, end, limit=len(text))


def _find_opening_at(text: str, start: int, end: int, *, block_end: int) -> _Opening | None:
    match = _OPENING.match(text, start, end)
    return _as_opening(match, end, limit=end, block_end=block_end) if match else None


def _as_opening(
    match: re.Match[str], prose_end: int, *, limit: int, block_end: int | None = None
) -> _Opening:
    return _Opening(match.start(), match.end(), bool(match["variable"]), prose_end, limit, block_end)


def _read_final(text: str, opening: _Opening) -> FinalText | FinalVariable:
    closing = _closing_parenthesis(text, opening)
    if closing is None:
        inside, end = text[opening.inside : opening.limit], opening.limit
        if opening.is_variable:
            inside = inside.partition("\n")[0]
            end = opening.inside + len(inside)
    else:
        inside = text[opening.inside : closing]
        end = closing + 1
        if ornament := _ORNAMENT.match(text, end, opening.limit):
            end = ornament.end()
    source = text[opening.start : opening.block_end or end]
    if opening.is_variable:
        return FinalVariable(source, _unquoted(inside.strip()))
    return FinalText(source, _unquoted(inside.strip()))


_ORNAMENT = re.compile(r"[*_`]{1,3}")
_LITERAL = re.compile(
    r"""
    \s*+(?P<prefix>[rRuU]?)
    (?:(?P<triple>\"\"\"|\'\'\')(?P<long>(?s:(?:[^"'\\]++|\\.|(?!(?P=triple)).)*+))(?P=triple)
    |"(?P<double>(?:[^"\\]++|\\(?s:.))*+)"
    |'(?P<single>(?:[^'\\]++|\\(?s:.))*+)')
    \s*+
    """,
    re.VERBOSE,
)
# Outside a string an escape is consumed whole too, so that a run of escaped quotes is read once.
_PARENTHESIS = re.compile(r"[()]")
_PARENTHESIS_OUTSIDE_QUOTES = re.compile(
    r"""
    \\.
    | "(?:[^"\\\n]++|\\.)*+"
    | (?<=[\[({,:=\s])'(?:[^'\\\n]++|\\.)*+'(?=[\])},:\s])
    | (?P<parenthesis>[()])
    """,
    re.VERBOSE,
)
_END_OF_LINE = re.compile(r"[ \t]*+[*_`.]{0,4}+[ \t\r]*+(?:\n|\Z)")
_ENUMERATOR_OR_SMILEY = re.compile(r"(?:(?:^|[\s(])\w{1,3}|[:;]-?)\Z")


def _closing_parenthesis(text: str, opening: _Opening) -> int | None:
    """Return where the parenthesis of `FINAL(` closes, or None.

    Prose has quotes and parentheses that do not pair (`5" (12 cm`, `1)`, `:)`), so three readings are tried: one
    string literal; balanced outside quotes and closing at the end of a line; balanced, quotes or not.
    """
    start, limit = opening.inside, opening.limit
    literal = _LITERAL.match(text, start, limit)
    if literal and text.startswith(")", literal.end()):
        return literal.end()
    outside_quotes = _balance(_PARENTHESIS_OUTSIDE_QUOTES, text, start, limit)
    if outside_quotes is not None and _END_OF_LINE.match(text, outside_quotes + 1, limit):
        return outside_quotes
    plain = _balance(_PARENTHESIS, text, start, limit)
    if plain is None or _END_OF_LINE.match(text, plain + 1, limit):
        return plain
    return _later_closing(text, opening, plain) or plain


def _later_closing(text: str, opening: _Opening, early: int) -> int | None:
    """Return an unmatched parenthesis at the end of a line after the one at `early`, as in `FINAL(1) this, 2) that)`."""
    end = opening.prose_end
    if not _ENUMERATOR_OR_SMILEY.search(text, max(opening.inside - 1, early - 5), early):
        end = text.find("\n", early, opening.prose_end)
        end = opening.prose_end if end < 0 else end
    depth = 0
    for match in _PARENTHESIS.finditer(text, early + 1, end):
        depth += 1 if match[0] == "(" else -1
        if depth < 0:
            if _END_OF_LINE.match(text, match.end(), opening.limit):
                return match.start()
            depth = 0
    return None


def _balance(pattern: re.Pattern[str], text: str, start: int, limit: int) -> int | None:
    depth = 1
    for match in pattern.finditer(text, start, limit):
        if match[0] in ("(", ")"):
            depth += 1 if match[0] == "(" else -1
            if depth == 0:
                return match.start()
    return None


def _unquoted(text: str) -> str:
    """Return the value of a text that is one string literal of Python or JSON; any other text unchanged."""
    literal = _LITERAL.fullmatch(text)
    if literal is None:
        return text
    body = next(literal[name] for name in ("long", "double", "single") if literal[name] is not None)
    if literal["prefix"] in ("r", "R"):
        return body
    if literal["double"] is not None:
        try:
            return str(json.loads(f'"{body}"', strict=False))
        except ValueError:
            pass  # Python's escapes are more than JSON's
    return _STRING_ESCAPE.sub(_unescaped, body)


_STRING_ESCAPE = re.compile(r"\\(?:\r?\n|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[\\'\"abfnrtv])")
_SIMPLE_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _unescaped(escape: re.Match[str]) -> str:
    character, code = escape[0][1], escape[0][2:]
    if character in "xuU":
        return chr(int(code, 16)) if int(code, 16) <= sys.maxunicode else escape[0]
    if character in "\r\n":
        return ""
    return _SIMPLE_ESCAPES.get(character, character)
