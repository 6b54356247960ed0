from __future__ import annotations

from pathlib import Path

import pytest

from rlm import sources
from rlm.errors import ContextError


@pytest.fixture
def file(tmp_path):
    def write(data, name="a.txt"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"one\r\ntwo\n", "one\r\ntwo\n"),
        ("naïve 長".encode(), "naïve 長"),
        ("naïve".encode("utf-8-sig"), "naïve"),
        ("naïve 長".encode("utf-16"), "naïve 長"),
        ("naïve".encode("utf-32"), "naïve"),
        (b"", ""),
    ],
)
def test_a_file_becomes_its_text_exactly(file, data, text):
    assert sources.load(file(data)) == text


def test_several_files_become_a_dict_by_name(file):
    paths = [file(b"1", "a.txt"), file(b"2", "b.txt")]
    assert sources.load(paths) == {"a.txt": "1", "b.txt": "2"}


def test_files_with_the_same_name_are_labelled_by_their_paths(tmp_path):
    paths = [tmp_path / folder / "a.txt" for folder in ("x", "y")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    assert sources.read_files(paths) == {str(paths[0]): "x", str(paths[1]): "y"}


def test_what_is_not_a_path_is_left_alone():
    context = ["/etc/hostname", {"a": 1}]
    assert sources.load(context) is context
    assert sources.load("/etc/hostname") == "/etc/hostname"


def test_an_encoding_can_be_named(file):
    assert sources.read_text(file("naïve".encode("latin-1")), "latin-1") == "naïve"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp, file: tmp / "nothing.txt", "there is no such file"),
        (lambda tmp, file: tmp, "is a folder"),
        (lambda tmp, file: file(b"\x7fABC\x00\x01\x02"), "binary"),
        (lambda tmp, file: file(b"abc\xff\xfe"), r"not utf-8 text \(byte 3\)"),
    ],
)
def test_a_path_that_is_no_text_is_one_clear_error(tmp_path, file, make, message):
    path = make(tmp_path, file)
    with pytest.raises(ContextError, match=message) as error:
        sources.load(path)
    assert str(path) in str(error.value)


def test_an_unknown_encoding_is_refused(file):
    with pytest.raises(ContextError, match="no encoding 'klingon'"):
        sources.read_text(file(b"a"), "klingon")


def test_a_path_may_be_relative(file, monkeypatch):
    path = file(b"x")
    monkeypatch.chdir(path.parent)
    assert sources.load(Path("a.txt")) == "x"


def test_the_file_name_warning_is_text_that_looks_like_a_mistake(file, monkeypatch):
    monkeypatch.chdir(file(b"1", "contract.txt").parent)
    assert "pass pathlib.Path('contract.txt') to read it" in sources.file_name_warning("contract.txt")
    assert "[pathlib.Path('contract.txt'), …]" in sources.file_name_warning(["contract.txt", "contract.txt"])


def test_a_text_that_looks_like_the_name_of_a_missing_file_is_a_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("contract.txt", "My Contract.PDF", "data/rows.csv"):
        assert f"{tmp_path} has no such file" in sources.file_name_warning(name)


@pytest.mark.parametrize(
    "context",
    [
        "",
        "missing",
        "a sentence.",
        "a\0b",
        "x" * 5_000,
        ".",
        [],
        ["contract.txt", "more"],
        {},
        None,
        7,
        b"a",
        [7],
    ],
)
def test_other_contexts_are_no_mistake(file, monkeypatch, context):
    monkeypatch.chdir(file(b"1", "contract.txt").parent)
    assert sources.file_name_warning(context) == ""


def test_a_dict_of_paths_keeps_its_names(file):
    assert sources.load({"x": file(b"1", "a.txt"), 2: file(b"2", "b.txt")}) == {"x": "1", 2: "2"}


def test_paths_next_to_other_things_are_refused(file):
    path = file(b"1")
    for context in ([path, "text"], {"a": path, "b": 7}, (None, path)):
        with pytest.raises(ContextError, match=r"has paths, such as .*, next to a"):
            sources.load(context)


