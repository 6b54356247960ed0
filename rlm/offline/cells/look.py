"""Turn 1: find the texts in the context."""

# ruff: noqa: T201 - a cell prints what the model is to see
from __future__ import annotations

from rlm.offline.cells.given import context


# isort: split
# The cell:
def texts_in(value: object, where: str) -> list[tuple[str, str]]:
    """Every text in `value`, with the expression that reaches it."""
    if isinstance(value, str):
        return [(where, value)]
    if isinstance(value, (bytes, bytearray)):
        return [(f"{where}.decode('utf-8', 'replace')", value.decode("utf-8", "replace"))]
    if isinstance(value, dict):
        is_message = isinstance(value.get("content"), str)
        limit = 60 if where == "context" else 500
        is_row = any(value.values()) and all(
            not isinstance(item, (dict, list, tuple)) and len(str(item)) < limit and "\n" not in str(item)
            for item in value.values()
        )
        if is_message:
            return [(f"{where}['content']", value["content"])]
        if not is_row:
            return [found for key in value for found in texts_in(value[key], f"{where}[{key!r}]")]
    if isinstance(value, (list, tuple)):
        return [found for i, item in enumerate(value) for found in texts_in(item, f"{where}[{i}]")]
    return [] if value is None else [(f"str({where})", str(value))]


texts = {where: text for where, text in texts_in(context, "context") if text.strip()}
size = sum(map(len, texts.values()))
print(f"a {type(context).__name__}: {len(texts):,} text{'s' * (len(texts) != 1)}, {size:,} characters")
for where, text in list(texts.items())[:3]:
    print(f"{where}, {len(text):,} characters, begins {text[:60].strip()!r}")
