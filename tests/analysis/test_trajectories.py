"""Trajectories: the plane is that of the weights that were kept, each of its points is where it says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steppe.analysis import cross_run, load_run
from steppe.analysis.endpoint_plane import Extent, NotComparable
from steppe.analysis.trajectories import epochs_kept, trajectories
from steppe.diagnostics.landscape import grid
from steppe.records import load
from steppe.report.diagnosis import conclusions
from steppe.report.diagnosis import trajectories as diagnosis_paths
from steppe.report.diagnosis.summary import PATHS, Diagnosed, DiagnosisRow
from steppe.training.monitor import load_weights, weights_name

EXTENT = Extent(20, side=3)


@pytest.fixture(scope="module")
def found(homes: dict[str, Path]) -> dict[str, Any]:
    first = load_run.load(homes["plain"])
    return trajectories(homes, first, first.images.val, EXTENT, lambda _: None)


def rows_of(homes: dict[str, Path], names: list[str]) -> np.ndarray:
    """All weights that were kept, a row each, as they are in the files."""
    files = [homes[m] / weights_name(e) for m in ("plain", "sam", "dml") for e in (0, 2, 3)]
    states = [load_weights(path)["deployed"] for path in files]
    return np.stack([np.concatenate([s[n].double().numpy().ravel() for n in names]) for s in states])


def test_tracks_share_a_start_and_the_others_are_named(found):
    assert [(t["name"], t["epochs"]) for t in found["tracks"]] == [(m, [0, 2, 3]) for m in ("plain", "sam", "dml")]
    # of two peers the first begins where plain does and is what is deployed; the second began elsewhere
    assert found["elsewhere"] == ["dml, network 2"]
    starts = np.array([t["places"][0] for t in found["tracks"]])
    assert np.ptp(starts, axis=0) == pytest.approx([0, 0], abs=1e-9)
    said = conclusions.about_paths(found)
    assert "Began elsewhere and not drawn: dml, network 2." in said and "128 training images" in said
    lowest = min(found["tracks"], key=lambda t: t["own"][-1])
    assert f"{lowest['name']} ends lowest, at {lowest['own'][-1]:.3g} nats" in said
    # a loss that was not finite is none in the file
    tracks = [t | {"own": [None]} if t is lowest else t for t in found["tracks"]]
    assert f"{lowest['name']} ends lowest" not in conclusions.about_paths(found | {"tracks": tracks})


def test_the_plane_is_that_of_the_two_largest_components(found, homes):
    trained = load_run.load(homes["plain"])
    x = rows_of(homes, [n for n, _ in trained.model.named_parameters()])
    x -= x.mean(0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    assert found["explained"] == pytest.approx((s[:2] ** 2 / (s**2).sum()).tolist(), rel=1e-6)
    places = np.concatenate([t["places"] for t in found["tracks"]])
    np.testing.assert_allclose(np.abs(places), np.abs(u[:, :2] * s[:2]), atol=1e-5)
    off = np.concatenate([t["residuals"] for t in found["tracks"]])
    np.testing.assert_allclose(off, np.sqrt((x**2).sum(1) - (places**2).sum(1)), rtol=1e-4)


def test_a_point_of_the_ground_is_the_network_there(found, homes):
    trained = load_run.load(homes["plain"])
    parameters = dict(trained.model.named_parameters())
    raw = rows_of(homes, list(parameters))
    mean = raw.mean(0)
    places = np.concatenate([t["places"] for t in found["tracks"]])
    axes = np.linalg.lstsq(places, raw - mean, rcond=None)[0]
    train = torch.cat([b.x for b in trained.batches(trained.images.train)])
    for module in trained.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for (x, y), loss in list(zip(grid(found["xs"], found["ys"]), np.ravel(found["loss"]), strict=True))[::4]:
        there = torch.from_numpy(mean + x * axes[0] + y * axes[1]).float()
        with torch.no_grad():
            for p, piece in zip(
                parameters.values(), there.split([p.numel() for p in parameters.values()]), strict=True
            ):
                p.copy_(piece.view(p.shape))
        # all 60 training images are fewer than are asked for: one batch
        torch.optim.swa_utils.update_bn([train], trained.model)
        assert trained.surface(trained.images.val).loss() == pytest.approx(loss, rel=1e-3)


def test_each_end_has_its_own_loss(found, homes):
    for track, home in zip(found["tracks"], homes.values(), strict=True):
        val = json.loads((home / "result.json").read_text())["val"]["last"]
        assert track["own"][-1] == pytest.approx(val["loss"], abs=1e-6)
    starts = [t["own"][0] for t in found["tracks"]]
    assert starts == pytest.approx([starts[0]] * 3)


def test_runs_from_another_start_have_no_plane(homes):
    first = load_run.load(homes["plain"])
    first.start["fc1.weight"].add_(1.0)
    with pytest.raises(NotComparable, match="fewer than three checkpoints share a start"):
        trajectories(homes, first, first.images.val, EXTENT, lambda _: None)


def test_what_was_seen_together_is_kept(watched, homes, monkeypatch):
    monkeypatch.setattr(cross_run, "Extent", lambda samples: Extent(samples, side=3, path=3))
    diagnoses = {home: {"settings": {"samples": 20}} for home in homes.values()}
    heard: list[str] = []

    def write(**more: Any) -> None:
        cross_run.write(watched, diagnoses, {"which": "last", **more}, "val", False, heard.append)

    write()
    path = watched / PATHS
    before = path.stat().st_mtime_ns
    held = json.loads(path.read_text())["digits, simple-cnn"]
    assert [t["name"] for t in held["tracks"]] == ["plain", "sam", "dml"]
    assert any("point 9 of 9" in said for said in heard)
    write()
    assert path.stat().st_mtime_ns == before
    write(seconds=5)
    assert path.stat().st_mtime_ns != before
    assert not list(watched.glob("*.part.jsonl"))
    figure = diagnosis_paths.trajectories(load(watched), held)
    assert "of the variance" in figure.axes[0].get_xlabel()


def test_a_plane_that_was_stopped_goes_on(watched, homes, monkeypatch):
    class Stop(Exception):  # noqa: N818
        pass

    diagnoses = {home: {"settings": {"samples": 20}} for home in homes.values()}
    monkeypatch.setattr(cross_run, "Extent", lambda samples: Extent(samples, side=3, path=3))

    def write(say: Any) -> dict[str, Any]:
        cross_run.write(watched, diagnoses, {"which": "last", "seconds": 7}, "val", False, say)
        held: dict[str, Any] = json.loads((watched / PATHS).read_text())["digits, simple-cnn"]
        return held

    def stop(said: str) -> None:
        if "all trajectories, point 4" in said:
            raise Stop

    with pytest.raises(Stop):
        write(stop)
    (points,) = watched.glob("diagnosis-paths-*.part.jsonl")
    rows = points.read_text().splitlines()
    assert len(rows) == 5  # what slice it is, and four points
    # what is in the file is taken from there
    row = json.loads(rows[1]) | {"loss": 123.0}
    points.write_text("\n".join([rows[0], json.dumps(row), *rows[2:]]) + "\n")
    assert write(lambda _: None)["loss"][0][0] == 123.0
    assert not list(watched.glob("*.part.jsonl"))


def test_what_was_not_kept_is_not_looked_for(tmp_path):
    assert epochs_kept(tmp_path) == []
    (tmp_path / weights_name("new")).touch()
    (tmp_path / weights_name(10)).touch()
    (tmp_path / weights_name(9)).touch()
    assert epochs_kept(tmp_path) == [9, 10]


def test_sharpness_over_epochs_is_drawn_as_it_was_recorded(watched):
    comparison = load(watched)
    rows = [DiagnosisRow(r.method, [Diagnosed(r, {})], {}) for r in comparison.records]
    figure = diagnosis_paths.over_epochs(comparison, rows)
    assert figure is not None
    drawn = [line.get_ydata().tolist() for line in figure.axes[0].get_lines()]
    assert drawn == [[line["sharpness"] for line in r.metrics] for r in comparison.records]
    for record in comparison.records:
        for line in record.metrics:
            del line["sharpness"]
    assert diagnosis_paths.over_epochs(comparison, rows) is None