def test_an_open_file_is_refused_with_the_remedy(file):
    with file(b"1").open() as opened, pytest.raises(ContextError, match="an open file: pass its text"):
        sources.load(opened)


HEADS = {
    "a PDF": b"%PDF-1.7",
    "a PNG image": b"\x89PNG\r\n\x1a\n\0",
    "a JPEG image": b"\xff\xd8\xff\xe0\0",
    "a GIF image": b"GIF89a\x10\0\x10\0",
    "a WebP image": b"RIFF\x10\0\0\0WEBPVP8 ",
    "an SQLite database": b"SQLite format 3\0",
    "a Parquet file": b"PAR1\x15\x04",
    "a Word document": b"PK\x03\x04\x14\0[Content_Types].xml\0PK\x03\x04word/document.xml",
    "an Excel workbook": b"PK\x03\x04\x14\0[Content_Types].xml\0PK\x03\x04xl/workbook.xml",
    "a zip archive": b"PK\x03\x04\x14\0a.txt",
    "compressed with gzip": b"\x1f\x8b\x08",
    "an ELF program": b"\x7fELF\x02",
    "a tar archive": b"a.txt".ljust(257, b"\0") + b"ustar\x0000",
    "a video or image file": b"\0\0\0\x18ftypisom",
}


@pytest.mark.parametrize("encoding", ["klingon", "base64", "hex", "rot13"])
def test_what_is_no_encoding_of_text_is_refused(file, encoding):
    with pytest.raises(ContextError, match=f"there is no encoding '{encoding}'"):
        sources.read_text(file(b"abc"), encoding)


@pytest.mark.parametrize("kind", HEADS)
def test_a_file_that_is_not_text_is_named_by_its_format(file, kind):
    with pytest.raises(ContextError, match=f"a.bin: is {kind}.* turn it into text first: "):
        sources.load(file(HEADS[kind], "a.bin"))


@pytest.mark.parametrize(
    "text",
    [
        "GIF89a is a format",
        "PAR1 and PAR2",
        "BZh91 is a code",
        "PK means a key",
        "box ftypisom of a video",
        f"{'x' * 256} ustar is the mark of a tar archive",
    ],
)
def test_a_text_that_begins_like_another_format_is_text(file, text):
    assert sources.load(file(text.encode())) == text


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("naïve “café”".encode("cp1252"), "cp1252"),
        ("naïve".encode("latin-1"), "cp1252"),
        ("plain text".encode("utf-16-le"), "utf-16-le"),
        ("naïve text".encode("utf-16-be"), "utf-16-be"),
    ],
)
def test_the_encoding_that_fits_is_suggested_and_works(file, data, encoding):
    with pytest.raises(ContextError, match=f"--encoding {encoding},"):
        sources.load(file(data))
    assert sources.read_text(file(data), encoding) == data.decode(encoding)


def test_an_encoding_of_many_bytes_is_not_taken_for_one_of_single_bytes(file):
    with pytest.raises(ContextError, match="such as shift_jis"):
        sources.load(file("\u8868\u793a \u8868\u793a \u30c6\u30b9\u30c8".encode("shift_jis")))


def test_utf_16_without_its_mark_is_read_when_it_is_named(file):
    assert sources.read_text(file("plain".encode("utf-16-le")), "utf-16") == "plain"


def test_a_large_file_is_read_in_pieces_that_are_reported(file):
    text = "é" * 5_000_000
    reads = []
    path = file(text.encode())
    assert sources.load(path, lambda *read: reads.append(read)) == text
    assert [size for _, _, size in reads] == [10_000_000] * 3
    assert reads[-1] == (str(path), 10_000_000, 10_000_000)


def test_the_position_of_a_byte_that_is_no_text_is_that_in_the_whole_file(file):
    with pytest.raises(ContextError, match=r"not utf-8 text \(byte 8,000,001\)"):
        sources.load(file(b"a" * 8_000_001 + b"\xff"))
