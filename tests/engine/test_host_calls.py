from __future__ import annotations

import json
import time
from decimal import Decimal

import anyio
import pytest

from rlm.engine.host_calls import HostCalls
from rlm.errors import BadRequest, HostCallRefused, InvalidAnswer, Refused, UnknownModel
from rlm.events import BatchStarted
from rlm.scheduler.scheduler import Scheduler
from rlm.settings import RunSettings, SchedulerSettings
from rlm.testing.scripted import ScriptedClient
from rlm.values import Answer, HostCall

pytestmark = pytest.mark.anyio


def upper(call):
    text = call.messages[-1].content
    if text == "bad":
        return BadRequest("the endpoint says no")
    return text.upper()


class Children:
    """Child runs that answer after a moment; remembers them, and how many ran at once."""

    def __init__(self):
        self.started = []
        self.now = self.most = 0

    async def __call__(self, question, context, model):
        if question == "bad":
            raise BadRequest("the endpoint says no")
        self.started.append((question, context, model))
        self.now += 1
        self.most = max(self.most, self.now)
        await anyio.sleep(0.01)
        self.now -= 1
        return Answer({"answer": question})


def host_calls(*, depth=0, children=None, **settings):
    client = ScriptedClient(upper)
    tree = Scheduler(client).tree(run_id="r")
    return HostCalls(RunSettings(**settings), tree, "r", depth, children or Children()), client


async def serve(calls, name, **arguments):
    return await calls(HostCall(name, arguments))


async def test_a_query_asks_the_sub_model():
    calls, client = host_calls(recursive_model="small")
    assert await serve(calls, "llm_query", prompt="hello") == "HELLO"
    assert (client.calls[0].model, client.calls[0].role) == ("small", "sub")


async def test_a_query_may_name_its_model():
    calls, client = host_calls()
    await serve(calls, "llm_query", prompt="hello", model="other")
    assert client.calls[0].model == "other"


async def test_a_batch_keeps_its_order_and_a_failure_its_slot():
    calls, _ = host_calls()
    slots = await serve(calls, "llm_batch", prompts=["a", "bad", "c"], max_concurrent=2)
    assert slots == [{"text": "A"}, {"error": "the endpoint says no", "kind": "BadRequest"}, {"text": "C"}]


async def test_a_query_with_a_schema_gives_a_checked_value():
    client = ScriptedClient(["not so sure", '{"value": 7}'])
    calls = HostCalls(RunSettings(), Scheduler(client).tree(run_id="r"), "r", 0, Children())
    assert await serve(calls, "llm_query", prompt="how many?", schema="int") == 7


async def test_a_map_packs_items_and_keeps_a_failure_in_its_slot():
    def label(call):
        if "bad" in call.messages[0].content:
            return Refused("not this one")
        return '{"results": [{"id": 1, "value": "a"}, {"id": 2, "value": "b"}]}'

    client = ScriptedClient(label)
    tree = Scheduler(client).tree(run_id="r")
    calls = HostCalls(RunSettings(recursive_model="small"), tree, "r", 0, Children())
    assert await serve(calls, "llm_map", items=["x", "y"], instruction="Label.") == [
        {"value": "a"},
        {"value": "b"},
    ]
    assert await serve(calls, "llm_map", items=["bad"], instruction="Label.", schema="'a'|'b'") == [
        {"error": "not this one", "kind": "Refused"}
    ]
    assert {call.model for call in client.calls} == {"small"}


async def test_a_failed_query_raises():
    calls, _ = host_calls()
    with pytest.raises(BadRequest):
        await serve(calls, "llm_query", prompt="bad")


async def test_at_the_depth_limit_a_child_run_is_a_plain_call():
    children = Children()
    calls, client = host_calls(children=children, max_depth=1)
    assert await serve(calls, "rlm_query", question="who?", context="text") == "WHO?\n\nTEXT"
    assert children.started == []
    assert client.calls[0].messages[0].content == "who?\n\ntext"


async def test_a_plain_call_renders_what_is_not_text():
    calls, client = host_calls()
    await serve(calls, "rlm_query", question="who?", context=["a"])
    assert client.calls[0].messages[0].content == 'who?\n\n[\n  "a"\n]'


