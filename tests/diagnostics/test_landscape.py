"""Landscapes against closed forms on a quadratic, and on a network with BatchNorm."""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.bowl import Point, bowl, curved
from support.small import small_batch, small_net

from steppe.core.numerics import vector
from steppe.diagnostics.landscape import (
    LandscapePoint,
    barrier,
    evaluate_between,
    evaluate_on_plane,
    grid,
    segment,
    simplex,
    slice_along,
    width,
)
from steppe.diagnostics.landscape_directions import principal_plane, random_direction
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

W = torch.tensor([0.7, -1.3, 0.4, 2.0], dtype=torch.float64)


def train(net: torch.nn.Module, batches) -> list[dict[str, torch.Tensor]]:
    """Take one step per batch and return the states after each."""
    optimizer, states = torch.optim.SGD(net.parameters(), 0.1), []
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        states.append({k: v.clone() for k, v in net.state_dict().items()})
    return states


def network(seed: int = 0) -> LossSurface:
    net, (x, y) = small_net(seed, dtype=torch.float64), small_batch(dtype=torch.float64)
    train(net, [(x, y)] * 5)
    return LossSurface(net, [(x[:5], y[:5]), (x[5:], y[5:])])


def states_of_one_start() -> tuple[LossSurface, list[dict[str, torch.Tensor]]]:
    states = []
    for run in (0, 10):
        batches = [small_batch(seed=run + i, dtype=torch.float64) for i in range(3)]
        states += train(small_net(dtype=torch.float64), batches)
    return network(), states


def loss_of(state: dict[str, torch.Tensor]) -> float:
    net, (x, y) = small_net(dtype=torch.float64).eval(), small_batch(dtype=torch.float64)
    net.load_state_dict(state)
    return float(F.cross_entropy(net(x), y).detach())


def test_a_line_has_the_losses_of_its_points():
    h = curved(4)
    d = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    for point in slice_along(bowl(h, W), [[d]], [(t,) for t in (-1.0, 0.0, 0.3)]):
        w = W + point.at[0] * d
        assert point.loss == pytest.approx(float(w @ h @ w / 2), rel=1e-12)
        assert point.accuracy is None
    surface = network()
    net = surface.net.eval()
    x, y = small_batch(dtype=torch.float64)
    a, b = random_direction(surface, 1), random_direction(surface, 2)
    (point,) = slice_along(surface, [a, b], [(0, 0)])
    assert point.loss == pytest.approx(float(F.cross_entropy(net(x), y).detach()), abs=1e-12)
    assert point.accuracy == float((net(x).argmax(1) == y).double().mean())


def test_directions_have_the_filters_norms_and_do_not_move_biases():
    surface, other = network(), network(seed=4)
    one, two = random_direction(surface, 3), random_direction(other, 3)
    for p, q, d, e in zip(surface.params, other.params, one, two, strict=True):
        if p.ndim == 1:
            assert d is None
            continue
        torch.testing.assert_close(d.flatten(1).norm(dim=1), p.detach().flatten(1).norm(dim=1))
        # all networks have the same noise, each at its own scale
        ratio = q.detach().flatten(1).norm(dim=1) / p.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(e, d * ratio.view(-1, *[1] * (d.ndim - 1)))
    three = random_direction(surface, 4)
    assert vector.dot(one, three).abs() < 0.15 * vector.norm(one) * vector.norm(three)


