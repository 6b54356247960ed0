"""`llm_map` and schemas as a cell sees them, with a real guest."""

from __future__ import annotations

from labelling import answer

from rlm import RLM_REPL
from rlm.testing.scripted import ScriptedClient

CELL = """\
```repl
labels = llm_map(["good one", "bad", "good two", "good one"], "Label it.", "label: 'good'|'bad'")
print([label["label"] if label else None for label in labels])
print(type(labels[1]).__name__, bool(labels[1]), "must be one of" in labels[1])
print(llm_query("How many?", schema={"count": "int"})["count"] + 1)
print(llm_map([], "Label it."))
for wrong in (dict(items="abc", instruction="x"), dict(items=["a"], instruction="x", schema=5),
              dict(items=["a"], instruction="x", per_call=0)):
    try:
        llm_map(**wrong)
    except TypeError as error:
        print(error)
try:
    llm_map(["a"], "x", schema="label: strr")
except Exception as error:
    print(type(error).__name__, error)
```"""


def sub(call):
    prompt = call.messages[0].content
    if "How many?" in prompt:
        return '{"count": 41}'

    def value_of(item):
        text = item.split("\n\n")[1] if item == prompt else item
        return {"label": "good" if "good" in text else "who knows"}

    return answer(prompt, value_of)


def test_a_cell_maps_many_items_and_gets_data_back():
    client = ScriptedClient(root=[CELL, "FINAL(done)"], sub=sub)
    with RLM_REPL(client=client) as rlm:
        assert rlm.completion("a context", "a question") == "done"
    shown = client.calls[-1].messages[-1].content
    for line in (
        "['good', None, 'good', 'good']",
        "FailedCall False True",
        "\n42\n[]\n",
        "items must be a list",
        "schema must be text such as",
        "per_call must be an int of at least 1",
        "LLMError the schema 'label: strr' has the type 'strr'",
        "llm_map: 1 of 4 failed: InvalidAnswer: label: must be one of",
    ):
        assert line in shown
    asked = [call for call in client.calls if call.role == "sub" and "Label it." in call.messages[0].content]
    assert len(asked) == 3
