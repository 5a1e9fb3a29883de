"""A complex parameter is trained and measured as the pair of real numbers that it is."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steppe
from steppe.core.numerics.filters import filter_deviation, in_scope
from steppe.diagnostics import hessian, landscape, landscape_directions, sharpness
from steppe.diagnostics.filter_norms import filter_norms
from steppe.diagnostics.loss_surface import LossSurface
from steppe.integrations.torch_optimizer import SAMOptimizer
from steppe.methods import METHODS, make

SETTINGS = {"sadt-v2": {"scope": "kernels last-dense"}, "one": {"split_at": "2"}}


class Spectral(nn.Module):
    """Complex weights and the modulus of their product with a real input, or the same in pairs of real numbers."""

    def __init__(self, inputs: int, outputs: int, kind: str) -> None:
        super().__init__()
        weight = torch.randn(outputs, inputs, dtype=torch.complex128) * 0.5
        self.kind, self.weight = kind, nn.Parameter(weight if kind == "complex" else torch.view_as_real(weight))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.kind == "complex" else torch.view_as_complex(self.weight)
        return (x.flatten(1).to(weight.dtype) @ weight.T).abs()


def network(kind: str, seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [Spectral(6, 5, kind), nn.BatchNorm1d(5), nn.Linear(5, 5), Spectral(5, 8, kind), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def batches(count: int) -> list[steppe.Batch]:
    torch.manual_seed(0)
    pairs = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))) for _ in range(count)]
    return [steppe.Batch(x, y, torch.arange(8)) for x, y in pairs]


def flat(net: nn.Module) -> Tensor:
    tensors = [*net.parameters(), *net.buffers()]
    return torch.cat([(torch.view_as_real(t) if t.is_complex() else t).detach().reshape(-1) for t in tensors])


def trained(method: steppe.Method, kind: str, **options: Any) -> tuple[Tensor, Tensor]:
    seeds = iter(range(9))
    net = method.build(lambda: network(kind, next(seeds)))
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    step = method.bind(net, optimizer, steps=6, epoch=2, **options)
    for batch in batches(4):
        assert not step(batch).skipped
    return flat(net), step.predict(batches(1)[0].x).detach()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_complex_network_as_its_pairs(name: str) -> None:
    settings = SETTINGS.get(name, {})
    ends = [trained(make(name, **settings), kind) for kind in ("complex", "pairs")]
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("friendly-sam+gc", {"clip": 0.05}),
        ("mesa:start=1", {"microbatch": 3}),
        ("wsam+agc", {"m": 4}),
        ("ema+sam", {"precision": "fp64", "m": 3}),
    ],
)
def test_options_train_a_complex_network_as_its_pairs(spec: str, options: dict[str, Any]) -> None:
    ends = [trained(steppe.parse(spec), kind, **options) for kind in ("complex", "pairs")]
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_optimizer_facade_perturbs_both_parts(adaptive: bool) -> None:
    ends = []
    for kind in ("complex", "pairs"):
        net = network(kind)
        optimizer = SAMOptimizer(net.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, adaptive=adaptive, model=net)
        for batch in batches(3):
            for update in (optimizer.first_step, optimizer.second_step):
                F.cross_entropy(net(batch.x), batch.y).backward()
                update(zero_grad=True)
        ends.append(flat(net))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-10)


def measures(kind: str) -> dict[str, object]:
    net, other = network(kind), network(kind, seed=4)
    surface = LossSurface(net, batches(2))
    direction = landscape_directions.random_direction(surface)
    states = [network(kind, seed).state_dict() for seed in (3, 4, 5)]
    plane = landscape_directions.principal_plane(surface, states)
    points = landscape.evaluate_between(surface, [net.state_dict(), other.state_dict()], [(0.3, 0.7), (1.0, 0.0)])
    return {
        "gradient": torch.cat([g.reshape(-1) for g in surface.gradient()[1]]),
        "hvp": torch.cat([h.reshape(-1) for h in surface.hvp(direction)]),
        "top": torch.tensor(hessian.eigenvalues(surface, 2).values),
        "worst": torch.tensor(sharpness.worst_case_sharpness(surface, 0.1)),
        "slice": torch.tensor([p.loss for p in landscape.slice_along(surface, [direction], [(-0.5,), (0.5,)])]),
        "between": torch.tensor([p.loss for p in points]),
        "plane": torch.tensor(plane.coordinates),
        "on plane": torch.tensor(
            [p.loss for p in landscape.evaluate_on_plane(surface, plane, states, [(0.1, 0.2)])]
        ),
        "filters": torch.tensor(filter_norms(net).norms),
    }


def test_measures_of_a_complex_network_are_those_of_its_pairs() -> None:
    values = [measures(kind) for kind in ("complex", "pairs")]
    for name in values[0]:
        torch.testing.assert_close(values[0][name], values[1][name], rtol=1e-9, atol=1e-10, msg=name)


def test_a_complex_bias_is_a_bias() -> None:
    """It has one dimension, whatever its real view has: it is no kernel, is not centred, and is one unit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3, dtype=torch.complex128))
    step = steppe.GC().bind(net, torch.optim.SGD(net.parameters(), 1.0), loss=lambda z, _: z.real.square().sum())
    rt = step.runtime
    assert in_scope(rt.net, rt.params, "kernels") == [True, False]
    weight, bias = filter_deviation(rt.params, rt.owners, 1.0)
    assert weight.shape == (3, 1, 1)
    torch.testing.assert_close(bias, torch.linalg.vector_norm(net[0].bias.detach()))
    before, x = net[0].bias.detach().clone(), torch.randn(8, 4, dtype=torch.complex128)
    (expected,) = torch.autograd.grad(net(x).real.square().sum(), net[0].bias)
    step(x, torch.zeros(8))
    torch.testing.assert_close(before - net[0].bias, expected)


def test_real_networks_keep_their_parameters_and_moved_ones_are_followed() -> None:
    net = nn.Linear(3, 2)
    rt = steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1)).runtime
    assert rt.params is rt.leaves
    net = network("complex")
    step = steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1))
    step(batches(1)[0])
    with torch.no_grad():
        for p in net.parameters():
            p.data = p.data.clone()  # as model.to does
    before = flat(net)
    out = step(batches(2)[1])
    assert not out.skipped
    assert (flat(net) - before).abs()[:60].min() > 0
    assert step.runtime.params[0].data_ptr() == net[0].weight.data_ptr()


def test_a_step_that_is_not_finite_is_undone() -> None:
    net = network("complex")
    step = steppe.parse("repeat-step").bind(net, torch.optim.Adam(net.parameters(), 0.1))
    x, y = batches(1)[0].x, batches(1)[0].y
    step(x, y)
    before = copy.deepcopy(net.state_dict())
    net[3].weight.register_hook(lambda g: g * complex(0, float("nan")))
    assert step(x, y).skipped
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
