"""Between networks: what is measured is their mixture, and the barrier is what rises above the line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steppe.analysis import load_run
from steppe.cli.main import main


def between(capsys: Any, out: Path, *folders: Path, code: int = 0) -> dict[str, Any]:
    given = ["diagnose", *map(str, folders), "--between", str(out), "--seconds", "0.01", "--json"]
    assert main(given) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out) if code == 0 else {}
    return found


def mixed(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], trained: load_run.TrainedRun) -> float:
    """The loss of the mean of two networks, its statistics those of all 60 training images."""
    with torch.no_grad():
        for name, p in trained.model.named_parameters():
            p.copy_((a[name] + b[name]) / 2)
    for module in trained.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = torch.cat([batch.x for batch in trained.batches(trained.images.train)])
    torch.optim.swa_utils.update_bn([x], trained.model)
    return trained.surface(trained.images.val).loss()


def test_two_runs_have_a_way_between_them(homes, tmp_path, capsys):
    found = between(capsys, tmp_path / "new", homes["plain"], homes["sam"])
    assert found["networks"] == ["plain, seed 0", "sam, seed 0"] and found["triangle"] is None
    (way,) = found["segments"]
    states = [dict(load_run.load(homes[m]).model.state_dict()) for m in ("plain", "sam")]
    middle = way["loss"][way["at"].index(0.5)]
    assert mixed(*states, load_run.load(homes["plain"])) == pytest.approx(middle, rel=1e-4)
    at, losses = np.array(way["at"]), np.array(way["loss"])
    line = (1 - at) * losses[0] + at * losses[-1]
    assert way["barrier"] == pytest.approx(float((losses - line).max()), abs=1e-9)
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"between.json", "between.svg"}


def test_the_networks_of_one_run_are_seen_from_each_other(homes, tmp_path, capsys):
    found = between(capsys, tmp_path, homes["dml"])
    assert found["networks"] == ["network 1", "network 2"]
    (way,) = found["segments"]
    first, second = load_run.networks_of(homes["dml"], "last", load_run.load(homes["dml"]).images).values()
    middle = way["loss"][way["at"].index(0.5)]
    assert mixed(first, second, load_run.load(homes["dml"])) == pytest.approx(middle, rel=1e-4)


def test_three_runs_have_a_triangle_whose_corners_are_they(homes, tmp_path, capsys):
    found = between(capsys, tmp_path, *homes.values())
    triangle = found["triangle"]
    held = {tuple(at): loss for at, loss in zip(triangle["at"], triangle["loss"], strict=True)}
    ends = {way["from"]: way["loss"][0] for way in found["segments"]}
    ends |= {way["to"]: way["loss"][-1] for way in found["segments"]}
    corners = [held[1.0, 0.0, 0.0], held[0.0, 1.0, 0.0], held[0.0, 0.0, 1.0]]
    assert corners == [ends[name] for name in found["networks"]]
    assert [(w["from"], w["to"]) for w in found["segments"]] == [
        ("plain, seed 0", "sam, seed 0"), ("plain, seed 0", "dml, seed 0"), ("sam, seed 0", "dml, seed 0"),
    ]  # fmt: skip
    # the edges of the triangle are the straight ways
    edge = next(w for w in found["segments"] if w["to"] == "dml, seed 0")
    assert held[0.5, 0.0, 0.5] == pytest.approx(edge["loss"][edge["at"].index(0.5)], rel=1e-6)
    above = [loss - float(np.dot(at, corners)) for at, loss in held.items()]
    assert triangle["barrier"] == pytest.approx(max(above), abs=1e-9)


def test_twins_are_told_apart(homes, tmp_path, capsys):
    twin = tmp_path / "twin"
    shutil.copytree(homes["plain"], twin)
    found = between(capsys, tmp_path / "out", homes["plain"], twin)
    assert found["networks"] == [f"plain, seed 0, {homes['plain'].name}", "plain, seed 0, twin"]
    assert found["segments"][0]["barrier"] == pytest.approx(0, abs=1e-6)


def test_bad_input_is_one_line(watched, homes, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(homes["sam"], other)
    config = json.loads((other / "config.json").read_text())
    config["data"]["split_seed"] = 7
    (other / "config.json").write_text(json.dumps(config))
    plain = homes["plain"]
    for folders, message in (
        ([plain], "is a run of one network; give 2 or 3 runs"),
        ([plain] * 4, "4 runs are given; give 2 or 3"),
        ([watched], "is a comparison; with --between give 2 or 3 of its runs"),
        ([plain, other], "these runs are of different data"),
        ([tmp_path], "has no config.json"),
    ):
        assert main(["diagnose", *map(str, folders), "--between", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
