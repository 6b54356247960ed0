from __future__ import annotations

import json

import pytest

from rlm.bulk.formats import as_source, create
from rlm.errors import InputError, OutputError

ROWS = [{"text": 'a, "b"\nc', "n": "1"}, {"text": "=1+1", "n": ""}]


def write(path, rows, fields=("text", "n")):
    with create(path, fields) as writer:
        for row in rows:
            writer.write(row)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"])
def test_what_is_written_is_read_again(tmp_path, name):
    write(tmp_path / name, ROWS)
    assert list(as_source(tmp_path / name).rows()) == ROWS
    assert list(as_source(tmp_path / name).rows()) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_excel_is_written_and_read_and_text_never_becomes_a_formula(tmp_path):
    write(tmp_path / "a.xlsx", [*ROWS, {"text": "bell \x07", "n": ["x"]}])
    rows = list(as_source(tmp_path / "a.xlsx").rows())
    assert rows[1] == {"text": "=1+1", "n": ""} or rows[1] == {"text": "=1+1", "n": None}
    assert rows[2] == {"text": "bell ", "n": '["x"]'}
    import openpyxl

    assert openpyxl.load_workbook(tmp_path / "a.xlsx").active["A3"].data_type == "s"


def test_parquet_keeps_types_and_takes_columns_of_mixed_ones_as_text(tmp_path):
    rows = [{"n": 1, "tags": ["a"], "mixed": 1}, {"n": None, "tags": [], "mixed": {"a": 1}}]
    write(tmp_path / "a.parquet", rows, ("n", "tags", "mixed"))
    read = list(as_source(tmp_path / "a.parquet").rows())
    assert [row["n"] for row in read] == [1, None]
    assert [row["tags"] for row in read] == [["a"], []]
    assert [row["mixed"] for row in read] == ["1", '{"a": 1}']


def test_csv_writes_null_as_nothing_and_lists_as_json(tmp_path):
    write(tmp_path / "a.csv", [{"text": ["ü"], "n": None}, {"text": True, "n": 1.5}])
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == 'text,n\n"[""ü""]",\ntrue,1.5\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"a,b,a\n1,2,3\n", "two columns named 'a'"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "line 3: 3 values for 2 columns"),
        ("a.csv", b"a,b\n1\n", "line 2: 1 values for 2 columns"),
        ("a.csv", b'a,b\n1,"2\n3,4\n', "line 3: broken CSV"),
        ("a.csv", b'a,b\n1,"2"x\n', "line 2: broken CSV"),
        ("a.csv", "a\ncaf\u00e9\n".encode("latin-1"), "is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2: broken JSON"),
        ("a.jsonl", b"[1]\n", "line 1: a row is an object"),
        ("a.json", b'{"a": 1}', "holds no list"),
        ("a.json", b"[1]", "item 1: a row is an object"),
        ("a.parquet", b"hello", "no Parquet file"),
        ("a.xlsx", b"hello", "no Excel file"),
    ],
)
def test_a_broken_file_is_an_error_that_says_where(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(as_source(tmp_path / name).rows())


def test_a_file_that_is_not_there_and_a_name_that_says_nothing_are_errors(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        list(as_source(tmp_path / "none.csv").rows())
    with pytest.raises(InputError, match=r"names end in \.csv"):
        as_source(tmp_path / "a.docx")
    with pytest.raises(InputError, match="a mapping"):
        as_source([1])


def test_a_byte_order_mark_and_another_encoding_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufefftext\nx\n".encode())
    assert list(as_source(tmp_path / "a.csv").rows()) == [{"text": "x"}]
    (tmp_path / "b.csv").write_bytes("text\nCaf\u00e9\n".encode("latin-1"))
    assert list(as_source(tmp_path / "b.csv", encoding="latin-1").rows()) == [{"text": "Caf\u00e9"}]


def test_rows_may_be_mappings_or_a_data_frame():
    class Frame:
        columns = ("a",)

        def to_dict(self, orient):
            assert orient == "records"
            return [{"a": 1}]

    assert list(as_source(iter([{"a": 1}])).rows()) == [{"a": 1}]
    assert list(as_source(Frame()).rows()) == [{"a": 1}]


def test_a_file_is_there_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.jsonl"

    def rows():
        yield {"a": 1}
        raise RuntimeError("the power fails")

    with pytest.raises(RuntimeError):
        write(path, rows(), ["a"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="No such file"), create(tmp_path / "none" / "a.csv", ["a"]):
        pass


def test_a_large_field_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 1_000_000 + "\n")
    (row,) = as_source(tmp_path / "a.csv").rows()
    assert len(row["text"]) == 1_000_000


def test_lone_surrogates_are_written_out(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "\ud800", "n": 1}])
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))["n"] == 1
