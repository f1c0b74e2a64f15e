"""The file of labelled texts: appends, repairs, replaces, and is written by one process."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from hcal_hf.commands.demo import labelled_file
from hcal_hf.commands.demo.labelled_file import LabelledFile


def key_of(record):
    if "text" not in record:
        raise ValueError("has no column 'text'")
    return record["text"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "labelled.jsonl"


@pytest.fixture
def reopen(path):
    """Returns a function that closes the file, as the end of its process does, and opens it again."""
    opened = []

    def open_again():
        while opened:
            opened.pop().close()
        opened.append(LabelledFile(path, key_of))
        return opened[-1]

    yield open_again
    for file in opened:
        file.close()


def record(text, label="a"):
    return {"text": text, "labels": label}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_record_is_one_line_on_the_disc_at_once(path, reopen, monkeypatch):
    file, synced = reopen(), []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(path.read_bytes()), real(descriptor)))
    assert not path.exists()
    for number, text in enumerate(("one", "two\nlines", "drei \u2028 ü"), start=1):
        file.put(record(text))
        assert len(lines(path)) == number
        assert path.read_bytes() in synced  # the content was complete when it was written to the disc
        assert path.read_bytes().count(b"\n") == number
    assert [line["text"] for line in lines(path)] == ["one", "two\nlines", "drei \u2028 ü"]
    again = reopen()
    assert list(again) == ["one", "two\nlines", "drei \u2028 ü"]
    assert again.get("one") == record("one")
    assert again.get("four") is None


def test_a_record_is_replaced_in_its_place_and_removed(path, reopen):
    file = reopen()
    for text in ("one", "two", "three"):
        file.put(record(text))
    file.put(record("two", "b"))
    assert lines(path) == [record("one"), record("two", "b"), record("three")]
    file.remove("one")
    file.remove("unknown")
    assert lines(path) == [record("two", "b"), record("three")]
    file.put(record("one", "c"))
    assert lines(path) == [record("two", "b"), record("three"), record("one", "c")]
    assert len(reopen()) == 3
    assert list(path.parent.glob("*.tmp")) + list(path.parent.glob(".*.tmp")) == []


def test_a_failed_replacement_keeps_the_old_content(path, reopen, monkeypatch):
    file = reopen()
    file.put(record("one"))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(labelled_file.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        file.put(record("one", "b"))
    monkeypatch.undo()
    assert lines(path) == [record("one")]
    assert file.get("one") == record("one")
    assert list(path.parent.glob(".*.tmp")) == []
    file.put(record("one", "b"))
    assert lines(path) == [record("one", "b")]


def test_a_failed_append_leaves_no_part_of_a_line(path, reopen, monkeypatch):
    file = reopen()
    file.put(record("one"))
    before = path.read_bytes()

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(labelled_file.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        file.put(record("two"))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert "two" not in file
    file.put(record("two"))
    assert lines(path) == [record("one"), record("two")]


@pytest.mark.parametrize("cut", range(1, len(json.dumps(record("second")))))
def test_a_last_line_that_was_cut_anywhere_is_removed(path, reopen, cut, caplog):
    reopen().put(record("first"))
    with open(path, "ab") as file:
        file.write(json.dumps(record("second")).encode()[:cut])
    again = reopen()
    assert list(again) == ["first"]
    assert "the last line was cut by an interruption and is removed" in caplog.text
    again.put(record("second"))
    assert lines(path) == [record("first"), record("second")]


def test_a_last_line_without_its_line_break_is_kept(path, reopen, caplog):
    reopen().put(record("first"))
    path.write_bytes(path.read_bytes() + json.dumps(record("second")).encode())
    again = reopen()
    assert list(again) == ["first", "second"]
    again.put(record("third"))
    assert lines(path) == [record("first"), record("second"), record("third")]
    assert "cut" not in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\nnot json\n{"text": "b"}\n', "Line 2 of .* is no JSON object"),
        ('["a"]\n', "Line 1 of .* is no JSON object"),
        ('{"text": "a"}\n{"other": "b"}\n', "Line 2 of .* has no column 'text'"),
        ("row,text\n1,a", "Line 1 of .* is no JSON object"),
        ("my notes", "Line 1 of .* is no JSON object"),
    ],
)
def test_a_file_with_other_content_is_refused_and_not_changed(path, reopen, content, message):
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message + r".* fix the line, or give another file with --labelled"):
        reopen()
    assert path.read_text(encoding="utf-8") == content
    path.unlink()
    reopen()  # the refused file is not locked


def test_of_several_lines_with_one_key_the_last_counts_and_a_new_decision_replaces_all(path, reopen):
    path.parent.mkdir()
    path.write_text(
        "".join(json.dumps(r) + "\r\n" for r in (record("a", "x"), record("b"), record("a", "y"))), encoding="utf-8"
    )
    file = reopen()
    assert len(file) == 2
    assert file.get("a") == record("a", "y")
    file.put(record("a", "z"))
    assert lines(path) == [record("a", "z"), record("b")]


def test_changes_by_another_program_are_kept(path, reopen):
    file = reopen()
    file.put(record("one"))
    with open(path, "a", encoding="utf-8") as other:
        other.write(json.dumps(record("two", "theirs")) + "\n")
    file.refresh()
    file.put(record("one", "b"))
    assert lines(path) == [record("one", "b"), record("two", "theirs")]
    path.unlink()
    file.refresh()
    assert len(file) == 0


def test_only_one_process_can_open_the_file(path, reopen):
    reopen()
    code = textwrap.dedent(f"""
        from hcal_hf.commands.demo.labelled_file import LabelledFile
        LabelledFile({str(path)!r}, lambda record: record["text"])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Another demo page is writing" in done.stderr
    assert "give another file with --labelled" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_has_lost_no_line_that_it_reported(path, reopen):
    code = textwrap.dedent(f"""
        from hcal_hf.commands.demo.labelled_file import LabelledFile
        file = LabelledFile({str(path)!r}, lambda record: record["text"])
        for number in range(10**6):
            file.put({{"text": str(number % 40), "labels": str(number)}})
            print(number, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    reported = [process.stdout.readline() for _ in range(100)]
    process.send_signal(signal.SIGKILL)
    reported += process.stdout.readlines()
    process.wait()
    last = int(reported[-1])
    file = reopen()
    assert sorted(map(int, file)) == list(range(40))
    for number in range(last - 38, last + 1):  # the next one may be written and not reported
        assert int(file.get(str(number % 40))["labels"]) == number
    assert int(file.get(str((last + 1) % 40))["labels"]) in (last + 1, last - 39)
