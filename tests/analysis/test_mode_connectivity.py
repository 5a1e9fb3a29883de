"""The loss between networks is that of their mixtures; the barrier is its rise above the straight line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steppe.analysis.load_run import TrainedRun, load, load_members
from steppe.cli.main import main


def between(capsys: Any, out: Path, *folders: Path) -> dict[str, Any]:
    assert main(["diagnose", *map(str, folders), "--between", str(out), "--seconds", "0.01", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def loss_of_mean(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], trained: TrainedRun) -> float:
    """Return the loss of the mean of two networks, with BatchNorm statistics of all 60 training images."""
    with torch.no_grad():
        for name, p in trained.model.named_parameters():
            p.copy_((a[name] + b[name]) / 2)
    for module in trained.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = torch.cat([batch.x for batch in trained.batches(trained.images.train)])
    torch.optim.swa_utils.update_bn([x], trained.model)
    return trained.surface(trained.images.val).loss()


def test_the_path_between_two_runs_consists_of_their_mixtures(homes, tmp_path, capsys):
    result = between(capsys, tmp_path / "new", homes["plain"], homes["sam"])
    assert result["networks"] == ["plain, seed 0", "sam, seed 0"] and result["triangle"] is None
    (path,) = result["segments"]
    at, losses = np.array(path["at"]), np.array(path["loss"])
    states = [dict(load(homes[m]).model.state_dict()) for m in ("plain", "sam")]
    assert loss_of_mean(*states, load(homes["plain"])) == pytest.approx(losses[at == 0.5].item(), rel=1e-4)
    line = (1 - at) * losses[0] + at * losses[-1]
    assert path["barrier"] == pytest.approx(float((losses - line).max()), abs=1e-9)
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"between.json", "between.svg"}
    twin = tmp_path / "twin"
    shutil.copytree(homes["plain"], twin)
    result = between(capsys, tmp_path / "out", homes["plain"], twin)
    assert result["networks"] == [f"plain, seed 0, {homes['plain'].name}", "plain, seed 0, twin"]
    assert result["segments"][0]["barrier"] == pytest.approx(0, abs=1e-6)


def test_one_run_of_two_networks_has_a_path_between_them(homes, tmp_path, capsys):
    result = between(capsys, tmp_path, homes["dml"])
    assert result["networks"] == ["network 1", "network 2"]
    (path,) = result["segments"]
    trained = load(homes["dml"])
    states = load_members(homes["dml"], "last", trained.images).values()
    middle = path["loss"][path["at"].index(0.5)]
    assert loss_of_mean(*states, trained) == pytest.approx(middle, rel=1e-4)


def test_three_runs_are_the_corners_of_a_triangle_with_the_paths_as_edges(homes, tmp_path, capsys):
    result = between(capsys, tmp_path, *homes.values())
    paths = {(p["from"], p["to"]): p for p in result["segments"]}
    plain, sam, dml = result["networks"]
    assert list(paths) == [(plain, sam), (plain, dml), (sam, dml)]
    triangle = result["triangle"]
    losses = {tuple(at): loss for at, loss in zip(triangle["at"], triangle["loss"], strict=True)}
    corners = [losses[1.0, 0.0, 0.0], losses[0.0, 1.0, 0.0], losses[0.0, 0.0, 1.0]]
    assert corners == [paths[plain, sam]["loss"][0], paths[plain, sam]["loss"][-1], paths[sam, dml]["loss"][-1]]
    edge = paths[plain, dml]
    assert losses[0.5, 0.0, 0.5] == pytest.approx(edge["loss"][edge["at"].index(0.5)], rel=1e-6)
    rises = [loss - float(np.dot(at, corners)) for at, loss in losses.items()]
    assert triangle["barrier"] == pytest.approx(max(rises), abs=1e-9)


def test_runs_that_cannot_be_compared_are_one_line(comparison, homes, tmp_path, capsys):
    other, plain = tmp_path / "other", homes["plain"]
    shutil.copytree(homes["sam"], other)
    config = json.loads((other / "config.json").read_text())
    config["data"]["split_seed"] = 7
    (other / "config.json").write_text(json.dumps(config))
    for folders, message in (
        ([plain], "is a run of one network; give 2 or 3 runs"),
        ([plain] * 4, "4 runs are given; give 2 or 3"),
        ([comparison], "is a comparison; with --between give 2 or 3 of its runs"),
        ([plain, other], "these runs are of different data"),
        ([tmp_path], "has no config.json"),
    ):
        assert main(["diagnose", *map(str, folders), "--between", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
