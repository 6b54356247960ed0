"""The public API: the names that other programs may import. A change of this list is a change for users."""

from __future__ import annotations

import importlib
import inspect

import pytest

import rlm

PUBLIC = {
    "rlm": {
        "RLM_REPL",
        "Answer",
        "AsyncOpenAIClient",
        "Budget",
        "OfflineClient",
        "OpenAIClient",
        "Price",
        "REPLEnv",
        "REPLResult",
        "RLMError",
        "RLMSession",
        "SandboxSettings",
        "SchedulerSettings",
        "ScriptedClient",
        "Sub_RLM",
        "__version__",
    },
    "rlm.bulk": {
        "Count",
        "FinishedRow",
        "Job",
        "JobControls",
        "JobEstimate",
        "JobGroup",
        "JobProgress",
        "JobReport",
        "MappedRows",
        "Row",
        "RowStream",
        "amap_rows",
        "aretry_rows",
        "astream_rows",
        "count_rows",
        "escape",
        "map_rows",
        "retry_rows",
        "split_rows",
        "stream_rows",
        "total",
    },
    "rlm.testing": {"LauncherCheck", "Script", "ScriptedAnswer", "ScriptedClient", "check_launcher"},
    "rlm.rlm_repl": {"RLM_REPL"},
    "rlm.repl": {"REPLEnv", "REPLResult", "Sub_RLM"},
    "rlm.utils.llm": {"AsyncOpenAIClient", "OpenAIClient"},
    "rlm.utils.prompts": {"DEFAULT_QUERY", "build_system_prompt", "system_prompt"},
}


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_exports_these_names_and_no_others(module):
    imported = importlib.import_module(module)
    assert set(imported.__all__) == PUBLIC[module]
    assert all(hasattr(imported, name) for name in PUBLIC[module])


@pytest.mark.parametrize(
    "signature",
    [
        "RLM_REPL.completion(context, query)",
        "RLM_REPL.session(context)",
        "RLMSession.ask(query)",
        "REPLEnv.code_execution(code)",
        "Sub_RLM.completion(prompt)",
        "Sub_RLM.batch_completion(prompts, max_concurrent)",
    ],
)
def test_the_arguments_of_public_methods_keep_their_names_and_order(signature):
    path, _, parameters = signature.removesuffix(")").partition("(")
    kind, method = path.split(".")
    found = list(inspect.signature(getattr(getattr(rlm, kind), method)).parameters)
    assert found == ["self", *parameters.split(", ")]


def test_the_first_arguments_of_the_facade_keep_their_order():
    order = ["model", "recursive_model", "max_iterations", "max_depth", "enable_logging"]
    parameters = inspect.signature(rlm.RLM_REPL).parameters.values()
    assert [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD] == order