async def test_a_plain_call_that_no_sub_model_could_read_is_refused():
    calls, client = host_calls(sub_context_chars=100)
    with pytest.raises(HostCallRefused, match="pass a smaller piece"):
        await serve(calls, "rlm_query", question="who?", context="x" * 200)
    assert client.calls == []


async def test_above_the_depth_limit_a_child_run_starts_with_question_and_context():
    children = Children()
    calls, _ = host_calls(children=children, max_depth=2)
    value = await serve(calls, "rlm_query", question="who?", context=["piece"], model="m")
    assert value == {"answer": "who?"}
    assert children.started == [("who?", ["piece"], "m")]


async def test_children_run_at_once_up_to_the_cap_and_keep_their_order():
    children = Children()
    calls, _ = host_calls(children=children, max_depth=2)
    items = [{"question": str(number), "context": None} for number in range(20)]
    items[3]["question"] = "bad"
    slots = await serve(calls, "rlm_batch", items=items, max_concurrent=4)
    assert [slot.get("value", slot.get("kind")) for slot in slots] == [
        "BadRequest" if number == 3 else {"answer": str(number)} for number in range(20)
    ]
    assert children.most == 4


async def test_a_batch_of_children_at_the_depth_limit_is_a_batch_of_calls():
    calls, _ = host_calls()
    items = [{"question": "a", "context": "x"}, {"question": "bad"}]
    assert await serve(calls, "rlm_batch", items=items) == [
        {"value": "A\n\nX"},
        {"error": "the endpoint says no", "kind": "BadRequest"},
    ]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("system", {"command": "ls"}),
        ("llm_query", {}),
        ("llm_query", {"prompt": 5}),
        ("llm_query", {"prompt": "a", "model": 5}),
        ("llm_batch", {"prompts": "abc"}),
        ("llm_batch", {"prompts": ["a", 5]}),
        ("llm_batch", {"prompts": ["a"], "max_concurrent": 0}),
        ("llm_batch", {"prompts": ["a"], "max_concurrent": True}),
        ("llm_batch", {"prompts": ["a"], "max_concurrent": "10"}),
        ("llm_query", {"prompt": "a", "schema": 5}),
        ("llm_query", {"prompt": "a", "schema": "label: strr"}),
        ("llm_query", {"prompt": "a", "schema": {"pattern": "(a+)+$"}}),
        ("llm_map", {"items": "abc", "instruction": "x"}),
        ("llm_map", {"items": ["a"]}),
        ("llm_map", {"items": ["a"], "instruction": "x", "per_call": 0}),
        ("llm_map", {"items": ["a"], "instruction": "x", "per_call": True}),
        ("llm_map", {"items": ["a"], "instruction": "x", "max_concurrent": 0}),
        ("rlm_query", {"context": "x"}),
        ("rlm_batch", {"items": ["a"]}),
        ("rlm_batch", {"items": [{"question": 1}]}),
        ("__class__", {}),
        ("llm_batch", {"prompts": ["a"] * 100_001}),
        ("llm_map", {"items": ["a"] * 100_001, "instruction": ""}),
        ("rlm_batch", {"items": [{"question": "a"}] * 100_001}),
    ],
)
async def test_what_a_hostile_guest_may_send_is_refused_before_any_call(name, arguments):
    calls, client = host_calls()
    with pytest.raises(HostCallRefused):
        await serve(calls, name, **arguments)
    assert client.calls == []


# --- A sub-model that no call can reach -------------------------------------------------------------------------


UNREACHABLE = {
    "llm_query": {"prompt": "a"},
    "llm_batch": {"prompts": ["a", "b"]},
    "llm_map": {"items": ["a", "b"], "instruction": "Label."},
    "rlm_query": {"question": "a", "context": "b"},
    "rlm_batch": {"items": [{"question": "a", "context": "b"}]},
}


def unknown(call):
    return UnknownModel(f"there is no {call.model}", model=call.model)


