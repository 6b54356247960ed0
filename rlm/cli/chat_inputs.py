"""What a line of `rlm chat` means. Pure: no terminal, no session."""

from __future__ import annotations

import codeop
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = [
    "Code",
    "Command",
    "CommandName",
    "Input",
    "Nothing",
    "Question",
    "Show",
    "Unknown",
    "is_unfinished",
    "parse",
]

CommandName: TypeAlias = Literal["vars", "cost", "help", "reset", "quit"]


@dataclass(frozen=True, slots=True)
class Question:
    """For the root model."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Python for the guest."""

    text: str


@dataclass(frozen=True, slots=True)
class Show:
    """A variable to look at."""

    name: str


@dataclass(frozen=True, slots=True)
class Command:
    """One of the chat's own commands."""

    name: CommandName


@dataclass(frozen=True, slots=True)
class Unknown:
    """A command that there is none of."""

    text: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty line."""


Input: TypeAlias = Question | Code | Show | Command | Unknown | Nothing

_ALSO: dict[str, CommandName] = {"exit": "quit", "q": "quit", "h": "help", "?": "help"}
_BARE: dict[str, CommandName] = {
    "quit": "quit", "exit": "quit", "quit()": "quit", "exit()": "quit", "help": "help", "help()": "help",
}  # fmt: skip
"""What nobody asks a model, and everybody types."""


def parse(text: str) -> Input:
    """What the user wants: `!code`, `?name`, `/command`, or a question."""
    text = text.strip()
    if text.lower() in _BARE:
        return Command(_BARE[text.lower()])
    mark, rest = text[:1], text[1:].strip()
    match mark:
        case "":
            return Nothing()
        case "!":
            return Code(text[1:].lstrip(" ")) if rest else Nothing()
        case "?":
            return Show(rest) if rest else Command("vars")
        case "/":
            return _command(rest)
        case _:
            return Question(text)


def is_unfinished(text: str) -> bool:
    """Whether Enter should begin a new line: code with an open bracket or block; an empty last line ends a block."""
    if not text.lstrip().startswith("!"):
        return False
    code = text.lstrip()[1:].lstrip(" ")
    _, *more = code.split("\n")
    if more:
        last = more[-1]
        if not last.strip():
            return _lacks_its_end(code.rstrip())
        if last[0] in " \t":
            return True
    return _lacks_its_end(code)


def _lacks_its_end(code: str) -> bool:
    try:
        return codeop.compile_command(code, symbol="exec") is None
    except (SyntaxError, ValueError, OverflowError):  # wrong rather than unfinished: running it says why
        return False


def _command(word: str) -> Input:
    name = _ALSO.get(word.lower(), word.lower())
    for known in get_args(CommandName):
        if name == known:
            return Command(known)
    return Unknown(f"/{word}")
