"""Files of JSON and JSON lines: atomic writes, torn and damaged files."""

import errno
import json
import math
import os
from typing import Any

import pytest

from steppe.errors import InputError, RunError
from steppe.records import append_line, keep_lines, read_json, read_lines, write_json


def refuse(number: int) -> Any:
    def refused(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


def test_lines_are_read_as_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"epoch": 1, "loss": 0.5})
    append_line(path, {"epoch": 2, "loss": math.nan})
    assert read_lines(path) == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}]
    assert read_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("torn", ['{"epoch": 2, "lo', '{"epoch": 2, "lo\n', "\x00\x00\x00"])
def test_a_torn_last_line_is_ignored(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n' + torn)
    assert read_lines(path) == [{"epoch": 1}]


def test_a_torn_last_line_is_cut_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epo')
    append_line(path, {"epoch": 2})
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(InputError, match="line 2 is damaged"):
        read_lines(path)


def test_keep_lines_truncates_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for epoch in range(1, 5):
        append_line(path, {"epoch": epoch})
    with path.open("a") as file:
        file.write('{"torn')
    keep_lines(path, 3)
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n'
    keep_lines(path, 3)
    keep_lines(path, 0)
    assert path.read_text() == ""
    keep_lines(tmp_path / "absent.jsonl", 0)
    assert not (tmp_path / "absent.jsonl").exists()
    with pytest.raises(RunError, match="holds 0 of 2 epochs"):
        keep_lines(path, 2)


def test_a_failed_write_leaves_only_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"seconds": 1.0})
    monkeypatch.setattr(os, "replace", refuse(errno.EIO))
    with pytest.raises(RunError):
        write_json(path, {"seconds": 2.0})
    assert json.loads(path.read_text()) == {"seconds": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("write", [write_json, append_line])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, write):
    path = tmp_path / "result.json"
    path.write_text('{"old": 1}\n')
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(RunError) as caught:
        write(path, {"new": 2})
    assert str(caught.value) == (
        f"cannot write {path}: No space left on device; free some space and run the same command again"
    )
    assert path.read_text() == '{"old": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_writing_into_a_missing_folder_is_refused(tmp_path):
    for write in (write_json, append_line):
        with pytest.raises(RunError, match="No such file or directory; make sure it can be written"):
            write(tmp_path / "absent" / "x.json", {})


NO_OBJECTS = {
    "deep": b"[" * 100_000,
    "list": b"[]",
    "bytes": b"\xff",
    "none": b"",
    "long": b"[%b]" % (b"9" * 5000),
}


@pytest.mark.parametrize("content", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_a_file_without_a_json_object_is_named_with_the_remedy(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is damaged: not a JSON object; do this"):
        read_json(path, "do this")
    path.unlink()
    with pytest.raises(InputError, match="x.json is missing; do this"):
        read_json(path, "do this")
