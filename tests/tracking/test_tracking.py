"""Trackers follow the records: every epoch once, also after a kill or an error; training is unchanged."""

import dataclasses
import json
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from support.interrupted import fit, stopped
from support.interrupted import lines as lines_of

from steppe import InputError, records, tracking
from steppe.config import Data, Run, Study
from steppe.data.dataset import DataSet
from steppe.tasks.metric import Metric
from steppe.training import trainer
from steppe.training.run import check_run, digest, load_data, train_run

RUN = Run(
    method="sam",
    model="resnet-thin",
    epochs=3,
    batch=60,
    data=Data(train=120, val=40, test=40, size=12, augment=()),
)


@pytest.fixture(scope="module")
def images() -> DataSet:
    return load_data(RUN)


class Recorder:
    """A tracker that records its calls; ``fails`` names the call that raises an error."""

    def __init__(self, lines: int, fails: str = ""):
        self.key, self.lines, self.fails = "k", lines, fails
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.end: Any = None
        self.closed = False

    def log(self, epoch: int, values: Any) -> None:
        if self.fails == f"log {epoch}":
            raise ConnectionError("nobody there\nmore")
        self.logged.append((epoch, dict(values)))

    def finish(self, values: Any, status: str) -> None:
        self.end = (dict(values), status)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch) -> dict[str, Any]:
    """Replace tensorboard and mlflow by recorders, which are listed in ``opened``."""
    module: Any = types.ModuleType("steppe.tracking.tensorboard")
    state: dict[str, Any] = {"opened": [], "fails": "", "keys": []}

    def begin(folder: Path, info: tracking.RunInfo, key: str | None, lines: int) -> Recorder:
        if state["fails"] == "begin":
            raise OSError("no room")
        state["info"] = info
        state["keys"].append(key)
        state["opened"].append(Recorder(lines, state["fails"]))
        return state["opened"][-1]

    module.begin = begin
    for name in ("tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, f"steppe.tracking.{name}", module)
    return state


def tracked(*names: str) -> Run:
    return dataclasses.replace(RUN, track=names or ("tensorboard",))


def test_every_epoch_is_logged_once_and_training_is_unchanged(tmp_path, images, fake):
    alone = train_run(RUN, tmp_path / "alone", images)
    result = train_run(tracked(), tmp_path / "a", images)
    (one,) = fake["opened"]
    lines = records.read_lines(tmp_path / "a" / trainer.METRICS)
    assert [epoch for epoch, _ in one.logged] == [1, 2, 3]
    for (_, values), line in zip(one.logged, lines, strict=True):
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
    assert fake["info"].name == "sam seed 0"
    assert fake["info"].settings()["data.size"] == "12"


def test_trackers_name_the_metric():
    info = tracking.RunInfo("sam", "0", {}, Metric("macro F1", "", True, True), "samples")
    names = ("val_metric", "test_last/metric", "test_outputs/network 1/metric", "metric", "val_loss")
    assert [info.name_of(name) for name in names] == [
        "val_macro_F1", "test_last/macro_F1", "test_outputs/network 1/macro_F1", "macro_F1", "val_loss"
    ]  # fmt: skip
    assert info.name_of("images_per_second") == "samples_per_second"
    assert info.settings()["metric"] == "macro F1, share, higher is better"
    plain = tracking.RunInfo("sam", "0", {})
    assert plain.name_of("images_per_second") == "images_per_second" and "metric" not in plain.settings()


def test_trackers_are_not_part_of_a_run_s_name(tmp_path, images, fake):
    assert digest(RUN) == digest(tracked())
    first = train_run(RUN, tmp_path, images)
    assert train_run(tracked(), tmp_path, images) == json.loads(json.dumps(first))  # it is finished
    assert not fake["opened"]


def test_a_resumed_run_sends_nothing_twice(tmp_path, images, fake):
    folder = stopped(tracked(), tmp_path, images)
    assert fake["opened"][0].closed and fake["opened"][0].end is None
    train_run(tracked(), folder, images)
    first, second = fake["opened"]
    assert [e for e, _ in first.logged] == [1, 2] and [e for e, _ in second.logged] == [3]
    assert second.lines == 2 and fake["keys"] == [None, "k"]


@pytest.mark.parametrize("fails", ["begin", "log 2"])
def test_a_tracker_that_fails_is_disabled_with_one_line(fails, tmp_path, images, fake, capsys):
    fake["fails"] = fails
    result = train_run(tracked(), tmp_path, images)
    assert result["status"] == "ok"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("steppe: tracking by tensorboard failed and is disabled: ")
    assert ("OSError: no room" if fails == "begin" else "ConnectionError: nobody there") in line
    if fails == "log 2":
        assert [e for e, _ in fake["opened"][0].logged] == [1]
        assert json.loads((tmp_path / "tracking/sent.json").read_text())["tensorboard"]["lines"] == 1


def test_epochs_that_were_not_sent_are_sent_when_the_run_resumes(tmp_path, images, fake, capsys):
    fake["fails"] = "log 1"
    folder = stopped(tracked(), tmp_path, images)
    fake["fails"] = ""
    train_run(tracked(), folder, images)
    assert [e for e, _ in fake["opened"][1].logged] == [1, 2, 3]


def test_several_trackers_receive_the_same(tmp_path, images, fake):
    train_run(tracked("tensorboard", "mlflow"), tmp_path, images)
    first, second = fake["opened"]
    assert first.logged == second.logged and len(first.logged) == 3 and first.end == second.end


def test_nested_numbers_get_flat_names():
    line = {"a": 1, "b": {"x": 2.5, "y": {"z": None}}, "c": True, "d": "text", "e": None}
    assert tracking.flat(line) == {"a": 1.0, "b/x": 2.5}


def test_unknown_and_missing_trackers_are_refused(monkeypatch, tmp_path, images):
    with pytest.raises(InputError, match="track is 'wandbb'; choose one of tensorboard, wandb, mlflow"):
        Study(track=("wandbb",))
    for name in tracking.TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        monkeypatch.delitem(sys.modules, f"steppe.tracking.{name}", raising=False)
        with pytest.raises(InputError, match=rf"track is '{name}' and .*pip install 'steppe\[{name}\]'"):
            check_run(tracked(name), images)


# -- the trackers themselves, offline ------------------------------------------------------------------------


def twice(name: str, folder: Path, images: DataSet) -> list[dict[str, Any]]:
    """Stop a run after two epochs, resume it, and return its records."""
    stopped(tracked(name), folder, images)
    return lines_of(fit(tracked(name), folder, images)[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_every_epoch_once(tmp_path, images):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = twice("tensorboard", tmp_path, images)
    (folder,) = tmp_path.glob("*/tracking/tensorboard/*")
    assert folder.name == "sam seed 0"
    events = EventAccumulator(str(folder))
    events.Reload()
    logged = [(e.step, e.value) for e in events.Scalars("val_accuracy")]
    assert logged == [(line["epoch"], pytest.approx(line["val_accuracy"])) for line in lines]
    assert [e.step for e in events.Scalars("test_last/accuracy")] == [3]
    assert b"data.size: 12" in events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0]


def written(content: bytes) -> list[bytes]:
    """Return the records of an offline run: LevelDB's log format, after a header of seven bytes."""
    at, whole, messages = 7, b"", []
    while at + 7 <= len(content):
        room = 32768 - at % 32768
        if room < 7:  # too little for a record's head: the rest of the block is empty
            at += room
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or the last part of one
            messages.append(whole)
            whole = b""
    return messages


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_every_epoch_once_offline(tmp_path, images, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = twice("wandb", tmp_path, images)
    logged, ids = [], set()
    for path in sorted(tmp_path.rglob("*.wandb")):
        for content in written(path.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
                logged.append((items["_step"], items["val_accuracy"]))
    assert logged == [(line["epoch"], pytest.approx(line["val_accuracy"])) for line in lines]
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
    logged = sorted((m.step, m.value) for m in history)
    assert logged == [(line["epoch"], pytest.approx(line["val_accuracy"])) for line in lines]
    assert run.info.status == "FINISHED" and run.data.params["data.size"] == "12"
    assert run.data.metrics["test_last/accuracy"] >= 0
