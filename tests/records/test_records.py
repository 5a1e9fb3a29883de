from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from steppe import records
from steppe.errors import InputError, RunError
from steppe.records import append_line, keep_lines, load, read_lines, write_json, write_text

MINIMAL: dict[str, Any] = {
    "format": 1,
    "created": "2026-03-01",
    "command": "steppe compare",
    "environment": {},
    "study": {},
    "data": {},
    "runs": [{"digest": "0a", "method": "plain", "model": "m", "dataset": "d", "seed": 0}],
    "methods": {"plain": {"summary": "", "resolved": "Plain()", "controls": []}},
}


def refuse(number: int) -> Any:
    def refused(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


def test_lines_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"epoch": 1, "loss": 0.5})
    append_line(path, {"epoch": 2, "loss": math.nan})
    assert read_lines(path) == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}]
    assert read_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("torn", ['{"epoch": 2, "lo', '{"epoch": 2, "lo\n', "\x00\x00\x00"])
def test_a_torn_last_line_is_ignored(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n' + torn)
    assert read_lines(path) == [{"epoch": 1}]


def test_a_torn_last_line_is_cut_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epo')
    append_line(path, {"epoch": 2})
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(InputError, match="line 2 is damaged"):
        read_lines(path)


def test_keeping_lines_cuts_the_rest(tmp_path: Path) -> None:
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


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"seconds": 1.0})
    monkeypatch.setattr(os, "replace", refuse(errno.EIO))
    with pytest.raises(RunError):
        write_json(path, {"seconds": 2.0})
    assert json.loads(path.read_text()) == {"seconds": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("write", [write_json, append_line])
def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
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


def test_a_missing_folder_is_said_on_writing(tmp_path: Path) -> None:
    for write in (write_json, append_line):
        with pytest.raises(RunError, match="No such file or directory; make sure it can be written"):
            write(tmp_path / "absent" / "x.json", {})


def test_text_and_bytes_are_written_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "μ\n")
    write_text(tmp_path / "b", b"\x89PNG")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "μ\n"
    assert (tmp_path / "b").read_bytes() == b"\x89PNG"


def test_a_run_without_result_is_unfinished(tmp_path: Path) -> None:
    write_json(tmp_path / "compare.json", MINIMAL)
    found = load(tmp_path)
    assert [(r.digest, r.status, r.message, r.metrics) for r in found.records] == [("0a", "unfinished", "", [])]


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"status": "ok", "test": {"last": {}}}, "ok"),
        ({"status": "failed", "test": None}, "failed"),
        ({"status": "ok", "test": None}, "failed"),
    ],
)
def test_only_a_run_with_a_test_result_is_ok(tmp_path: Path, result: Any, status: str) -> None:
    write_json(tmp_path / "compare.json", MINIMAL)
    (tmp_path / "runs" / "0a").mkdir(parents=True)
    write_json(tmp_path / "runs" / "0a" / "result.json", result)
    assert load(tmp_path).records[0].status == status


def test_a_missing_folder_or_file_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*absent; give the folder"):
        load(tmp_path / "absent")
    with pytest.raises(InputError, match=r"has no compare\.json; give the folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "has format 2 and this version reads 1"),
        ({"runs": None}, "is damaged"),
        ({"methods": {}}, "is of method 'plain', which is not listed"),
        ({"runs": [MINIMAL["runs"][0] | {"digest": "../../etc"}]}, "characters other than"),
        ({"runs": [{"digest": "0a", "method": "plain"}]}, "has no 'model'"),
    ],
)
def test_a_damaged_compare_json_is_an_error_in_one_line(tmp_path: Path, change: Any, said: str) -> None:
    write_json(tmp_path / "compare.json", MINIMAL | change)
    with pytest.raises(InputError, match=said) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["compare.json", "runs/0a/result.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, name: str, content: str) -> None:
    write_json(tmp_path / "compare.json", MINIMAL)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match="is damaged"):
        load(tmp_path)


def test_a_result_without_status_is_damaged(tmp_path: Path) -> None:
    write_json(tmp_path / "compare.json", MINIMAL)
    (tmp_path / "runs" / "0a").mkdir(parents=True)
    write_json(tmp_path / "runs" / "0a" / "result.json", {})
    with pytest.raises(InputError, match="has no status"):
        load(tmp_path)


NO_OBJECTS = {
    "deep": b"[" * 100_000,
    "list": b"[]",
    "bytes": b"\xff",
    "none": b"",
    "long": b"[%b]" % (b"9" * 5000),
}


@pytest.mark.parametrize("content", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_what_is_no_json_object_is_named_with_the_remedy(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is damaged: not a JSON object; do this"):
        records.read_json(path, "do this")
    path.unlink()
    with pytest.raises(InputError, match="x.json is missing; do this"):
        records.read_json(path, "do this")


@pytest.mark.parametrize(("key", "value"), [("status", 3), ("epochs", "many"), ("test", 0.9), ("environment", [])])
def test_a_result_whose_values_are_of_another_kind_is_damaged(key, value, tmp_path):
    path = tmp_path / "result.json"
    sound = {"status": "ok", "message": None, "epochs": 3, "test": {"last": {"accuracy": 0.5}}}
    records.write_json(path, sound)
    assert records.read_result(path) == sound
    records.write_json(path, sound | {key: value})
    with pytest.raises(InputError, match=f"is damaged: {key} is"):
        records.read_result(path)
    assert records.read_result(tmp_path / "none.json") is None


@pytest.mark.parametrize(("key", "value"), [("val_loss", "x"), ("seconds", "x"), ("gradients", {})])
def test_epochs_whose_values_are_no_numbers_are_damaged(key, value, tmp_path):
    path = tmp_path / "metrics.jsonl"
    sound = {"epoch": 1, "val_loss": None, "seconds": 0.5, "norms": {"a": [1.0]}}
    for line in (sound, sound | {key: value}):
        records.append_line(path, line)
    with pytest.raises(InputError, match=f"metrics.jsonl line 2 is damaged: {key} is"):
        records.read_epochs(path)
    records.keep_lines(path, 1)
    assert records.read_epochs(path) == [sound]
    assert records.read_epochs(tmp_path / "none.jsonl") == []
