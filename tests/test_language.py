"""Docstrings, comments, messages and names use the field's terms; this list of words to avoid grows."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "rlm").rglob("*.py"))

# Word or phrase → what to say instead. Matched as whole words, in any case, in comments, docstrings and other strings.
PHRASES = {
    r"whoever|whatever|whichever|nobody|somebody|anybody": "name the actor",
    r"(is|are|was|were|be|been|being) told": "emitted, reported, passed to",
    r"tells of|tell of|told of|to tell it|tells it": "emit, report, warn about",
    r"lies (in|on|at|within|there|elsewhere)|lie in": "is in",
    r"stands (for itself|there|elsewhere|in the way)|as (it|they) stands?": "unchanged, verbatim",
    r"what there is|what came of|what has come|what is there": "name the thing",
    r"purse|leash|errand|ancestors?|knocks?|knocking|shelf|shelves|shelved": "retry budget, checkpoint, request, ...",
    r"rooms?|house|doors?|landing": "module, package, entry point",
    r"plants?|planted|truthful|verdicts?": "build, reply check, result of the check",
    r"asked again": "retried",
    r"gives? back|gave back|given back": "return, release",
    r"heir|cousins?": "next worker, sibling",
    r"under way": "running, in progress, in flight",
}
# Parts of names, split at underscores and capitals.
NAME_PARTS = {
    "tell", "tells", "told", "telling", "shelf", "shelve", "shelved", "purse", "knock", "plant", "whoever", "nobody",
    "somebody", "errand", "ancestor", "leash", "room", "rooms", "house", "door", "verdict", "truthful", "heir",
}  # fmt: skip
WORD_LISTS = {"rlm/offline/language.py"}  # stop words of languages, as data
NAMES_THAT_STAY = {
    "alias_of_max_concurrency",
    "max_concurrency",
}  # the other library's keyword, pointed to the right one


def texts(source):
    """Line and text of each comment and string of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING}:
            yield token.start[0], token.string


def names(tree):
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr


def parts(name):
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def complaints(file):
    source = (ROOT / file).read_text(encoding="utf-8")
    for line, text in texts(source):
        if file in WORD_LISTS and line > 20 and not text.startswith("#"):
            continue
        flat = " ".join(text.split())
        for phrase, instead in PHRASES.items():
            for found in re.findall(rf"\b(?:{phrase})\b", flat, re.IGNORECASE):
                shown = found if isinstance(found, str) else next(filter(None, found), phrase)
                yield f"{file}:{line}: {shown!r} of {phrase!r}; say: {instead}"
    for line, name in names(ast.parse(source)):
        if name not in NAMES_THAT_STAY and (bad := parts(name) & NAME_PARTS):
            yield f"{file}:{line}: the name {name!r} contains {sorted(bad)}"


@pytest.mark.parametrize("file", FILES)
def test_a_module_uses_the_words_of_the_field(file):
    assert list(complaints(file)) == []


if __name__ == "__main__":  # `python tests/test_language.py rlm/engine/*.py` lists all complaints
    import sys

    found = [complaint for path in sys.argv[1:] or FILES for complaint in complaints(path)]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
