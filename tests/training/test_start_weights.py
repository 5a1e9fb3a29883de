"""Training of some classes, and from the weights of another run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steppe import data
from steppe.config import Data, Run
from steppe.data.dataset import Images, Source
from steppe.data.splits import apply
from steppe.errors import InputError
from steppe.training.checkpoint import sharded
from steppe.training.checkpoint.save_and_resume import CHECKPOINT
from steppe.training.factories import make_network
from steppe.training.run import check_run, load_data, read_run, train_run

DATA = Data(train=60, test=40, val=20, size=8, augment=(), classes=("4", "0", "7"))
RUN = Run(model="mlp-8x2", epochs=2, batch=20, data=DATA)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("runs") / RUN.digest()
    assert train_run(RUN, folder, load_data(RUN))["status"] == "ok"
    return folder


def test_some_classes_are_numbered_in_their_order_in_every_part():
    pixels = torch.arange(24, dtype=torch.uint8).reshape(24, 1, 1, 1).expand(24, 1, 2, 2)
    y = torch.arange(24) % 4
    source = Source(Images(pixels[:16], y[:16]), Images(pixels[16:], y[16:]), ("a", "b", "c", "d"))
    chosen = apply("x", source, Data(val=2, classes=("d", "b")))
    assert chosen.classes == ("d", "b") and chosen.outputs == 2
    for part, count in ((chosen.train, 6), (chosen.val, 2), (chosen.test, 4)):
        assert isinstance(part, Images) and len(part) == count
        marks = part.x[:, 0, 0, 0].numpy()
        assert np.array_equal(np.array([3, 1])[part.y.numpy()], marks % 4)
    with pytest.raises(InputError, match="unknown class of x 'e'; known: a, b, c, d"):
        apply("x", source, Data(classes=("a", "e")))
    with pytest.raises(InputError, match="data.classes is a and diabetes has no classes in memory"):
        data.load("diabetes", Data(classes=("a",)))
    with pytest.raises(InputError, match="data.classes names one twice: 1 1"):
        Data(classes=(1, 1))  # type: ignore[arg-type]


def test_a_run_starts_with_the_last_weights_of_another_and_a_fresh_head(first, tmp_path):
    weights = sharded.read(first / CHECKPOINT).part("net")
    two = replace(RUN, data=replace(DATA, classes=("1", "2")), init=str(first), epochs=1)
    images = load_data(two)
    fresh, net = (make_network(run, run.method, images).state_dict() for run in (replace(two, init=""), two))
    assert {k for k in net if torch.equal(net[k], fresh[k])} == {"head.weight", "head.bias"}
    assert all(torch.equal(net[k], weights[k]) for k in net if not k.startswith("head"))
    check_run(two, images)
    assert train_run(two, tmp_path / two.digest(), images)["status"] == "ok"
    assert read_run(tmp_path / two.digest()).digest() == two.digest()  # from its record


def test_the_name_of_a_run_depends_on_what_it_starts_from_and_not_on_the_place(first, tmp_path):
    moved = tmp_path / "elsewhere" / first.name
    shutil.copytree(first, moved)
    one, other = replace(RUN, init=str(first)), replace(RUN, init=str(moved))
    assert one.digest() == other.digest() != RUN.digest()
    assert (
        replace(RUN, init=str(tmp_path / "weights")).digest() != replace(RUN, init=str(tmp_path / "old")).digest()
    )
    assert "init" not in json.loads((first / "config.json").read_text())
    assert "classes" not in Run().as_dict()["data"]


def test_a_start_that_cannot_be_is_refused_in_one_line(first, tmp_path):
    images = load_data(RUN)
    with pytest.raises(InputError, match="which has no checkpoint.safetensors; give the folder of a finished run"):
        check_run(replace(RUN, init=str(tmp_path)), images)
    with pytest.raises(InputError, match="no weights that fit; give a run of this model"):
        check_run(replace(RUN, init=str(first), model="resnet-thin", data=replace(DATA, size=16)), images)
