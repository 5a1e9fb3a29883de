"""Trajectories are on the plane of the saved weights, and its losses are those of its points."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steppe.analysis import cross_run, load_run
from steppe.analysis.endpoint_plane import NotComparable, Resolution, evaluate_plane
from steppe.analysis.trajectories import saved_epochs, trajectories
from steppe.diagnostics.landscape import grid
from steppe.diagnostics.loss_surface import LossSurface
from steppe.records import load
from steppe.report.diagnosis import conclusions
from steppe.report.diagnosis import trajectories as figures
from steppe.report.diagnosis.summary import PATHS, DiagnosedRun, DiagnosisRow
from steppe.training.monitor import load_weights, weights_name

RESOLUTION = Resolution(20, side=3)


@pytest.fixture(scope="module")
def result(homes: dict[str, Path]) -> dict[str, Any]:
    first = load_run.load(homes["plain"])
    return trajectories(homes, first, first.images.val, RESOLUTION, lambda _: None)


def saved_weights(homes: dict[str, Path], names: list[str]) -> np.ndarray:
    """Return all saved weights of the networks, a row each."""
    tracks = [("plain", "deployed"), ("sam", "deployed"), ("dml", "deployed"), ("dml", "network 2")]
    states = [load_weights(homes[m] / weights_name(e))[network] for m, network in tracks for e in (0, 2, 3)]
    return np.stack([np.concatenate([s[n].double().numpy().ravel() for n in names]) for s in states])


def test_every_network_has_a_track_from_its_start_that_ends_at_the_run_s_loss(result, homes):
    tracks = [(t["name"], t["epochs"]) for t in result["tracks"]]
    assert tracks == [(m, [0, 2, 3]) for m in ("plain", "sam", "dml", "dml, network 2")]
    assert result["elsewhere"] == []
    # dml deploys its first network, which starts where plain does; the second has another start
    *starts, other = np.array([t["places"][0] for t in result["tracks"]])
    assert np.linalg.norm(other - starts[0]) > 1
    assert np.ptp(starts, axis=0) == pytest.approx([0, 0], abs=1e-9)
    text = conclusions.about_trajectories(result)
    lowest = min(result["tracks"], key=lambda t: t["own"][-1])
    assert f"{lowest['name']} ends lowest, at {lowest['own'][-1]:.3g} nats" in text
    # a loss that is not finite is null in the file
    tracks = [t | {"own": [None]} if t is lowest else t for t in result["tracks"]]
    assert f"{lowest['name']} ends lowest" not in conclusions.about_trajectories(result | {"tracks": tracks})
    for track, home in zip(result["tracks"][:3], homes.values(), strict=True):
        val = json.loads((home / "result.json").read_text())["val"]["last"]
        assert track["own"][-1] == pytest.approx(val["loss"], abs=1e-6)
    starts = [t["own"][0] for t in result["tracks"][:3]]
    assert starts == pytest.approx([starts[0]] * 3)


def test_the_loss_at_a_point_is_that_of_its_network(result, homes):
    trained = load_run.load(homes["plain"])
    parameters = dict(trained.model.named_parameters())
    weights = saved_weights(homes, list(parameters))
    places = np.concatenate([t["places"] for t in result["tracks"]])
    for i, values in enumerate((result["xs"], result["ys"])):
        assert min(values) < places[:, i].min() and max(values) > places[:, i].max()
    axes = np.linalg.lstsq(places, weights - weights.mean(0), rcond=None)[0]
    train = torch.cat([b.x for b in trained.batches(trained.images.train)])
    for module in trained.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    points = zip(grid(result["xs"], result["ys"]), np.ravel(result["loss"]), strict=True)
    for (x, y), loss in list(points)[::4]:
        point = torch.from_numpy(weights.mean(0) + x * axes[0] + y * axes[1]).float()
        torch.nn.utils.vector_to_parameters(point, parameters.values())
        # 60 training images are fewer than the statistics need: one batch
        torch.optim.swa_utils.update_bn([train], trained.model)
        assert trained.surface(trained.images.val).loss() == pytest.approx(loss, rel=1e-3)


def test_networks_of_another_architecture_have_no_plane(homes):
    first = load_run.load(homes["plain"])
    first.start["fc1.weight"] = first.start["fc1.weight"][:1]
    with pytest.raises(NotComparable, match="fewer than three checkpoints of one architecture"):
        trajectories(homes, first, first.images.val, RESOLUTION, lambda _: None)


@pytest.fixture
def write(comparison, homes, monkeypatch):
    """Write the comparison's files at a low resolution and return the trajectories."""
    monkeypatch.setattr(cross_run, "Resolution", lambda samples: Resolution(samples, side=3, path=3))
    diagnoses = {home: {"settings": {"samples": 20}} for home in homes.values()}

    def write(progress: Any = lambda _: None, **request: Any) -> dict[str, Any]:
        cross_run.write(comparison, diagnoses, {"which": "last", **request}, "val", False, progress)
        content: dict[str, Any] = json.loads((comparison / PATHS).read_text())["digits, simple-cnn"]
        return content

    return write


