"""Render an answer as Markdown for a terminal, without losing any of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from rich.markdown import Heading, Markdown
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["rendered"]


class _PlainHeading(Heading):
    """Heading as a bold line at the left; rich would centre it, and draw a box around the first level."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("")
        yield Text(self.text.plain, style="bold")


class _AnswerMarkdown(Markdown):
    elements = {**Markdown.elements, "heading_open": _PlainHeading}  # noqa: RUF012 - as rich declares it

    def __init__(self, text: str) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        # Rich drops HTML, and joins the lines of a paragraph; an answer may hold tags as text, and a list line by line.
        parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        self.markup = text
        self.parsed = parser.parse(text.replace("\n", "  \n"))


def rendered(text: str) -> Markdown:
    """Return the text for `rich.console.Console.print`, wrapped at words, every line on a line of its own."""
    return _AnswerMarkdown(text)
