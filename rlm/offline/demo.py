"""The long text that every Python ships: what `rlm demo` asks its questions of."""

from __future__ import annotations

__all__ = ["python_topics"]


def python_topics() -> str:
    """The help topics of the Python language (`pydoc_data.topics`) as one text.

    Some 465,000 characters with Python 3.11, more with later ones. Each topic opens with its own underlined
    heading, so the text reads as a book of chapters in the alphabetical order of the topics' names.
    """
    from pydoc_data.topics import topics

    return "\n\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