def test_trajectories_are_reused_until_the_request_changes(comparison, write):
    messages: list[str] = []
    content, path = write(messages.append), comparison / PATHS
    before = path.stat().st_mtime_ns
    assert [t["name"] for t in content["tracks"]] == ["plain", "sam", "dml", "dml, network 2"]
    assert any("point 9 of 9" in message for message in messages)
    write()
    assert path.stat().st_mtime_ns == before
    write(seconds=5)
    assert path.stat().st_mtime_ns != before
    figure = figures.trajectories(load(comparison), content)
    assert "of the variance" in figure.axes[0].get_xlabel()


def test_an_interrupted_plane_resumes(comparison, write):
    class Stop(Exception):  # noqa: N818
        pass

    def stop(message: str) -> None:
        if "all trajectories, point 4" in message:
            raise Stop

    with pytest.raises(Stop):
        write(stop, seconds=7)
    (points,) = comparison.glob("diagnosis-paths-*.part.jsonl")
    rows = points.read_text().splitlines()
    assert len(rows) == 5  # the fingerprint and four points
    # points in the file are not computed again
    row = json.loads(rows[1]) | {"loss": 123.0}
    points.write_text("\n".join([rows[0], json.dumps(row), *rows[2:]]) + "\n")
    assert write(seconds=7)["loss"][0][0] == 123.0
    assert not list(comparison.glob("*.part.jsonl"))


def test_saved_epochs_are_sorted_as_numbers(tmp_path):
    assert saved_epochs(tmp_path) == []
    for epoch in ("new", 10, 9):
        (tmp_path / weights_name(epoch)).touch()
    assert saved_epochs(tmp_path) == [9, 10]


def test_the_figure_of_sharpness_over_epochs_has_the_recorded_values(comparison):
    records = load(comparison).records
    rows = [DiagnosisRow(r.method, [DiagnosedRun(r, {})], {}) for r in records]
    figure = figures.over_epochs(load(comparison), figures.with_sharpness(rows))
    lines = [line.get_ydata().tolist() for line in figure.axes[0].get_lines()]
    assert lines == [[epoch["sharpness"] for epoch in r.metrics] for r in records]
    for record in records:
        for epoch in record.metrics:
            del epoch["sharpness"]
    assert figures.with_sharpness(rows) == {}


def test_equal_runs_span_no_plane_and_are_left_out():
    """Two runs with the same end lie on one line with their start: they are not comparable, which is no error."""
    net = torch.nn.Linear(2, 2)
    surface = LossSurface(net, [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))])
    start = {name: t.clone() for name, t in net.state_dict().items()}
    end = {name: t + 1 for name, t in start.items()}
    with pytest.raises(NotComparable, match="one line"):
        evaluate_plane(None, surface, [start, end, end], Resolution(4), "", print, None)  # type: ignore[arg-type]
