"""Thinking in replies: the tags that models write around it, as in `<think>So far ...</think>42`. Pure functions.

A tag in code or in a JSON string is mentioned, not used: it is a part of the answer.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["CLOSING_TAG", "TAG", "without_thinking"]

_NAMES: Final = "(?:think|thinking|thought|reasoning)"
TAG: Final = rf"(?!(?<=`)<[^<>`\n]{{5,10}}+>`)<(?P<slash>/?){_NAMES}>"
"""Pattern of an opening or closing tag, to be compiled with `re.IGNORECASE`; in a closing tag the group `slash` is "/"."""
CLOSING_TAG: Final = rf"</{_NAMES}>"

_JSON_STRING = r'(?:\A|[\[{,:])\s*+"(?:[^"\\\n]|\\.)*+"(?=\s*+(?:[,:\]}]|\Z))'
_CODE_BLOCK = r"^[ \t]*+```[^\n]*+\n(?:(?![ \t]*+```)[^\n]*+\n)*+[ \t]*+```[ \t]*+$"
_QUOTED_OR_TAG = re.compile(rf"{_JSON_STRING}|{_CODE_BLOCK}|{TAG}", re.IGNORECASE | re.MULTILINE)
_ANSWER_STARTS = ("{", "[", "```")


def without_thinking(reply: str) -> str:
    """Return a reply without thinking; one that starts with JSON or a code block has none.

    A closing tag that was never opened ends thinking that began with the reply. An opening tag at the start of a line
    that is never closed reaches to the end of the reply.
    """
    text = reply.strip()
    if text.startswith(_ANSWER_STARTS):
        return text
    kept: list[str] = []
    position = 0
    opening: int | None = None
    for match in _QUOTED_OR_TAG.finditer(text):
        if match["slash"] is None or (match["slash"] and match.end() == len(text) and opening is None):
            continue
        if match["slash"]:
            kept = [] if opening is None else kept
            position, opening = match.end(), None
        elif opening is None:
            kept.append(text[position : match.start()])
            position = opening = match.start()
    if opening is None or text[:opening].rpartition("\n")[2].strip():
        kept.append(text[position:])
    return "".join(kept)