@pytest.mark.parametrize("name", UNREACHABLE)
@pytest.mark.parametrize("max_depth", [1, 3])
async def test_a_sub_model_that_no_call_can_reach_is_the_users_to_mend(name, max_depth):
    async def start_child(question, context, model):
        raise UnknownModel("the child's cell found no such model", model="small")

    tree = Scheduler(ScriptedClient(unknown)).tree(run_id="r")
    settings = RunSettings(recursive_model="small", max_depth=max_depth)
    calls = HostCalls(settings, tree, "r", 0, start_child)
    try:
        slots = await serve(calls, name, **UNREACHABLE[name])
    except UnknownModel:
        slots = [{"kind": "UnknownModel"}]
    assert {slot["kind"] for slot in slots} == {"UnknownModel"}
    assert calls.misconfigured is not None


@pytest.mark.parametrize("name", ["llm_query", "llm_batch", "llm_map", "rlm_query"])
async def test_a_model_that_a_cell_named_and_nobody_knows_fails_that_call_alone(name):
    tree = Scheduler(ScriptedClient(unknown)).tree(run_id="r")
    calls = HostCalls(RunSettings(recursive_model="small", max_depth=1), tree, "r", 0, Children())
    try:
        slots = await serve(calls, name, **UNREACHABLE[name], model="invented")
    except UnknownModel:
        slots = [{"kind": "UnknownModel"}]
    assert {slot["kind"] for slot in slots} == {"UnknownModel"}
    assert calls.misconfigured is None


# What hostile cells send -------------------------------------------------------------------------------------------


def doubling(width, levels):
    """A schema of a few lines that is `width ** levels` schemas when its references are resolved."""
    definitions = {
        f"l{level}": {"anyOf": [{"$ref": f"#/$defs/l{level + 1}"}] * width} for level in range(levels)
    }
    return {"$defs": {**definitions, f"l{levels}": {"type": "string"}}, "$ref": "#/$defs/l0"}


def nested(values, levels):
    value = [None] * values
    for _ in range(levels):
        value = [value]
    return value


NO_ARGUMENTS_OF_A_CALL = {
    "references that double": ("llm_query", {"prompt": "p", "schema": doubling(10, 9)}),
    "references to a long schema": (
        "llm_query",
        {
            "prompt": "p",
            "schema": {
                "$defs": {"a": {"type": "string", "description": "x" * 50_000}},
                "anyOf": [{"$ref": "#/$defs/a"}] * 1_000,
            },
        },
    ),
    "a literal of 5,000 digits": ("llm_query", {"prompt": "p", "schema": "9" * 5000}),
    "a bound above any float": (
        "llm_query",
        {"prompt": "p", "schema": {"type": "number", "minimum": 10**400}},
    ),
    "a length of 5,000 digits": ("llm_query", {"prompt": "p", "schema": {"minLength": 10**5000}}),
    "a choice of 5,000 digits": ("llm_query", {"prompt": "p", "schema": {"enum": [10**5000]}}),
    "a Decimal that compares with nothing": (
        "llm_query",
        {"prompt": "p", "schema": {"const": Decimal("sNaN")}},
    ),
    "a schema of 12 MB": (
        "llm_query",
        {"prompt": "p", "schema": ",".join(f"a{i}:int" for i in range(1_000_000))},
    ),
    "a mapping of many names": (
        "llm_query",
        {"prompt": "p", "schema": {f"a{i}": "int" for i in range(300_000)}},
    ),
    "an unknown type with a long name": ("llm_query", {"prompt": "p", "schema": "a: " + "x" * 90_000}),
    "a schema of NULs": ("llm_query", {"prompt": "p", "schema": "\0" * (20 << 20)}),
    "a name of NULs": ("\0" * (20 << 20), {}),
    "a long name of a model": ("llm_query", {"prompt": "p", "model": "m" * (20 << 20)}),
    "a prompt that no model reads": ("llm_query", {"prompt": "x" * (20 << 20)}),
    "a huge number of items per call": (
        "llm_map",
        {"items": ["a"], "instruction": "i", "per_call": -(10**5000)},
    ),
    "a huge number at once": ("llm_batch", {"prompts": ["a"], "max_concurrent": 10**5000}),
    "too many prompts": ("llm_batch", {"prompts": ["a"] * 200_000}),
    "a context that renders to 775 MB": ("rlm_query", {"question": "q", "context": nested(500_000, 200)}),
}


