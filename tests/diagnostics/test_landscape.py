"""Slices against closed forms on a quadratic, and what they promise on a network with BatchNorm."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.bowl import Point, bowl, curved
from support.small import small_batch, small_net

from steppe.diagnostics.landscape import (
    LandscapePoint,
    barrier,
    between,
    evaluate_on_plane,
    grid,
    segment,
    simplex,
    slice_along,
    width,
)
from steppe.diagnostics.landscape_directions import cosine, principal_plane, random_direction
from steppe.diagnostics.loss_surface import LossSurface
from steppe.errors import InputError

W = torch.tensor([0.7, -1.3, 0.4, 2.0], dtype=torch.float64)


def network(seed: int = 0, steps: int = 5) -> LossSurface:
    net, (x, y) = small_net(seed, dtype=torch.float64), small_batch(dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return LossSurface(net, [(x[:5], y[:5]), (x[5:], y[5:])])


def states_of_one_start() -> tuple[LossSurface, list[dict[str, torch.Tensor]]]:
    surface = network()
    states = []
    for seed in range(2):
        net = small_net(dtype=torch.float64)
        torch.manual_seed(seed)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            x, y = small_batch(seed=int(torch.randint(99, ())), dtype=torch.float64)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            states.append({k: v.clone() for k, v in net.state_dict().items()})
    return surface, states


def test_a_line_through_a_quadratic_is_its_parabola():
    h = curved(4)
    d = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    spots = slice_along(bowl(h, W), [[d]], [(t,) for t in (-1.0, 0.0, 0.3)])
    for spot in spots:
        w = W + spot.at[0] * d
        assert spot.loss == pytest.approx(float(w @ h @ w / 2), rel=1e-12)
        assert spot.accuracy is None


def test_the_origin_is_the_checkpoint_s_own_loss_and_accuracy():
    surface = network()
    net = surface.net.eval()
    x, y = small_batch(dtype=torch.float64)
    a, b = random_direction(surface, 1), random_direction(surface, 2)
    (spot,) = slice_along(surface, [a, b], [(0, 0)])
    assert spot.loss == pytest.approx(float(F.cross_entropy(net(x), y).detach()), abs=1e-12)
    assert spot.accuracy == float((net(x).argmax(1) == y).double().mean())
    net.train()


def test_directions_have_the_filters_lengths_and_leave_biases_alone():
    surface = network()
    found = random_direction(surface, 3)
    for p, d in zip(surface.params, found, strict=True):
        if p.ndim == 1:
            assert d is None
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), p.detach().flatten(1).norm(dim=1))
    other = network(seed=4)
    again = random_direction(other, 3)
    for p, q, d, e in zip(surface.params, other.params, found, again, strict=True):
        if d is not None:
            # one noise for all networks, each at its own scale
            ratio = q.detach().flatten(1).norm(dim=1) / p.detach().flatten(1).norm(dim=1)
            torch.testing.assert_close(e, d * ratio.view(-1, *[1] * (d.ndim - 1)))
    assert abs(cosine(found, random_direction(surface, 4))) < 0.15
    assert cosine(found, found) == pytest.approx(1)


def test_a_grid_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    surface, path = network(), tmp_path / "grid.jsonl"
    directions = [random_direction(surface, 1), random_direction(surface, 2)]
    places = grid([-1, 0, 1], [-0.5, 0.5])
    whole = slice_along(surface, directions, places)

    def stop(done: int, count: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slice_along(surface, directions, places, path=path, progress=stop)
    path.write_bytes(path.read_bytes()[:-7])  # killed in the middle of a line
    evaluated, heard = [], []
    value = LossSurface.value
    monkeypatch.setattr(LossSurface, "value", lambda self: evaluated.append(1) or value(self))
    resumed = slice_along(surface, directions, places, path=path, progress=lambda *p: heard.append(p))
    assert resumed == whole
    assert len(evaluated) == 3
    assert heard == [(i, 6) for i in range(1, 7)]
    assert [json.loads(line).get("at") for line in path.read_text().splitlines()][1:] == [list(p) for p in places]
    for other in (network(seed=1), LossSurface(surface.net, [small_batch(seed=9, dtype=torch.float64)])):
        with pytest.raises(InputError, match="holds another slice; delete it"):
            slice_along(other, directions, places, path=path)


def test_statistics_may_be_estimated_anew_and_leave_no_trace():
    surface = network()
    net = surface.net
    x, y = small_batch(dtype=torch.float64)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    d = random_direction(surface, 1)
    old = slice_along(surface, [d], [(0.7,)])
    new = slice_along(surface, [d], [(0.7,)], statistics=[(x, y)])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net[1].momentum == 0.1 and net[1].training
    reference = small_net(dtype=torch.float64, dropout=0.0)
    reference.load_state_dict(before)
    with torch.no_grad():
        for p, o in zip(reference.parameters(), d, strict=True):
            p.add_(0 if o is None else 0.7 * o)
        reference.train()
        for m in (reference[1], reference[5]):
            m.momentum = 1.0
        reference(x)
        reference.eval()
        expected = float(F.cross_entropy(reference(x), y))
    assert new[0].loss == pytest.approx(expected, rel=1e-9)
    assert old[0].loss != pytest.approx(expected, rel=1e-2)


def test_the_plane_is_that_of_the_dense_decomposition():
    surface, states = states_of_one_start()
    names = [n for n, _ in surface.net.named_parameters()]
    rows = np.stack([np.concatenate([s[n].numpy().ravel() for n in names]) for s in states])
    fitted = [0, 1, 2, 4, 5]
    centred = rows - rows[fitted].mean(0)
    _, sizes, axes = np.linalg.svd(centred[fitted], full_matrices=False)
    expected = centred @ axes[:2].T
    plane = principal_plane(surface, states, fitted)
    np.testing.assert_allclose(np.abs(plane.places), np.abs(expected), atol=1e-9)
    assert (plane.places[5] >= 0).all()
    off = np.linalg.norm(centred - expected @ axes[:2], axis=1)
    np.testing.assert_allclose(plane.residuals, off, atol=1e-7)
    np.testing.assert_allclose(plane.explained, (sizes**2)[:2] / (sizes**2).sum())
    flat = [torch.cat([t.reshape(-1) for t in axis]) for axis in plane.axes]
    np.testing.assert_allclose(plane.places, centred @ torch.stack(flat).numpy().T, atol=1e-9)
    for last in fitted:
        turned = principal_plane(surface, states, [i for i in fitted if i != last] + [last])
        axes_of = [torch.cat([t.reshape(-1) for t in axis]) for axis in turned.axes]
        np.testing.assert_allclose(turned.places, centred @ torch.stack(axes_of).numpy().T, atol=1e-9)
        assert (turned.places[last] >= 0).all()
    gram = torch.stack(flat) @ torch.stack(flat).T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64))


def test_in_the_nearest_mode_each_checkpoint_has_its_own_loss_at_its_place():
    surface, states = states_of_one_start()
    plane = principal_plane(surface, states)
    before = {k: v.clone() for k, v in surface.net.state_dict().items()}
    spots = evaluate_on_plane(surface, plane, states, [tuple(p) for p in plane.places], mode="nearest")
    x, y = small_batch(dtype=torch.float64)
    for state, spot in zip(states, spots, strict=True):
        net = small_net(dtype=torch.float64).eval()
        net.load_state_dict(state)
        assert spot.loss == pytest.approx(float(F.cross_entropy(net(x), y).detach()), rel=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in surface.net.state_dict().items())
    flat = evaluate_on_plane(surface, plane, states, [tuple(p) for p in plane.places])
    assert any(abs(a.loss - b.loss) > 1e-6 for a, b in zip(spots, flat, strict=True))


def test_on_the_plane_a_quadratic_is_a_quadratic():
    h = curved(4)
    g = torch.Generator().manual_seed(0)
    states = [Point(torch.randn(4, dtype=torch.float64, generator=g)).state_dict() for _ in range(5)]
    surface = bowl(h, W)
    plane = principal_plane(surface, states)
    (spot,) = evaluate_on_plane(surface, plane, states, [(0.4, -1.1)])
    w = plane.mean[0] + 0.4 * plane.axes[0][0] - 1.1 * plane.axes[1][0]
    assert spot.loss == pytest.approx(float(w @ h @ w / 2), rel=1e-9)


def test_a_convex_loss_has_no_barrier_and_a_double_well_has_its_own():
    h = curved(4)
    a, b = Point(W), Point(-2 * W)
    spots = between(bowl(h, W), [a.state_dict(), b.state_dict()], segment(11))
    assert barrier(spots) == 0.0
    for spot in spots:
        w = spot.at[0] * W - 2 * spot.at[1] * W
        assert spot.loss == pytest.approx(float(w @ h @ w / 2), rel=1e-9)
    # (w^2 - 1)^2 has minima at 1 and -1 and height 1 between them
    well = LossSurface(Point(torch.ones(1)), [small_batch()], lambda z, y: ((z**2 - 1) ** 2).mean())
    ends = [Point(torch.ones(1)).state_dict(), Point(-torch.ones(1)).state_dict()]
    assert barrier(between(well, ends, segment(21))) == pytest.approx(1.0)


def test_ends_are_the_networks_themselves_and_the_middle_mixes_statistics():
    surface, states = states_of_one_start()
    x, y = small_batch(dtype=torch.float64)

    def alone(state: dict[str, torch.Tensor]) -> float:
        net = small_net(dtype=torch.float64).eval()
        net.load_state_dict(state)
        return float(F.cross_entropy(net(x), y).detach())

    ends = [states[2], states[5]]
    spots = between(surface, ends, segment(3))
    assert (spots[0].loss, spots[2].loss) == pytest.approx((alone(ends[0]), alone(ends[1])), rel=1e-12)
    middle = {k: (v + ends[1][k]) / 2 if v.is_floating_point() else v for k, v in ends[0].items()}
    assert spots[1].loss == pytest.approx(alone(middle), rel=1e-9)
    three = between(surface, [states[0], states[2], states[5]], simplex(3, 2))
    corners = {s.at: s.loss for s in three}
    assert corners[(0.0, 1.0, 0.0)] == pytest.approx(alone(states[2]), rel=1e-12)
    edge = between(surface, [states[0], states[2]], segment(3))
    assert barrier(three) >= barrier(edge)


def test_a_simplex_is_covered_once_and_whole():
    places = simplex(3, 4)
    assert len(set(places)) == len(places) == 15
    every = {tuple(c / 4 for c in cut) for cut in itertools.product(range(5), repeat=3) if sum(cut) == 4}
    assert set(places) == every


def test_width_of_a_parabola_and_of_an_open_valley():
    line = [LandscapePoint((t,), t * t, None) for t in np.linspace(-2, 2, 4001).tolist()]
    assert width(line, 0.25) == pytest.approx(1.0, abs=1e-3)
    assert width(line[::-1], 0.25) == width(line, 0.25)
    assert width(line, 5.0) == torch.inf
    broken = [
        LandscapePoint((0.0,), 0.0, None),
        LandscapePoint((1.0,), torch.inf, None),
        LandscapePoint((-1.0,), 2.0, None),
    ]
    assert width(broken, 1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, st: slice_along(s, [s.params], [(1, 2)]), "not 1 numbers"),
        (lambda s, st: principal_plane(s, st[:2]), "2 checkpoints span no plane"),
        (lambda s, st: principal_plane(s, [st[0]] * 4), "on one line"),
        (lambda s, st: principal_plane(s, [{}, *st]), "has no 0.weight"),
        (lambda s, st: principal_plane(s, [{**st[0], "0.weight": torch.ones(2)}, *st]), r"0.weight is \(2,\)"),
        (lambda s, st: between(s, st[:2], [(0.5, 0.6)]), "of sum 1"),
        (lambda s, st: between(s, st[:2], [(1.0,)]), "one per network"),
        (lambda s, st: barrier([LandscapePoint((0.5, 0.5), 1.0, None)]), "own loss is missing"),
        (lambda s, st: evaluate_on_plane(s, principal_plane(s, st), st, [], mode="near"), "mode is 'near'"),
    ],
)
def test_impossible_arguments_are_refused(call, message):
    surface, states = states_of_one_start()
    with pytest.raises(InputError, match=message):
        call(surface, states)
