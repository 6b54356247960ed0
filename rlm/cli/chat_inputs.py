"""Parse a line of `rlm chat`, without a terminal and a session."""

from __future__ import annotations

import codeop
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = [
    "AskModel",
    "ChatCommand",
    "CommandName",
    "Input",
    "Nothing",
    "RunCode",
    "ShowVariable",
    "Unknown",
    "is_unfinished",
    "parse",
]

CommandName: TypeAlias = Literal["vars", "cost", "help", "reset", "quit"]


@dataclass(frozen=True, slots=True)
class AskModel:
    """A question for the root model."""

    text: str


@dataclass(frozen=True, slots=True)
class RunCode:
    """Python code for the guest."""

    text: str


@dataclass(frozen=True, slots=True)
class ShowVariable:
    """Name of a variable to show."""

    name: str


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """A command of the chat."""

    name: CommandName


@dataclass(frozen=True, slots=True)
class Unknown:
    """A command that does not exist."""

    text: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty line."""


Input: TypeAlias = AskModel | RunCode | ShowVariable | ChatCommand | Unknown | Nothing

_ALSO: dict[str, CommandName] = {"exit": "quit", "q": "quit", "h": "help", "?": "help"}
_BARE: dict[str, CommandName] = {
    "quit": "quit", "exit": "quit", "quit()": "quit", "exit()": "quit", "help": "help", "help()": "help",
}  # fmt: skip
"""Words that are commands without a slash: people type them to leave or for help, and never mean a question."""


def parse(text: str) -> Input:
    """Return what a line means: `!code`, `?name`, `/command`, or a question."""
    text = text.strip()
    if text.lower() in _BARE:
        return ChatCommand(_BARE[text.lower()])
    mark, rest = text[:1], text[1:].strip()
    match mark:
        case "":
            return Nothing()
        case "!":
            return RunCode(text[1:].lstrip(" ")) if rest else Nothing()
        case "?":
            return ShowVariable(rest) if rest else ChatCommand("vars")
        case "/":
            return _command(rest)
        case _:
            return AskModel(text)


def is_unfinished(text: str) -> bool:
    """Return True if Enter should start a new line: in code with an open bracket or block. An empty last line ends a block."""
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
    except (
        SyntaxError,
        ValueError,
        OverflowError,
    ):  # wrong rather than unfinished: the guest reports the error
        return False


def _command(word: str) -> Input:
    name = _ALSO.get(word.lower(), word.lower())
    for known in get_args(CommandName):
        if name == known:
            return ChatCommand(known)
    return Unknown(f"/{word}")