def test_an_interrupted_grid_resumes(tmp_path, monkeypatch):
    surface, path = network(), tmp_path / "grid.jsonl"
    directions = [random_direction(surface, 1), random_direction(surface, 2)]
    coordinates = grid([-1, 0, 1], [-0.5, 0.5])
    whole = slice_along(surface, directions, coordinates)

    def stop(done: int, count: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slice_along(surface, directions, coordinates, path=path, progress=stop)
    path.write_bytes(path.read_bytes()[:-7])  # killed in the middle of a line
    evaluated, calls = [], []
    value = LossSurface.value
    monkeypatch.setattr(LossSurface, "value", lambda self: evaluated.append(1) or value(self))
    resumed = slice_along(surface, directions, coordinates, path=path, progress=lambda *call: calls.append(call))
    assert resumed == whole
    assert len(evaluated) == 3 + 1  # the file is recognised by the loss at the weights
    assert calls == [(i, 6) for i in range(1, 7)]
    assert [json.loads(line).get("at") for line in path.read_text().splitlines()][1:] == list(
        map(list, coordinates)
    )
    for other in (network(seed=1), LossSurface(surface.net, [small_batch(seed=9, dtype=torch.float64)])):
        with pytest.raises(InputError, match="belongs to another landscape; delete it"):
            slice_along(other, directions, coordinates, path=path)


def test_statistics_are_recomputed_and_restored():
    surface = network()
    net = surface.net
    x, y = small_batch(dtype=torch.float64)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    d = random_direction(surface, 1)
    (old,) = slice_along(surface, [d], [(0.7,)])
    (new,) = slice_along(surface, [d], [(0.7,)], statistics=[(x, y)])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net[1].momentum == 0.1 and net[1].training
    reference = small_net(dtype=torch.float64, dropout=0.0)
    reference.load_state_dict(before)
    with torch.no_grad():
        for p, o in zip(reference.parameters(), d, strict=True):
            p.add_(0 if o is None else 0.7 * o)
    torch.optim.swa_utils.update_bn([x], reference)
    expected = float(F.cross_entropy(reference.eval()(x), y).detach())
    assert new.loss == pytest.approx(expected, rel=1e-9)
    assert old.loss != pytest.approx(expected, rel=1e-2)


def test_the_plane_is_that_of_the_singular_value_decomposition():
    surface, states = states_of_one_start()
    names = [n for n, _ in surface.net.named_parameters()]
    rows = np.stack([np.concatenate([s[n].numpy().ravel() for n in names]) for s in states])
    centred = rows - rows.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ axes[:2].T
    plane = principal_plane(surface, states)
    np.testing.assert_allclose(np.abs(plane.coordinates), np.abs(expected), atol=1e-9)
    off = np.linalg.norm(centred - expected @ axes[:2], axis=1)
    np.testing.assert_allclose(plane.residuals, off, atol=1e-7)
    np.testing.assert_allclose(plane.explained, (sizes**2)[:2] / (sizes**2).sum())
    for last in range(len(states)):
        order = [i for i in range(len(states)) if i != last] + [last]
        turned = principal_plane(surface, [states[i] for i in order])
        flat = torch.stack([torch.cat([t.reshape(-1) for t in axis]) for axis in turned.axes])
        np.testing.assert_allclose(turned.coordinates, centred[order] @ flat.numpy().T, atol=1e-9)
        assert (turned.coordinates[-1] >= 0).all()
        torch.testing.assert_close(flat @ flat.T, torch.eye(2, dtype=torch.float64))


def test_a_point_of_the_plane_has_the_plane_s_weights_and_the_nearest_checkpoint_s_buffers():
    surface, states = states_of_one_start()
    plane = principal_plane(surface, states)
    before = {k: v.clone() for k, v in surface.net.state_dict().items()}
    x, y = (float(v) for v in plane.coordinates[4])
    (point,) = evaluate_on_plane(surface, plane, states, [(x, y)])
    expected = dict(states[4])
    axes = zip(plane.mean, *plane.axes, strict=True)
    for name, (mean, a, b) in zip([n for n, _ in surface.net.named_parameters()], axes, strict=True):
        expected[name] = mean + x * a + y * b
    assert point.loss == pytest.approx(loss_of(expected), rel=1e-9)
    assert point.loss != pytest.approx(loss_of(states[4]), abs=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in surface.net.state_dict().items())


def test_a_convex_loss_has_no_barrier_and_a_double_well_has_its_own():
    h = curved(4)
    a, b = Point(W), Point(-2 * W)
    points = evaluate_between(bowl(h, W), [a.state_dict(), b.state_dict()], segment(11))
    assert barrier(points) == 0.0
    for point in points:
        w = point.at[0] * W - 2 * point.at[1] * W
        assert point.loss == pytest.approx(float(w @ h @ w / 2), rel=1e-9)
    # (w^2 - 1)^2 has minima at 1 and -1 and height 1 between them
    well = LossSurface(Point(torch.ones(1)), [small_batch()], lambda z, y: ((z**2 - 1) ** 2).mean())
    ends = [Point(torch.ones(1)).state_dict(), Point(-torch.ones(1)).state_dict()]
    assert barrier(evaluate_between(well, ends, segment(21))) == pytest.approx(1.0)


def test_ends_are_the_networks_themselves_and_mixtures_mix_statistics():
    surface, states = states_of_one_start()
    ends = [states[2], states[5]]
    points = evaluate_between(surface, ends, segment(3))
    assert (points[0].loss, points[2].loss) == pytest.approx(tuple(map(loss_of, ends)), rel=1e-12)
    middle = {k: (v + ends[1][k]) / 2 if v.is_floating_point() else v for k, v in ends[0].items()}
    assert points[1].loss == pytest.approx(loss_of(middle), rel=1e-9)
    triangle = evaluate_between(surface, [states[0], *ends], simplex(3, 2))
    assert {p.at: p.loss for p in triangle}[(0.0, 1.0, 0.0)] == pytest.approx(loss_of(states[2]), rel=1e-12)
    assert barrier(triangle) >= barrier(points)


def test_a_simplex_is_covered_once_and_completely():
    points = simplex(3, 4)
    assert len(set(points)) == len(points) == 15
    every = {tuple(c / 4 for c in counts) for counts in itertools.product(range(5), repeat=3) if sum(counts) == 4}
    assert set(points) == every


def test_the_width_of_a_parabola_and_of_an_open_valley():
    line = [LandscapePoint((t,), t * t, None) for t in np.linspace(-2, 2, 4001).tolist()]
    assert width(line, 0.25) == pytest.approx(1.0, abs=1e-3)
    assert width(line[::-1], 0.25) == width(line, 0.25)
    assert width(line, 5.0) == torch.inf
    losses = ((0.0, 0.0), (1.0, torch.inf), (-1.0, 2.0))
    assert width([LandscapePoint((t,), loss, None) for t, loss in losses], 1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, st: slice_along(s, [s.params], [(1, 2)]), "not 1 coordinates"),
        (lambda s, st: principal_plane(s, st[:2]), "2 checkpoints span no plane"),
        (lambda s, st: principal_plane(s, [st[0]] * 4), "on one line"),
        (lambda s, st: principal_plane(s, [{}, *st]), "has no 0.weight"),
        (lambda s, st: principal_plane(s, [{**st[0], "0.weight": torch.ones(2)}, *st]), r"0.weight is \(2,\)"),
        (lambda s, st: evaluate_between(s, st[:2], [(0.5, 0.6)]), "of sum 1"),
        (lambda s, st: evaluate_between(s, st[:2], [(1.0,)]), "one per network"),
        (lambda s, st: barrier([LandscapePoint((0.5, 0.5), 1.0, None)]), "own loss is missing"),
        (lambda s, st: barrier([]), "own loss is missing"),
        (lambda s, st: segment(1), "points is 1; give at least 2"),
        (lambda s, st: simplex(3, 0), "divisions is 0; give at least 1"),
        (lambda s, st: width([LandscapePoint((0.5,), 1.0, None)], 0.1), "no point is at 0"),
    ],
)
def test_impossible_arguments_are_one_line(call, message):
    surface, states = states_of_one_start()
    with pytest.raises(InputError, match=message):
        call(surface, states)


