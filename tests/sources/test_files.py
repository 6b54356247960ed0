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


def test_files_of_one_name_are_told_apart_by_their_paths(tmp_path):
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
        (lambda tmp, file: file(b"\x7fELF\x00\x01\x02"), "binary"),
        (lambda tmp, file: file(b"abc\xff\xfe"), r"not utf-8 text \(byte 3\)"),
    ],
)
def test_a_path_that_is_no_text_is_one_clear_error(tmp_path, file, make, message):
    path = make(tmp_path, file)
    with pytest.raises(ContextError, match=message) as error:
        sources.load(path)
    assert str(path) in str(error.value)


def test_an_encoding_that_does_not_exist_is_told(file):
    with pytest.raises(ContextError, match="no encoding 'klingon'"):
        sources.read_text(file(b"a"), "klingon")


def test_a_path_may_be_relative(file, monkeypatch):
    path = file(b"x")
    monkeypatch.chdir(path.parent)
    assert sources.load(Path("a.txt")) == "x"


def test_the_name_of_a_file_is_text_that_looks_like_a_mistake(file, monkeypatch):
    monkeypatch.chdir(file(b"1", "contract.txt").parent)
    assert "pass pathlib.Path('contract.txt') to read it" in sources.name_of_a_file("contract.txt")
    assert "[pathlib.Path('contract.txt'), …]" in sources.name_of_a_file(["contract.txt", "contract.txt"])


@pytest.mark.parametrize(
    "context",
    ["", "missing.txt", "a\0b", "x" * 5_000, ".", [], ["contract.txt", "more"], {}, None, 7, b"a", [7]],
)
def test_other_contexts_are_no_mistake(file, monkeypatch, context):
    monkeypatch.chdir(file(b"1", "contract.txt").parent)
    assert sources.name_of_a_file(context) == ""


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
