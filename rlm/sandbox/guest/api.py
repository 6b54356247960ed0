"""The functions with which a cell calls models and starts child runs.

Each checks its arguments, so that a mistake raises in the cell with the name of the argument; the host, which trusts no
guest, checks them again. To add one: write it here and add it to `functions`;
handle it in `rlm/engine/host_calls.py`, and describe it to the root model in `rlm/engine/prompts.py`. One that starts child
runs also goes into `child_arguments` of `rlm/sandbox/messages.py`.
"""

from __future__ import annotations

import sys

from .failures import FailedCall, LLMError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["namespace"]


def namespace(call: Callable[..., Any]) -> dict[str, Any]:
    """Return the functions by name; `call` makes a host call on the channel of the running process."""

    def llm_query(prompt: str, model: str | None = None, schema: Any = None) -> Any:
        """Ask the sub-model one question; return its answer as a str, or with `schema` as data of that form.

        Raises LLMError when the call failed for good.
        """
        _require_text("llm_query", "prompt", prompt)
        _require_model("llm_query", model)
        _require_schema("llm_query", schema)
        return call("llm_query", {"prompt": prompt, "model": model, "schema": schema})

    def llm_batch(
        prompts: Iterable[str], max_concurrent: int | None = None, model: str | None = None
    ) -> list[str]:
        """Ask many questions at once; return the answers in the same order. A slot whose call failed is false.

        As many are asked at once as the run allows, or `max_concurrent`.
        """
        asked = _texts("llm_batch", prompts)
        _require_max_concurrent("llm_batch", max_concurrent)
        _require_model("llm_batch", model)
        if not asked:
            return []
        slots = call("llm_batch", {"prompts": asked, "max_concurrent": max_concurrent, "model": model})
        return _slots("llm_batch", slots, "text")

    def llm_map(
        items: Iterable[Any],
        instruction: str,
        schema: Any = None,
        per_call: int | str = "auto",
        max_concurrent: int | None = None,
        *,
        model: str | None = None,
    ) -> list[Any]:
        """Ask the same of many items, several in one call; return values in the same order. A failed slot is falsy."""
        asked = _iterable("llm_map", "items", items)
        _require_text("llm_map", "instruction", instruction)
        _require_schema("llm_map", schema)
        if per_call != "auto":
            _require_count("llm_map", per_call, "per_call")
        _require_max_concurrent("llm_map", max_concurrent)
        _require_model("llm_map", model)
        if not asked:
            return []
        arguments = {"items": asked, "instruction": instruction, "schema": schema, "model": model}
        slots = call("llm_map", {**arguments, "per_call": per_call, "max_concurrent": max_concurrent})
        return _slots("llm_map", slots, "value")

    def rlm_query(question: str, context: Any = None, model: str | None = None) -> Any:
        """Have a child run answer a question about its own context; return its answer."""
        _require_text("rlm_query", "question", question)
        _require_model("rlm_query", model)
        arguments = {"question": question, "context": context, "model": model}
        return call("rlm_query", arguments, [arguments])

    def rlm_batch(items: Iterable[Any], max_concurrent: int | None = None) -> list[Any]:
        """Have child runs answer many (question, context) pairs at once. A slot whose run failed is falsy."""
        asked = [_question(index, item) for index, item in enumerate(_iterable("rlm_batch", "items", items))]
        _require_max_concurrent("rlm_batch", max_concurrent)
        if not asked:
            return []
        slots = call("rlm_batch", {"items": asked, "max_concurrent": max_concurrent}, asked)
        return _slots("rlm_batch", slots, "value")

    functions: dict[str, Any] = {
        "llm_query": llm_query,
        "llm_batch": llm_batch,
        "llm_query_batched": llm_batch,
        "llm_map": llm_map,
        "rlm_query": rlm_query,
        "rlm_batch": rlm_batch,
        "rlm_query_batched": rlm_batch,
    }
    for function in functions.values():
        function.__module__ = "builtins"
        function.__qualname__ = function.__name__
    return {**functions, "LLMError": LLMError}


def _require_text(function: str, name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{function}: {name} must be a str, not {type(value).__name__}: {_head(value)}")


def _require_model(function: str, model: Any) -> None:
    if model is not None and not isinstance(model, str):
        raise TypeError(f"{function}: model must be a model's name or None, not {type(model).__name__}")


def _require_schema(function: str, schema: Any) -> None:
    if schema is not None and not isinstance(schema, (str, dict)):
        raise TypeError(
            f"{function}: schema must be text such as 'label: str, score: float' or a JSON Schema as a dict, "
            f"not {_head(schema)}"
        )


def _require_max_concurrent(function: str, count: Any) -> None:
    if count is not None:
        _require_count(function, count, "max_concurrent")


def _require_count(function: str, count: Any, name: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise TypeError(f"{function}: {name} must be an int of at least 1, not {_head(count)}")


def _iterable(function: str, name: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, dict)):
        raise TypeError(f"{function}: {name} must be a list, not one {type(value).__name__}")
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{function}: {name} must be a list, not {type(value).__name__}") from None


def _texts(function: str, prompts: Any) -> list[str]:
    if isinstance(prompts, str):
        raise TypeError(
            f"{function}: prompts must be a list of str, not one str; for one prompt use llm_query"
        )
    asked = _iterable(function, "prompts", prompts)
    for index, prompt in enumerate(asked):
        _require_text(function, f"prompts[{index}]", prompt)
    return asked


def _question(index: int, item: Any) -> dict[str, Any]:
    if isinstance(item, str):
        question, context = item, None
    elif isinstance(item, dict) and "question" in item and not item.keys() - {"question", "context"}:
        question, context = item["question"], item.get("context")
    elif isinstance(item, (list, tuple)) and len(item) == 2:  # noqa: PLR2004 - a pair
        question, context = item
    else:
        raise TypeError(f"rlm_batch: items[{index}] must be a pair (question, context), not {_head(item)}")
    _require_text("rlm_batch", f"the question of items[{index}]", question)
    return {"question": question, "context": context}


def _slots(function: str, slots: list[dict[str, Any]], key: str) -> list[Any]:
    """Return the values of a batch, with a `FailedCall` for each failure; print one line with their reasons to stderr."""
    results: list[Any] = [
        slot[key] if key in slot else FailedCall(slot["kind"], slot["error"]) for slot in slots
    ]
    reasons: dict[str, int] = {}
    for result in results:
        if type(result) is FailedCall:
            reason = f"{result.kind}: {result.error}"
            reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        grouped = "; ".join(
            f"{reason} ({count} times)" if count > 1 else reason for reason, count in reasons.items()
        )
        text = f"{function}: {sum(reasons.values())} of {len(results)} failed: {grouped}"
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the cell's own output
    return results


def _head(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the value is a cell's, and its repr may do anything
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"  # noqa: PLR2004 - one line of an error message
