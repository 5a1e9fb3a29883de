"""A comparison's folder: the status of its runs, and damaged files."""

from pathlib import Path
from typing import Any

import pytest

from steppe import records
from steppe.errors import InputError
from steppe.records import load, write_json

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


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"status": "ok", "test": {"last": {}}}, "ok"),
        ({"status": "failed", "test": None}, "failed"),
        ({"status": "ok", "test": None}, "failed"),
        (None, "unfinished"),
    ],
)
def test_only_a_run_with_a_test_result_is_ok(tmp_path: Path, result: Any, status: str) -> None:
    write_json(tmp_path / "compare.json", MINIMAL)
    (tmp_path / "runs" / "0a").mkdir(parents=True)
    if result:
        write_json(tmp_path / "runs" / "0a" / "result.json", result)
    (run,) = load(tmp_path).records
    assert (run.digest, run.status, run.message, run.metrics) == ("0a", status, "", [])


def test_a_missing_folder_or_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*absent; give the folder"):
        load(tmp_path / "absent")
    with pytest.raises(InputError, match=r"has no compare\.json; give the folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2 and this version reads 1"),
        ({"runs": None}, "is damaged"),
        ({"methods": {}}, "is of method 'plain', which is not listed"),
        ({"runs": [MINIMAL["runs"][0] | {"digest": "../../etc"}]}, "characters other than"),
        ({"runs": [{"digest": "0a", "method": "plain"}]}, "has no 'model'"),
    ],
)
def test_a_damaged_compare_json_is_an_error_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    write_json(tmp_path / "compare.json", MINIMAL | change)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["compare.json", "runs/0a/result.json"])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "compare.json", MINIMAL)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[1]")
    with pytest.raises(InputError, match="is damaged"):
        load(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("status", 3), ("epochs", "many"), ("test", 0.9), ("environment", [])])
def test_a_result_with_values_of_the_wrong_type_is_damaged(key, value, tmp_path):
    path = tmp_path / "result.json"
    sound = {"status": "ok", "message": None, "epochs": 3, "test": {"last": {"accuracy": 0.5}}}
    records.write_json(path, sound)
    assert records.read_result(path) == sound
    records.write_json(path, sound | {key: value})
    with pytest.raises(InputError, match=f"is damaged: {key} is"):
        records.read_result(path)
    records.write_json(path, {})
    with pytest.raises(InputError, match="has no status"):
        records.read_result(path)
    assert records.read_result(tmp_path / "none.json") is None


@pytest.mark.parametrize(("key", "value"), [("val_loss", "x"), ("seconds", "x"), ("gradients", {})])
def test_epochs_with_values_that_are_not_numbers_are_damaged(key, value, tmp_path):
    path = tmp_path / "metrics.jsonl"
    sound = {"epoch": 1, "val_loss": None, "seconds": 0.5, "norms": {"a": [1.0]}}
    for line in (sound, sound | {key: value}):
        records.append_line(path, line)
    with pytest.raises(InputError, match=f"metrics.jsonl line 2 is damaged: {key} is"):
        records.read_epochs(path)
    records.keep_lines(path, 1)
    assert records.read_epochs(path) == [sound]
    assert records.read_epochs(tmp_path / "none.jsonl") == []
