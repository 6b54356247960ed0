from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.errors import JournalError, JournalLocked
from rlm.journal.log import Journal, read, read_record


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.journal"


def records(path):
    return [record["n"] for _, record in read(path)]


def write(path, *numbers):
    with Journal.open(path, kind="test") as journal:
        return [journal.append({"type": "number", "n": number}) for number in numbers]


def test_what_is_appended_is_read_again_in_order(path):
    write(path, 1, 2)
    write(path, 3)
    assert records(path) == [1, 2, 3]


def test_a_record_is_found_by_its_offset(path):
    offsets = write(path, "a", "b", "c")
    with path.open("rb") as file:
        assert read_record(file, offsets[1])["n"] == "b"
        with pytest.raises(JournalError, match="no record at byte"):
            read_record(file, offsets[1] + 3)


def test_a_journal_may_be_read_while_it_is_written(path):
    with Journal.open(path, kind="test") as journal:
        journal.append({"n": 1})
        assert records(path) == [1]


def test_only_its_owner_may_read_a_journal(path):
    write(path, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_texts_of_any_language_are_readable_in_the_file(path):
    write(path, "Größe\n寸法\u2028\0")
    assert records(path) == ["Größe\n寸法\u2028\0"]
    assert "Größe\\n寸法".encode() in path.read_bytes()
    with path.open("ab") as file:
        file.write('{"n":"寸法'.encode()[:-1])
    assert records(path) == ["Größe\n寸法\u2028\0"]


def test_lone_surrogates_survive(path):
    write(path, "\ud800 é")
    assert records(path) == ["\ud800 é"]


@given(st.integers(0, 200))
def test_a_journal_cut_at_any_byte_goes_on_after_its_last_whole_record(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "a.journal"
    write(path, *range(5))
    whole = path.read_bytes()
    kept = whole[: max(0, len(whole) - cut)]
    path.write_bytes(kept)
    expected = list(range(max(0, kept.count(b"\n") - 1)))
    assert records(path) == expected
    write(path, "next")
    assert records(path) == [*expected, "next"]


@pytest.mark.parametrize("tail", [b"\0\0\0\0", b"\0\0\n", b'{"n": 5', b"[1]\n", b"x" * 200_000])
def test_a_last_line_that_is_no_record_is_dropped(path, tail):
    write(path, 1)
    with path.open("ab") as file:
        file.write(tail)
    assert records(path) == [1]
    with Journal.open(path, kind="test") as journal:
        assert journal.torn_bytes == len(tail)
        journal.append({"n": 2})
    assert records(path) == [1, 2]


def test_damage_before_the_last_line_is_an_error_that_says_where(path):
    offsets = write(path, 1, 2, 3)
    data = bytearray(path.read_bytes())
    data[offsets[1]] = 0
    path.write_bytes(data)
    with pytest.raises(JournalError, match=f"damaged at byte {offsets[1]:,}"):
        records(path)


@pytest.mark.parametrize(
    "content", [b"hello", b"hello\n", b"hello\nyou\n", b'{"a": 1}\n', b"[]\n", b'{"a": 1}\nhello']
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(JournalError, match="no journal"):
        Journal.open(path, kind="test")
    if content.endswith(b"\n"):
        with pytest.raises(JournalError, match="no journal"):
            records(path)
    assert path.read_bytes() == content


def test_a_journal_of_another_kind_or_a_newer_version_is_refused(path):
    write(path, 1)
    with pytest.raises(JournalError, match="of kind 'test'"):
        Journal.open(path, kind="bulk")
    with path.open("ab") as file:
        file.write(json.dumps({"v": 99, "n": 2}).encode() + b"\n")
    with pytest.raises(JournalError, match="version 99"):
        records(path)


def test_a_second_writer_is_refused_until_the_first_has_closed(path):
    with Journal.open(path, kind="test"), pytest.raises(JournalLocked, match="another process"):
        Journal.open(path, kind="test")
    write(path, 1)


def test_a_journal_that_is_removed_while_it_is_opened_is_not_written_to_nowhere(path, monkeypatch):
    write(path, 1)
    monkeypatch.setattr("rlm.journal.log._lock", lambda _descriptor, place: place.unlink())
    with pytest.raises(JournalLocked, match="was removed"):
        Journal.open(path, kind="test")


def test_the_lock_of_a_killed_writer_goes_with_it_and_its_records_stay(path):
    script = (
        "import sys; from rlm.journal.log import Journal\n"
        f"journal = Journal.open({str(path)!r}, kind='test')\n"
        "for n in range(10**9): journal.append({'n': n}); n == 100 and print('ready', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(JournalLocked):
            Journal.open(path, kind="test")
        process.send_signal(signal.SIGKILL)
    found = records(path)
    assert found == list(range(len(found)))
    assert len(found) > 100
    write(path, "mine")


def test_what_is_no_json_leaves_no_trace(path):
    with Journal.open(path, kind="test") as journal:
        for wrong in ({1, 2}, float("nan")):
            with pytest.raises(JournalError, match="no JSON"):
                journal.append({"n": wrong})
        journal.append({"n": 1})
    assert records(path) == [1]


def test_a_full_disk_leaves_no_half_record(path):
    script = (
        "import resource, signal; from rlm.journal.log import Journal; from rlm.errors import JournalError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"journal = Journal.open({str(path)!r}, kind='test')\n"
        "try:\n    for n in range(1000): journal.append({'n': n})\n"
        "except JournalError as error: print(error)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert "cannot be written: File too large" in printed
    assert path.read_bytes().endswith(b"}\n")
    found = records(path)
    assert found == list(range(len(found)))


def test_a_journal_in_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(JournalError, match="No such file"):
        Journal.open(tmp_path / "none" / "a.journal", kind="test")
    with pytest.raises(JournalError, match="No such file"):
        list(read(tmp_path / "none"))


def test_a_closed_journal_takes_nothing(path):
    journal = Journal.open(path, kind="test")
    journal.sync()
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.append({"n": 1})
