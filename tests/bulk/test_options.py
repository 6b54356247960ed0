"""The typed dicts of options repeat names and types of the dataclasses that define them, and nothing else."""

from __future__ import annotations

import inspect

import pytest

from rlm.bulk import JobGroup, map_rows, retry_rows, stream_rows
from rlm.bulk.estimate import CountOptions
from rlm.bulk.job import Job
from rlm.bulk.options import EndpointOptions, JobControls, JobOptions, MapOptions, RetryOptions
from rlm.settings import options_of

DEFINED = {one.name: one.type for settings in (Job, JobControls) for one in options_of(settings)}
RENAMED = {"models": ("model", "str | Sequence[str]")}
"""An option that users give in short: `model="gpt-5"`."""
NOT_A_KEYWORD = {"prompt", "retry"}


def annotated(typed_dict):
    return {name: reference.__forward_arg__ for name, reference in typed_dict.__annotations__.items()}


def test_the_keywords_of_a_job_are_the_options_of_its_dataclasses():
    names = {name: (name, kind) for name, kind in DEFINED.items() if name not in NOT_A_KEYWORD} | RENAMED
    assert annotated(JobOptions) == dict(names.values())


@pytest.mark.parametrize("some", [RetryOptions, CountOptions])
def test_a_part_of_the_options_has_their_types(some):
    assert annotated(some).items() <= DEFINED.items()


def test_the_keywords_of_an_endpoint_are_those_of_a_group():
    parameters = inspect.signature(JobGroup.__init__).parameters
    assert (
        annotated(EndpointOptions).items()
        <= {name: one.annotation for name, one in parameters.items()}.items()
    )
    assert annotated(MapOptions) == annotated(JobOptions) | annotated(EndpointOptions)


@pytest.mark.parametrize("function", [map_rows, lambda *args, **options: next(stream_rows(*args, **options))])
@pytest.mark.parametrize(
    ("name", "hint"), [("shema", "did you mean schema"), ("max_concurrency", "max_concurrent")]
)
def test_an_unknown_keyword_is_refused_with_the_right_one(function, name, hint):
    with pytest.raises(TypeError, match=hint):
        function([{"text": "a"}], "{{text}}", **{name: 1})


def test_a_retry_takes_no_options_that_its_job_has_set():
    with pytest.raises(TypeError, match="no option 'schema'"):
        retry_rows("out.csv.failed.jsonl", schema="label: str")
