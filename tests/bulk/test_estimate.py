from __future__ import annotations

import csv

import pytest
from labelling import answer
from openai_server import OpenAIServer

from rlm.bulk import map_rows
from rlm.bulk.estimate import count_rows
from rlm.bulk.split import split_rows
from rlm.errors import InputError, OutputError, SettingsError
from rlm.metering import tokens
from rlm.metering.prices import Price
from rlm.testing.scripted import ScriptedClient

PROMPT = "Label {{text}}"
SCHEMA = "label: 'odd'|'even'"


def lines_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "in.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["n", "text"])
        lines.writerows([n, "word " * (n % 30 + 1)] for n in range(300))
    return path


def test_a_count_is_of_the_calls_that_a_job_makes(rows):
    count = count_rows(
        rows, PROMPT, schema=SCHEMA, models=("m", "n"), prices={"m": Price(input=1.0, output=0.0)}
    )
    client = ScriptedClient(lambda call: answer(call.messages[0].content, lambda _item: {"label": "odd"}))
    report = map_rows(rows, PROMPT, schema=SCHEMA, client=client).report
    assert (count.rows, count.distinct) == (300, report.asked) == (300, 30)
    assert abs(count.calls - len(client.calls)) <= 1
    assert count.cost_usd == {"m": pytest.approx(count.input_tokens / 1e6), "n": None}
    assert count.longest[0][1] >= count.longest[-1][1] > 0
    assert "300 rows" in str(count)


def test_a_prompt_is_counted_as_it_is_sent(rows):
    def count_prompt(body):
        return sum(tokens.encoder_for("m").count(message["content"]) for message in body["messages"])

    with OpenAIServer(lambda _request: '{"label": "odd"}') as server:
        one = [{"text": "number 1"}]
        map_rows(one, PROMPT, schema=SCHEMA, base_url=server.base_url, model="m")
        sent = count_prompt(server.bodies[0])
    counted = count_rows(one, PROMPT, schema=SCHEMA, models=("m",)).input_tokens
    assert 0 < counted - sent < 100  # the schema beside the prompt, and what is around a message


@pytest.mark.parametrize(
    "limits", [{"max_rows": 37}, {"max_tokens": 2_000}, {"max_rows": 20, "max_tokens": 1_500}]
)
def test_parts_together_are_the_file_and_each_is_below_the_limit(rows, tmp_path, limits):
    (tmp_path / "parts").mkdir()
    parts = split_rows(rows, folder=tmp_path / "parts", prompt=PROMPT, schema=SCHEMA, **limits)
    read = [lines_of(part) for part in parts]
    assert [line for part in read for line in part[1:]] == lines_of(rows)[1:]
    assert all(part[0] == ["n", "text"] for part in read)
    assert all(len(part) - 1 <= limits.get("max_rows", 300) for part in read)
    if "max_tokens" in limits:
        sizes = [count_rows(part, PROMPT, schema=SCHEMA, rows_per_call=1).input_tokens for part in parts]
        assert max(sizes) <= limits["max_tokens"]
        assert len(sizes) < 60
    assert [part.name for part in parts[:2]] == ["in.part001.csv", "in.part002.csv"]


def test_a_row_that_fits_into_no_part_is_an_error_and_leaves_no_part(rows, tmp_path):
    with pytest.raises(InputError, match=r"row .* alone has"):
        split_rows(rows, max_tokens=100, prompt=PROMPT, schema=SCHEMA)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_part_that_exists_is_not_overwritten(rows, tmp_path):
    (tmp_path / "in.part002.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"part002\.csv exists"):
        split_rows(rows, max_rows=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "in.part002.csv"]


def test_parts_are_replaced_all_of_them_or_none(rows, tmp_path):
    split_rows(rows, folder=tmp_path / "new" / "parts", max_rows=60)
    other = tmp_path / "new" / "parts" / "in.part001.part001.csv"
    other.write_text("not of this split")
    with pytest.raises(InputError, match="alone has"):
        split_rows(rows, folder=other.parent, max_tokens=35, prompt=PROMPT, overwrite=True)
    assert [len(lines_of(path)) for path in sorted(other.parent.glob("in.part???.csv"))] == [61] * 5
    made = split_rows(rows, folder=other.parent, max_rows=200, overwrite=True)
    assert sorted(other.parent.iterdir()) == [made[0], other, made[1]]
    assert [len(lines_of(path)) for path in made] == [201, 101]


def test_tokens_may_be_counted_by_a_tokenizer_of_ones_own(rows, tmp_path):
    by_letter = count_rows(rows, PROMPT, count_tokens=len)
    assert by_letter.longest[0][1] == len('{"text": "' + "word " * 30 + '"}')
    assert by_letter.input_tokens > count_rows(rows, PROMPT).input_tokens
    free = split_rows(rows, folder=tmp_path / "free", max_tokens=300 * 11, count_tokens=lambda _text: 0)
    assert len(free) == 1


def test_one_row_is_not_a_plural():
    said = str(count_rows([{"text": "x"}], PROMPT, count_tokens=lambda _text: 1))
    assert said.startswith("1 row, 1 token, ")
    assert "\n1 call: " in said


def test_a_count_says_when_its_tokens_are_estimated():
    one = [{"text": "x"}]
    assert not (estimated := count_rows(one, PROMPT, models=("unknown-model",))).exact
    assert "Tokens are estimated" in str(estimated)
    assert (exact := count_rows(one, PROMPT, count_tokens=len)).exact
    assert "estimated" not in str(exact)


def test_a_split_needs_a_limit(rows):
    for limits in ({}, {"max_rows": 0}, {"max_tokens": -1}):
        with pytest.raises(SettingsError):
            split_rows(rows, **limits)


def test_nothing_to_count_or_split_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(InputError, match="no rows"):
        count_rows(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no rows"):
        split_rows(tmp_path / "a.csv", max_rows=1)