def test_a_file_of_other_labels_loss_or_statistics_is_refused(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3)).eval()
    x, y = torch.randn(30, 5), torch.arange(30) % 3
    surface = LossSurface(net, [(x, y)])
    directions, path = [random_direction(surface)], tmp_path / "points"

    def line(surface: LossSurface, statistics: list | None = None) -> list:
        return slice_along(surface, directions, [(0.0,), (1.0,)], statistics=statistics, path=path)

    first = line(surface)
    assert line(surface) == first
    others = [
        (LossSurface(net, [(x, (y + 1) % 3)]), None),
        (LossSurface(net, [(x, y)], torch.nn.CrossEntropyLoss(label_smoothing=0.3)), None),
        (surface, [(x, y)]),
    ]
    for other, statistics in others:
        with pytest.raises(InputError, match="belongs to another landscape"):
            line(other, statistics)
    net.register_buffer("adjacency", torch.eye(3).to_sparse())
    with pytest.raises(InputError, match="belongs to another landscape"):
        line(surface)
    del net.adjacency
    net[0].running_mean.fill_(1.0)
    with pytest.raises(InputError, match="belongs to another landscape"):
        line(surface)


def test_a_barrier_of_nan_is_infinite():
    at = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    losses = (1.0, float("nan"), 1.0)
    assert barrier([LandscapePoint(a, v, None) for a, v in zip(at, losses, strict=True)]) == float("inf")
