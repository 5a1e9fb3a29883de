"""The loaded network is the one that the run validated, and its settings are checked."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from analysis.conftest import train

from steppe import InputError, methods
from steppe.analysis.endpoint_plane import NotComparable, Resolution, endpoint_plane
from steppe.analysis.load_run import load
from steppe.analysis.suite import SuiteSettings, fit_to_budget
from steppe.training import run as engine
from steppe.training.checkpoint import sharded
from steppe.training.factories import make_network

EMA, SWA = "ema:decay=0.9", "swa:start=0.5"


@pytest.fixture(scope="module")
def folders(homes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return homes | train(tmp_path_factory.mktemp("averages"), EMA, SWA)


@pytest.mark.parametrize("method", ["plain", "dml", EMA, SWA])
@pytest.mark.parametrize("which", ["last", "best"])
def test_the_loaded_network_is_the_validated_one(folders, method, which):
    trained = load(folders[method], which)
    expected = json.loads((folders[method] / "result.json").read_text())["val"][which]
    value = trained.surface(trained.images.val).value()
    assert value.loss == pytest.approx(expected["loss"], abs=1e-6)
    assert value.accuracy == expected["accuracy"]
    assert trained.epoch == expected.get("epoch", 3)


def test_an_average_is_loaded_and_not_the_trained_weights(folders):
    trained = sharded.read(folders[EMA] / engine.CHECKPOINT).part("net")
    assert not torch.equal(load(folders[EMA]).model.state_dict()["fc1.weight"], trained["fc1.weight"])


@pytest.mark.parametrize("method", ["plain", "dml", EMA, SWA])
def test_the_start_is_that_of_the_seed(folders, method):
    trained = load(folders[method])
    with torch.random.fork_rng():
        initial = make_network(trained.run, methods.parse("plain"), trained.images).state_dict()
    assert trained.start.keys() == initial.keys() == trained.model.state_dict().keys()
    assert all(torch.equal(trained.start[k], v) for k, v in initial.items())
    assert not torch.equal(trained.start["fc1.weight"], trained.model.state_dict()["fc1.weight"])


def test_the_budget_is_kept_and_other_starts_are_refused(folders):
    trained = load(folders["plain"])
    few, more = (fit_to_budget(trained, trained.images.train, seconds) for seconds in (1e-6, 1e6))
    assert (few.samples, few.trained, more.samples, more.trained) == (32, 32, 60, 60)
    with pytest.raises(InputError, match="seconds is 0; give a number above 0"):
        fit_to_budget(trained, trained.images.train, 0)
    assert SuiteSettings(1, bounds=True).passes[0] - SuiteSettings(1).passes[0] == 11 * 30
    trained = load(folders["plain"])
    other = dataclasses.replace(trained, start={k: v + 1 for k, v in trained.start.items()})
    with pytest.raises(NotComparable, match="no plane through them"):
        endpoint_plane({"a": trained, "b": other}, trained.images.val, Resolution(10), lambda _: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "has no checkpoint; train the run first"),
        ({"warp": 9}, "the setting 'warp', unknown to this version; update steppe"),
        ({"dataset": 3}, r"config.json is damaged \(dataset is 3\)"),
        ({"method": None}, r"config.json is damaged \(method is None\)"),
        ({"seed": True}, r"config.json is damaged \(seed is True\)"),
        ({"threads": 1.5}, r"config.json is damaged \(threads is 1.5\)"),
        ({"match": "x"}, r"config.json is damaged \(match is 'x'\)"),
    ],
)
def test_damaged_settings_and_missing_weights_are_named(folders, tmp_path, change, message):
    config = json.loads((folders["plain"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        load(tmp_path)
    if not change:
        with pytest.raises(InputError, match="no weights of a best epoch"):
            load(tmp_path, "best")
