"""Trackers follow the records: every epoch once, whatever happens, and nothing of them reaches training."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from steppe import InputError, records, tracking
from steppe.config import Data, Run, Study
from steppe.data.dataset import DataSet
from steppe.training import run as engine
from steppe.training import trainer

RUN = Run(
    method="sam",
    model="resnet-thin",
    epochs=3,
    batch=60,
    data=Data(train=120, val=40, test=40, size=12, augment=()),
)


@pytest.fixture(scope="module")
def images() -> DataSet:
    return engine.load_data(RUN)


class Heard:
    """A tracker that keeps what it is told; its n-th call fails where it is told to."""

    def __init__(self, lines: int, fails: str = ""):
        self.key, self.lines, self.fails = "k", lines, fails
        self.told: list[tuple[int, dict[str, float]]] = []
        self.end: Any = None
        self.closed = False

    def log(self, epoch: int, values: Any) -> None:
        if self.fails == f"log {epoch}":
            raise ConnectionError("nobody there\nmore")
        self.told.append((epoch, dict(values)))

    def finish(self, values: Any, status: str) -> None:
        self.end = (dict(values), status)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def heard(monkeypatch) -> dict[str, Any]:
    """Put another tracker in the place of tensorboard; ``opened`` are those that were made."""
    module: Any = types.ModuleType("steppe.tracking.tensorboard")
    known: dict[str, Any] = {"opened": [], "fails": "", "keys": []}

    def begin(place: Path, about: tracking.RunInfo, key: str | None, lines: int) -> Heard:
        if known["fails"] == "begin":
            raise OSError("no room")
        known["about"] = about
        known["keys"].append(key)
        known["opened"].append(Heard(lines, known["fails"]))
        return known["opened"][-1]

    module.begin = begin
    for name in ("tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, f"steppe.tracking.{name}", module)
    return known


def tracked(*names: str) -> Run:
    return dataclasses.replace(RUN, track=names or ("tensorboard",))


def test_every_epoch_is_told_once_and_training_does_not_notice(tmp_path, images, heard):
    alone = engine.train_run(RUN, tmp_path / "alone", images)
    result = engine.train_run(tracked(), tmp_path / "a", images)
    (one,) = heard["opened"]
    lines = records.read_lines(tmp_path / "a" / trainer.METRICS)
    assert [epoch for epoch, _ in one.told] == [1, 2, 3]
    for (_, values), line in zip(one.told, lines, strict=True):
        assert {k: values[k] for k in ("train_loss", "val_accuracy", "lr")} == {
            k: line[k] for k in ("train_loss", "val_accuracy", "lr")
        }
        assert values["seconds"] > 0
    test = result["test"]
    assert one.end[0]["test_last/accuracy"] == test["last"]["accuracy"]
    assert one.end[0]["test_best/epoch"] == test["best"]["epoch"]
    assert one.end[1] == "ok" and one.closed
    assert result["test"] == alone["test"] and result["val"] == alone["val"]
    assert (tmp_path / "a" / trainer.METRICS).read_bytes() == (tmp_path / "alone" / trainer.METRICS).read_bytes()
    assert heard["about"].name == "sam seed 0"
    assert heard["about"].settings()["data.size"] == "12"


def test_where_records_are_shown_is_not_part_of_a_run(tmp_path, images, heard):
    assert engine.digest(RUN) == engine.digest(tracked())
    first = engine.train_run(RUN, tmp_path, images)
    assert engine.train_run(tracked(), tmp_path, images) == json.loads(json.dumps(first))  # it is finished
    assert not heard["opened"]


class Killed(BaseException):
    pass


def stopped_after(epoch: int, run: Run, folder: Path, images: DataSet) -> None:
    def listen(news: engine.TrainingStatus) -> None:
        if news.val_accuracy is not None and news.epoch == epoch:
            raise Killed

    with pytest.raises(Killed):
        engine.train_run(run, folder, images, listen)


def test_a_run_that_goes_on_sends_nothing_twice(tmp_path, images, heard):
    stopped_after(2, tracked(), tmp_path, images)
    assert heard["opened"][0].closed and heard["opened"][0].end is None
    engine.train_run(tracked(), tmp_path, images)
    first, second = heard["opened"]
    assert [e for e, _ in first.told] == [1, 2] and [e for e, _ in second.told] == [3]
    assert second.lines == 2 and heard["keys"] == [None, "k"]


def test_a_tracker_that_comes_later_is_told_what_was_before(tmp_path, images, heard):
    stopped_after(2, RUN, tmp_path, images)
    engine.train_run(tracked(), tmp_path, images)
    assert [e for e, _ in heard["opened"][0].told] == [1, 2, 3]


@pytest.mark.parametrize("fails", ["begin", "log 2"])
def test_a_tracker_that_fails_is_left_out_with_one_line(fails, tmp_path, images, heard, capsys):
    heard["fails"] = fails
    result = engine.train_run(tracked(), tmp_path, images)
    assert result["status"] == "ok"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("steppe: tracking by tensorboard failed and is left out: ")
    assert ("OSError: no room" if fails == "begin" else "ConnectionError: nobody there") in said[0]
    if fails == "log 2":
        assert [e for e, _ in heard["opened"][0].told] == [1]
        assert json.loads((tmp_path / "tracking/sent.json").read_text())["tensorboard"]["lines"] == 1


def test_what_was_not_sent_is_sent_when_the_run_goes_on(tmp_path, images, heard, capsys):
    heard["fails"] = "log 1"
    stopped_after(2, tracked(), tmp_path, images)
    heard["fails"] = ""
    engine.train_run(tracked(), tmp_path, images)
    assert [e for e, _ in heard["opened"][1].told] == [1, 2, 3]


def test_several_trackers_are_told_the_same(tmp_path, images, heard):
    engine.train_run(tracked("tensorboard", "mlflow"), tmp_path, images)
    first, second = heard["opened"]
    assert first.told == second.told and len(first.told) == 3 and first.end == second.end


def test_nested_numbers_get_flat_names():
    line = {"a": 1, "b": {"x": 2.5, "y": {"z": None}}, "c": True, "d": "text", "e": None}
    assert tracking.flat(line) == {"a": 1.0, "b/x": 2.5}


def test_unknown_and_missing_trackers_are_said(monkeypatch, tmp_path, images):
    with pytest.raises(InputError, match="track is 'wandbb'; choose one of tensorboard, wandb, mlflow"):
        Study(track=("wandbb",))
    for name in tracking.TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        monkeypatch.delitem(sys.modules, f"steppe.tracking.{name}", raising=False)
        with pytest.raises(InputError, match=rf"track is '{name}' and .*pip install 'steppe\[{name}\]'"):
            engine.check(tracked(name), images)


# -- the trackers themselves, offline ------------------------------------------------------------------------


def twice(name: str, folder: Path, images: DataSet) -> list[dict[str, Any]]:
    """Stop a run after two epochs, go on, and return what was recorded."""
    stopped_after(2, tracked(name), folder, images)
    engine.train_run(tracked(name), folder, images)
    return records.read_lines(folder / trainer.METRICS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_every_epoch_once(tmp_path, images):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = twice("tensorboard", tmp_path, images)
    (place,) = (tmp_path / "tracking/tensorboard").iterdir()
    assert place.name == "sam seed 0"
    events = EventAccumulator(str(place))
    events.Reload()
    shown = [(e.step, e.value) for e in events.Scalars("val_accuracy")]
    assert shown == [(line["epoch"], pytest.approx(line["val_accuracy"])) for line in lines]
    assert [e.step for e in events.Scalars("test_last/accuracy")] == [3]
    assert b"data.size: 12" in events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0]


def written(content: bytes) -> list[bytes]:
    """Return the records of an offline run: LevelDB's log format, after a header of seven bytes."""
    at, whole, found = 7, b"", []
    while at + 7 <= len(content):
        room = 32768 - at % 32768
        if room < 7:  # too little for a record's head: the rest of the block is empty
            at += room
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or the last part of one
            found.append(whole)
            whole = b""
    return found


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_every_epoch_once_offline(tmp_path, images, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = twice("wandb", tmp_path, images)
    found, ids = [], set()
    for path in sorted(tmp_path.rglob("*.wandb")):
        for content in written(path.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
                found.append((items["_step"], items["val_accuracy"]))
    assert found == [(line["epoch"], pytest.approx(line["val_accuracy"])) for line in lines]
    assert len(ids) == 1


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_every_epoch_once_in_a_local_store(tmp_path, images, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.chdir(tmp_path)
    lines = twice("mlflow", tmp_path / "run", images)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("steppe").experiment_id])
    history = client.get_metric_history(run.info.run_id, "val_accuracy")
    shown = sorted((m.step, m.value) for m in history)
    assert shown == [(line["epoch"], pytest.approx(line["val_accuracy"])) for line in lines]
    assert run.info.status == "FINISHED" and run.data.params["data.size"] == "12"
    assert run.data.metrics["test_last/accuracy"] >= 0
