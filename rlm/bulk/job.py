"""Definition of a job over rows: its options as plain data, and the record of them in a journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rlm.checks import or_else, whole_number
from rlm.errors import SettingsError
from rlm.settings import check_options, documented, option
from rlm.structured.schema import Schema, schema_of

__all__ = ["Job", "JobRecord", "PerCall"]

PerCall: TypeAlias = "int | Literal['auto']"
NOT_RECORDED = frozenset({"schema", "overwrite", "resume", "retry"})


@documented
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The prompt for rows, the models that answer it, and the files of a job."""

    prompt: str = option(
        "",
        "What to ask of each row, such as 'Label {{text}}'. Without fields, the whole row is asked about. Braces in "
        'quotes stand for themselves: {{"{{"}} is {{.',
    )
    schema: str | Mapping[str, Any] | type | Schema | None = option(
        None,
        "Form of an answer: \"label: 'spam'|'ham', score: float\", or JSON Schema. An object becomes a column per "
        "property. Without a schema, answers are text.",
    )
    models: tuple[str, ...] = option(
        ("gpt-5-nano",), "The model; several models give as many opinions on each row."
    )
    samples: int = option(
        1, "How often each model is asked; more than once needs a temperature above 0.", check=whole_number
    )
    escalate_to: str | None = option(
        None,
        "A stronger model for rows in doubt: those without an answer, and those on which opinions disagree. Its answer "
        "replaces theirs.",
    )
    escalate_when: str | None = option(
        None,
        "Which answers are in doubt, such as \"confidence < 0.7 or label == 'other'\"; without it, those on which "
        "opinions disagree.",
    )
    rows_per_call: int | Literal["auto"] = option(
        "auto", "Rows in one call; auto: as many as their length suggests."
    )
    max_concurrent: int | Literal["auto"] = option(
        "auto",
        "Calls in flight at once; auto: as many as the endpoint turns out to take.",
        check=or_else("auto", whole_number),
    )
    temperature: float | Mapping[str, float] | None = option(
        None, "Temperature of the models, or of each model by name."
    )
    max_output_tokens: int | None = option(
        None, "Output cap of each call, in tokens.", check=or_else(None, whole_number)
    )
    window_chars: int = option(400_000, "The longest prompt, in characters.")
    column: str = option("answer", "Column of an answer that is not an object.")
    limit: int | None = option(None, "Only the first N rows.", check=or_else(None, whole_number))
    pilot: int = option(
        0,
        "Rows to ask first, before the whole job is estimated; 0: no pilot.",
        check=partial(whole_number, minimum=0),
    )
    skip_when: str | None = option(
        None, "Rows that are not asked, such as \"len(text) < 3 or lang != 'en'\"."
    )
    output: str | Path | None = option(None, "The table to write: .csv .tsv .jsonl .json .parquet .xlsx")
    checkpoint: str | Path | None = option(
        None, "Journal of the answers; without it, the output with .journal added."
    )
    overwrite: bool = option(False, "Replace an output that exists, and forget its job.")
    resume: bool = option(False, "Go on with the interrupted job of this output.")
    retry: bool = option(False, "Ask the failed rows again; implies resume.")

    def __post_init__(self) -> None:
        if not self.models:
            raise SettingsError("models is empty: name a model, such as 'gpt-5-nano'")
        check_options(self)
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
        """Return the temperature for a model, or None for its own."""
        if isinstance(self.temperature, Mapping):
            return self.temperature.get(model)
        return None if model == self.escalate_to else self.temperature

    @property
    def opinions(self) -> tuple[str, ...]:
        """The model of each opinion."""
        return tuple(model for model in self.models for _ in range(self.samples))

    @property
    def stages(self) -> tuple[str, ...]:
        """The model of each stage of the job: one per opinion, then the one for rows in doubt."""
        return (*self.opinions, *self._escalation)

    @property
    def _escalation(self) -> tuple[str, ...]:
        return () if self.escalate_to is None else (self.escalate_to,)

    @property
    def journal(self) -> Path | None:
        """Path of the checkpoint, or None for a job with neither a checkpoint nor an output."""
        if self.checkpoint is not None:
            return Path(self.checkpoint)
        return None if self.output is None else Path(f"{self.output}.journal")

    @property
    def dead_letters(self) -> Path | None:
        """Path of the file with failed rows, or None for a job without an output."""
        return None if self.output is None else Path(f"{self.output}.failed.jsonl")

    def record(self) -> JobRecord:
        """Return the description of the job for its journal."""
        task = {
            "prompt": self.prompt,
            "schema": None if self.schema is None else dict(schema_of(self.schema).json),
            "models": list(self.models),
            "samples": self.samples,
            "escalate_to": self.escalate_to,
            "temperature": dict(self.temperature)
            if isinstance(self.temperature, Mapping)
            else self.temperature,
        }
        plain = {
            part.name: getattr(self, part.name) for part in fields(self) if part.name not in NOT_RECORDED
        }
        for name in ("output", "checkpoint"):
            plain[name] = None if plain[name] is None else str(plain[name])
        return JobRecord(task, plain | {"temperature": task["temperature"]})


@dataclass(frozen=True, slots=True)
class JobRecord:
    """Description of a job in its journal.

    Attributes:
        task: the options that make answers comparable: the same rows with the same task have the same answers.
        options: all options that a later session needs to run the job again.
    """

    task: Mapping[str, Any]
    options: Mapping[str, Any]

    @property
    def stages(self) -> int:
        """Number of stages: one per opinion, and one more for rows in doubt."""
        opinions = len(self.task["models"]) * int(self.task["samples"])
        return opinions + (self.task.get("escalate_to") is not None)

    def failed_rows_job(self, output: Path, journal: Path) -> Job:
        """Return the job that asks the failed rows of this one again."""
        names = {part.name for part in fields(Job)}
        kept = {name: value for name, value in self.options.items() if name in names}
        changes = {
            "models": tuple(kept["models"]),
            "schema": self.task["schema"],
            "output": output,
            "checkpoint": journal,
            "pilot": 0,
            "retry": True,
        }
        return Job(**{**kept, **changes})
