"""Prompt templates: `Label {{text}} for {{tone}}`, with the fields of a row in double braces.

Braces in double quotes stand for themselves: `{{"{{"}}` is `{{`. `escape` writes any text so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rlm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["Template", "escape", "read_template"]

_PLACE: Final = re.compile(r'\{\{"(?P<braces>[{}]+)"\}\}|\{\{\s*(?P<field>[^{}]+?)\s*\}\}')
_BRACES: Final = re.compile(r"[{}]+")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with places for fields; `fields` are their names. Without any, the whole row is asked about."""

    text: str
    fields: tuple[str, ...]

    def check(self, available: Collection[str], where: str) -> None:
        """Raise an error unless rows with these fields can fill the template.

        Raises:
            InputError: a field is missing (the message lists the available ones), or single braces hold a field name.
        """
        for name in self.fields:
            if name not in available:
                raise InputError(
                    f"the prompt asks for {{{{{name}}}}}, which is no field of {where}: the fields are {_shown(available)}"
                )
        for name in () if self.fields else available:
            if f"{{{name}}}" in self.text:
                raise InputError(
                    f"the prompt has {{{name}}}, which is plain text, so that the prompt would hold the whole row: "
                    f"write {{{{{name}}}}} for the field"
                )

    def content(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a row that the prompt needs.

        Raises:
            InputError: the row lacks a field.
        """
        if not self.fields:
            return dict(row)
        content = {name: row[name] for name in self.fields if name in row}
        if len(content) < len(self.fields):
            missing = next(name for name in self.fields if name not in row)
            raise InputError(f"a row has no field {missing!r}: it has {_shown(row)}")
        return content

    def render(self, content: Mapping[str, Any]) -> str:
        """Return the prompt for one row."""
        if not self.fields:
            return f"{self._with_braces()}\n\n{_text(content)}"
        return _PLACE.sub(lambda found: found["braces"] or _text(content[found["field"]]), self.text)

    @property
    def instruction(self) -> str:
        """What to do with each of several rows, each of which comes as JSON with the fields of the template."""
        text = self._with_braces()
        if not self.fields:
            return text
        if text == self.text:
            return f"{text}\n\nEach field in double braces stands for the item's field of that name."
        names = " and ".join(f"{{{{{name}}}}} stands for the item's field {name!r}" for name in self.fields)
        return f"{text}\n\n{names}; no other braces stand for anything."

    def _with_braces(self) -> str:
        """Return the text with escaped braces unescaped and its fields unchanged."""
        return _PLACE.sub(lambda found: found["braces"] or found[0], self.text)


def read_template(text: str) -> Template:
    """Read a template.

    Raises:
        InputError: it is empty, or a brace is left open.
    """
    if not text.strip():
        raise InputError("the prompt is empty: write for example 'Label {{text}}'")
    rest = _PLACE.sub(" ", text)
    if "{{" in rest or "}}" in rest:
        raise InputError(
            f"the prompt {text!r} has double braces that hold no field: write {{{{field}}}}, or for braces as such "
            '{{"{{"}}' + ' and {{"}}"}}'
        )
    fields = (found["field"] for found in _PLACE.finditer(text))
    return Template(text, tuple(dict.fromkeys(field for field in fields if field)))


def escape(text: str) -> str:
    """Return the text escaped, so that a template renders it verbatim, independent of the text around it."""
    return _BRACES.sub(r'{{"\g<0>"}}', text)


def _shown(names: Collection[str]) -> str:
    return ", ".join(map(repr, list(names)[:20])) or "none"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
