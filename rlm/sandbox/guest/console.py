"""Small things of an interactive Python: `exit`, `quit`, `help`, `?name`, and spaces that only look like spaces."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["PoliteExit", "console_names", "plain_spaces", "questions_as_help"]

HOW_TO_ANSWER = "The cell has ended. To end the run, give its answer with FINAL(value)."
SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
PLAIN = {**dict.fromkeys(map(ord, SPACES), " "), **dict.fromkeys(map(ord, INVISIBLE), "")}


class PoliteExit(SystemExit):
    """Raised by `exit()`: the cell ends without an error."""


class Exit:
    """`exit` and `quit`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, code: Any = None) -> NoReturn:
        """End the cell."""
        print(HOW_TO_ANSWER)  # noqa: T201 - this is the cell's own output
        raise PoliteExit(code)

    def __repr__(self) -> str:
        return f"{self._name}() ends the cell. To end the run, give its answer with FINAL(value)."


class Help:
    """`help`."""

    def __call__(self, value: Any = None) -> None:
        """Print the documentation of a value."""
        if value is None:
            print(repr(self))  # noqa: T201
            return
        import pydoc

        print(pydoc.plain(pydoc.render_doc(value)))  # noqa: T201

    def __repr__(self) -> str:
        return "help(name) prints the documentation of a value; SHOW_VARS() lists the variables."


def console_names() -> dict[str, Any]:
    """Return the names that Python's `site` module would add to the builtins."""
    return {"exit": Exit("exit"), "quit": Exit("quit"), "help": Help()}


def plain_spaces(code: str) -> str:
    """Return the code with spaces for other white space, and without invisible characters.

    Also those in string literals are replaced, so call it only for code that cannot be compiled: in code that can be,
    such characters are in literals and comments alone.
    """
    return code.translate(PLAIN)


def questions_as_help(code: str) -> str:
    """Return the code with `help(name)` for lines such as `?name` and `name?`."""
    return "\n".join(map(_as_help, code.split("\n")))


def _as_help(line: str) -> str:
    name = line.strip().strip("?").strip()
    is_question = "?" in line and all(part.isidentifier() for part in name.split("."))
    return f"help({name})" if is_question and not line[:1].isspace() else line
