"""Checks of single values that a caller gave; each raises an error that names the value and says what it must be."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from rlm.errors import RLMError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Check",
    "finite_number",
    "model_name",
    "one_of",
    "or_else",
    "positive_number",
    "whole_number",
]

Check: TypeAlias = "Callable[[str, object], None]"
"""A function of a name and its value that raises `SettingsError` when the value cannot work."""


def whole_number(
    name: str, value: object, *, minimum: int = 1, error: type[RLMError] = SettingsError
) -> None:
    """Require an int of at least `minimum`; `True` is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise error(f"{name}={value!r}: must be a whole number of at least {minimum}")


def positive_number(name: str, value: object) -> None:
    """Require an int or float above 0; infinity is one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise SettingsError(f"{name}={value!r}: must be a number above 0")


def finite_number(name: str, value: object) -> None:
    """Require a number above 0 that is not infinite: a limit that must take effect some time."""
    positive_number(name, value)
    if value == math.inf:
        raise SettingsError(f"{name}={value!r}: must be finite, such as a day: {name}=86_400")


def model_name(name: str, value: object) -> None:
    """Require a str that is not empty."""
    if not isinstance(value, str):
        raise SettingsError(f"{name} is a {type(value).__name__}: name a model, such as {name}='gpt-5-nano'")
    if not value:
        raise SettingsError(f"{name} is empty: name a model, such as {name}='gpt-5-nano'")


def one_of(*choices: object) -> Check:
    """Return a check that the value is one of the choices."""
    return partial(_one_of, choices)


def or_else(special: object, check: Check) -> Check:
    """Return a check that also accepts one special value, such as None or "auto"."""
    return partial(_or_else, special, check)


def _one_of(choices: tuple[object, ...], name: str, value: object) -> None:
    if value not in choices:
        raise SettingsError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")


def _or_else(special: object, check: Check, name: str, value: object) -> None:
    if value != special:
        check(name, value)
