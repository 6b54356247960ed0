"""What is asked of rows, and where it goes: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rlm.errors import SettingsError
from rlm.structured.schema import schema_of

__all__ = ["Job", "PerCall"]

PerCall: TypeAlias = "int | Literal['auto']"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked of rows, and where it goes; plain data.

    Attributes:
        prompt: a template with `{{field}}`s; without any, the whole row is asked about.
        schema: what an answer looks like, as text or JSON Schema; an object becomes a column per property.
        models: the models; several give as many opinions on each row.
        samples: how often each model is asked; more than once needs a temperature.
        escalate_to: a stronger model, asked about the rows in doubt once the others were; its answer stands.
        escalate_when: an expression over the columns of an answer; rows for which it is true are in doubt. By default
            those on which the opinions disagree are. Rows without an answer always are.
        rows_per_call: rows in one call, or "auto" for as many as their length suggests.
        max_concurrency: calls at once, or "auto" for as many as the scheduler lets through.
        temperature: passed to `models`, or one for each model, by name.
        max_output_tokens: output cap of each call, or None for the model's own.
        window_chars: the longest prompt, in characters.
        column: the column of an answer that is no object.
        limit: only the first rows, or None for all.
        pilot: rows to ask before the whole is estimated; 0 for no pilot.
        skip_when: an expression; rows for which it is true are not asked and have no answer.
        output: the file to write, or None.
        checkpoint: the journal; by default the output with `.journal` added.
        overwrite: whether an output that exists, and its journal, may go.
        resume: whether to go on with the journal of an earlier session.
        retry: whether to ask failed rows again; implies `resume`.
    """

    prompt: str
    schema: str | Mapping[str, Any] | None = None
    models: tuple[str, ...] = ("gpt-5-nano",)
    samples: int = 1
    escalate_to: str | None = None
    escalate_when: str | None = None
    rows_per_call: int | Literal["auto"] = "auto"
    max_concurrency: int | Literal["auto"] = "auto"
    temperature: float | Mapping[str, float] | None = None
    max_output_tokens: int | None = None
    window_chars: int = 400_000
    column: str = "answer"
    limit: int | None = None
    pilot: int = 0
    skip_when: str | None = None
    output: str | None = None
    checkpoint: str | None = None
    overwrite: bool = False
    resume: bool = False
    retry: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise SettingsError("models is empty: name a model, such as 'gpt-5-nano'")
        least_of = {"samples": 1, "max_concurrency": 1, "pilot": 0, "limit": 1, "max_output_tokens": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if (name, value) == ("max_concurrency", "auto"):
                continue
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise SettingsError(f"{name}={value!r}: must be a whole number of at least {least}")
        stronger: object = self.escalate_to
        if stronger is not None and not (isinstance(stronger, str) and stronger):
            raise SettingsError(f"escalate_to={self.escalate_to!r}: must be the name of a model")
        if self.escalate_to in self.models:
            raise SettingsError(
                f"escalate_to={self.escalate_to!r} is asked first, too: name a stronger model, or fewer models"
            )
        if self.escalate_when is not None and self.escalate_to is None:
            raise SettingsError(
                "escalate_when is given, and no model to ask then: name it by escalate_to (--escalate-to)"
            )
        every_model = (*self.models, *self._escalation)
        if isinstance(self.temperature, Mapping) and (foreign := self.temperature.keys() - set(every_model)):
            raise SettingsError(
                f"temperature names {min(foreign)!r}, which is none of the models {', '.join(every_model)}"
            )

    def temperature_of(self, model: str) -> float | None:
        """The temperature that a model is asked with, or None for its own."""
        if isinstance(self.temperature, Mapping):
            return self.temperature.get(model)
        return None if model == self.escalate_to else self.temperature

    @property
    def opinions(self) -> tuple[str, ...]:
        """The model of each opinion."""
        return tuple(model for model in self.models for _ in range(self.samples))

    @property
    def stages(self) -> tuple[str, ...]:
        """The model of each stage of a job: that of each opinion, then the one for the rows in doubt."""
        return (*self.opinions, *self._escalation)

    @property
    def _escalation(self) -> tuple[str, ...]:
        return () if self.escalate_to is None else (self.escalate_to,)

    @property
    def journal(self) -> Path | None:
        """Where the checkpoint is, or None where nobody named a place."""
        if self.checkpoint is not None:
            return Path(self.checkpoint)
        return None if self.output is None else Path(f"{self.output}.journal")

    @property
    def dead_letters(self) -> Path | None:
        """Where failed rows go, or None where nothing is written."""
        return None if self.output is None else Path(f"{self.output}.failed.jsonl")

    def task(self) -> dict[str, Any]:
        """What makes answers comparable: the same rows under the same task have the same answers."""
        schema = None if self.schema is None else dict(schema_of(self.schema).json)
        return {
            "prompt": self.prompt,
            "schema": schema,
            "models": list(self.models),
            "samples": self.samples,
            "escalate_to": self.escalate_to,
            "temperature": self.temperature,
        }
