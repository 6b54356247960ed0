from __future__ import annotations

import json
import os
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.util import find_spec

import pytest

from rlm.bulk.io.formats import as_source, create
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
        ("a.jsonl", b"[1]\n", "line 1: a row must be a JSON object"),
        ("a.json", b'{"a": 1}', "is not a list of objects"),
        ("a.json", b"[1]", "item 1: a row must be a JSON object"),
        ("a.parquet", b"hello", "cannot be read as Parquet"),
        ("a.xlsx", b"hello", "cannot be read as Excel"),
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


def parquet_of(tmp_path, values):
    """A column of these values, all but the last of which are 2,000 times the first."""
    first, *later = values
    write(tmp_path / "a.parquet", [{"x": value} for value in [first] * 2_000 + later], ("x",))
    read = [row["x"] for row in as_source(tmp_path / "a.parquet").rows()]
    assert len(read) == 2_000 + len(later)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    return [read[0], *read[2_000:]]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([1, 2.5], [1.0, 2.5]),
        ([2**60 + 1, 0.5], [str(2**60 + 1), "0.5"]),
        ([0.5, 2**60 + 1], ["0.5", str(2**60 + 1)]),
        ([1, "one"], ["1", "one"]),
        ([1, True], ["1", "true"]),
        ([1, 2**70], ["1", str(2**70)]),
        ([Decimal("1.5"), Decimal("1234.25")], [Decimal("1.50"), Decimal("1234.25")]),
        ([Decimal("1.1"), 0.5], ['"1.1"', "0.5"]),
        (
            [date(2020, 1, 1), datetime.fromisoformat("2020-01-01T05:00")],
            ['"2020-01-01"', '"2020-01-01 05:00:00"'],
        ),
        ([[], ["a"]], [[], ["a"]]),
        ([{"a": 1}, {"b": 2}], [{"a": 1, "b": None}, {"a": None, "b": 2}]),
        ([{"a": 1}, {"a": 1.5}], [{"a": 1.0}, {"a": 1.5}]),
        ([{"a": 1}, {"a": "x"}], ['{"a": 1}', '{"a": "x"}']),
        ([1, None, 3], [1, None, 3]),
        ([None, 3], [None, "3"]),
    ],
)
def test_a_later_value_that_does_not_fit_a_parquet_column_widens_it_and_loses_nothing(tmp_path, values, read):
    assert parquet_of(tmp_path, values) == read


def test_parquet_with_nanoseconds_is_read_or_refused_in_words(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": pa.array([1], pa.duration("ns"))}), tmp_path / "a.parquet")
    if find_spec("pandas"):
        pytest.skip("pandas has a type for them")
    with pytest.raises(InputError, match="has values that no Python type can hold"):
        list(as_source(tmp_path / "a.parquet").rows())


def test_dates_among_times_in_parquet_keep_the_times(tmp_path):
    write(
        tmp_path / "a.parquet",
        [{"x": date(2020, 1, 1)}, {"x": datetime.fromisoformat("2020-01-01T05:00")}],
        ("x",),
    )
    assert "05:00" in list(as_source(tmp_path / "a.parquet").rows())[1]["x"]


def test_what_a_cell_of_excel_cannot_hold_is_written_as_text_or_refused_and_never_cut(tmp_path):
    when = datetime(2020, 1, 1, tzinfo=UTC)
    write(tmp_path / "a.xlsx", [{"text": when, "n": {1}}])
    assert list(as_source(tmp_path / "a.xlsx").rows()) == [{"text": when.isoformat(), "n": '"{1}"'}]
    with pytest.raises(OutputError, match="row 2: a text of 40,000 characters"):
        write(tmp_path / "b.xlsx", [{"text": "a"}, {"text": "x" * 40_000}])
    assert not (tmp_path / "b.xlsx").exists()


def excel_of(path, lines):
    import openpyxl

    book = openpyxl.Workbook()
    for line in lines:
        book.active.append(line)
    book.save(path)
    return as_source(path)


def test_a_value_of_an_excel_column_without_a_name_is_not_lost(tmp_path):
    assert list(excel_of(tmp_path / "a.xlsx", [["a", None], ["1", None]]).rows()) == [{"a": "1"}]
    with pytest.raises(InputError, match="line 2: a value in column 2, which has no name"):
        list(excel_of(tmp_path / "b.xlsx", [["a"], ["1", "lost"]]).rows())


def test_an_excel_chart_holds_no_rows(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    book.create_chartsheet()
    book.active = 1
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(InputError):
        list(as_source(tmp_path / "a.xlsx").rows())


@pytest.mark.parametrize("encoding", ["utf-99", "utf-16"])
def test_an_encoding_that_cannot_be_is_an_error_that_names_it(tmp_path, encoding):
    (tmp_path / "a.csv").write_text("a\n12\n")
    with pytest.raises(InputError, match=encoding):
        list(as_source(tmp_path / "a.csv", encoding=encoding).rows())


def test_a_number_that_is_too_long_is_broken_json(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": ' + "1" * 5_000 + "}]")
    with pytest.raises(InputError, match="broken JSON"):
        list(as_source(tmp_path / "a.json").rows())


def test_a_pipe_is_refused_since_rows_are_read_more_than_once(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(InputError, match="is not a regular file"):
        list(as_source(tmp_path / "a.csv").rows())


def test_the_names_of_fields_are_text():
    with pytest.raises(InputError, match="row 2 has a field named 1"):
        as_source([{"a": 1}, {1: 1}])


def test_twenty_thousand_columns_are_read_at_once(tmp_path):
    header = ",".join(f"column {number}" for number in range(20_000))
    (tmp_path / "a.csv").write_text(f"{header}\n{header}\n")
    began = time.perf_counter()
    assert len(next(as_source(tmp_path / "a.csv").rows())) == 20_000
    assert time.perf_counter() - began < 5


def test_an_output_that_is_a_link_goes_on_to_be_one(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "real").write_text("old")
    (tmp_path / "a.csv").symlink_to(tmp_path / "data" / "real")
    write(tmp_path / "a.csv", ROWS)
    assert (tmp_path / "a.csv").is_symlink()
    assert list(as_source(tmp_path / "a.csv").rows()) == ROWS


@pytest.mark.parametrize("ending", [".csv", ".xlsx", ".parquet"])
def test_an_output_that_cannot_be_written_fails_before_its_first_row(tmp_path, ending):
    with pytest.raises(OutputError, match="too long"), create(tmp_path / ("a" * 245 + ending), ("a",)):
        pytest.fail("began to write")


def test_two_jobs_never_write_one_output(tmp_path):
    with create(tmp_path / "a.csv", ("text", "n")) as writer:
        writer.write(ROWS[0])
        with pytest.raises(OutputError, match="another job is writing"):
            write(tmp_path / "a.csv", ROWS)
        writer.write(ROWS[1])
    assert list(as_source(tmp_path / "a.csv").rows()) == ROWS


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_that_is_written_can_be_read_by_anyone(tmp_path, name):
    write(tmp_path / name, [{"text": [float("nan"), {"x": float("inf")}], "n": float("nan")}])
    assert list(as_source(tmp_path / name).rows()) == [{"text": [None, {"x": None}], "n": None}]


def test_what_is_missing_in_a_data_frame_is_none():
    class NaTType:
        pass

    class Frame:
        columns = (0, "b")

        def to_dict(self, _orient):
            return [{0: float("nan"), "b": NaTType()}, {0: 1.5, "b": "x"}]

    assert list(as_source(Frame()).rows()) == [{"0": None, "b": None}, {"0": 1.5, "b": "x"}]