@pytest.mark.parametrize("name", NO_ARGUMENTS_OF_A_CALL)
async def test_what_no_call_can_have_is_refused_at_once_and_in_few_words(name):
    function, arguments = NO_ARGUMENTS_OF_A_CALL[name]
    calls, client = host_calls()
    began = time.process_time()
    with pytest.raises(HostCallRefused) as refused:
        await serve(calls, function, **arguments)
    assert len(str(refused.value)) < 300
    assert time.process_time() - began < 1  # seconds to hours before
    assert client.calls == []


async def test_items_that_no_prompt_can_have_cost_only_their_own_slot():
    calls, _ = host_calls(sub_context_chars=10_000)
    slots = await serve(calls, "llm_map", items=["a", nested(300_000, 200), "b"], instruction="i", per_call=1)
    assert [slot.get("kind", "") for slot in slots] == ["", "ContextTooLong", ""]
    assert [slots[0]["value"], slots[2]["value"]] == ["I\n\nA", "I\n\nB"]


async def test_items_with_keys_that_cannot_be_compared_are_asked_about():
    calls, _ = host_calls()
    items = [{Decimal("NaN"): 1, Decimal(1): 2}]
    assert len(await serve(calls, "llm_map", items=items, instruction="i")) == 1


async def test_an_answer_that_takes_for_ever_to_check_is_refused_as_an_answer():
    schema = {"type": "array", "items": {"anyOf": [{"const": f"c{i}"} for i in range(2_000)]}}
    client = ScriptedClient(lambda _call: json.dumps({"value": ["c1999"] * 10_000}))
    calls = HostCalls(RunSettings(), Scheduler(client).tree(run_id="r"), "r", 0, Children())
    with pytest.raises(InvalidAnswer, match="too long to be checked"):
        await serve(calls, "llm_query", prompt="p", schema=schema)


async def test_a_fault_of_the_host_is_an_error_in_the_cell(caplog):
    async def broken(question, context, model):
        raise ZeroDivisionError("x" * 10_000)

    calls, _ = host_calls(children=broken, max_depth=5)
    with pytest.raises(HostCallRefused, match="ZeroDivisionError") as refused:
        await serve(calls, "rlm_query", question="q", context="c")
    assert len(str(refused.value)) <= 300
    slots = await serve(calls, "rlm_batch", items=[{"question": "q", "context": "c"}])
    assert slots[0]["kind"] == "HostCallRefused"
    assert "unexpected exception" in caplog.text


async def test_a_batch_without_a_number_uses_what_the_run_allows():
    most = {}

    def client_for(limit):
        events = []
        tree = Scheduler(ScriptedClient(upper), SchedulerSettings(max_concurrent=limit)).tree(
            run_id="r", emit=events.append
        )
        return HostCalls(RunSettings(), tree, "r", 0, Children()), events

    for limit in (60, "auto"):
        calls, events = client_for(limit)
        await serve(calls, "llm_batch", prompts=[f"p{i}" for i in range(70)])
        most[limit] = next(event.max_concurrent for event in events if isinstance(event, BatchStarted))
    assert most[60] == 60
    assert most["auto"] >= 70


async def test_the_calls_of_one_run_leave_the_loop_to_the_others():
    """The same second run is served beside an idle one and beside a hostile one; a ratio, so that slow machines pass."""

    async def worst_wait(work):
        worst = 0.0
        async with anyio.create_task_group() as tasks:

            async def watch():
                nonlocal worst
                while True:
                    began = anyio.current_time()
                    await anyio.sleep(0.005)
                    worst = max(worst, anyio.current_time() - began - 0.005)

            tasks.start_soon(watch)
            await work()
            tasks.cancel_scope.cancel()
        return worst

    calls, _ = host_calls()

    async def hostile():
        for name in ("references that double", "a schema of 12 MB", "a context that renders to 775 MB"):
            function, arguments = NO_ARGUMENTS_OF_A_CALL[name]
            with pytest.raises(HostCallRefused):
                await serve(calls, function, **arguments)

    rendering = time.monotonic()
    json.dumps(nested(500_000, 3), indent=2)  # a small part of what these arguments once cost
    rendering = time.monotonic() - rendering
    assert await worst_wait(hostile) < max(rendering, 0.2)
