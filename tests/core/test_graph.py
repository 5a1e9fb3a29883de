"""A step that is recorded and replayed makes the bits of one that is made as usual."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe.core.execution._graph_backends import _CudaRNG
from steppe.core.step import Step
from steppe.errors import InputError
from steppe.methods import METHODS, make
from steppe.testing import fixtures

FALLING, RISING = steppe.Linear(0.2, 0.02), steppe.Linear(0.01, 0.1)
SGD = partial(torch.optim.SGD, momentum=0.9, fused=True)
ADAM = partial(torch.optim.AdamW, fused=True)


def trained(
    method: steppe.Method, optimizer: Callable[..., torch.optim.Optimizer], steps: int, **options: Any
) -> tuple[Step, dict[str, Tensor], list[Tensor]]:
    """Train with changing data, sizes of batches and learning rates."""
    torch.manual_seed(0)
    net = method.build(fixtures.small)
    chosen = optimizer(net.parameters(), 0.05)
    step = method.bind(net, chosen, steps=100, epoch=50, **options)
    torch.manual_seed(1)
    losses = []
    for k in range(steps):
        chosen.param_groups[0]["lr"] = 0.05 / (1 + k)
        losses.append(step(fixtures.batch(k, 8 if k % 7 == 6 else 12)).loss)
    return step, {**net.state_dict(), **{f"state {k}": v for k, v in step.state.state_dict().items()}}, losses


def graphs(step: Step) -> int:
    return sum(bool(kind.recorded) for kinds in step._graphed._kinds.values() for kind in kinds)


def assert_same(method: steppe.Method, optimizer: Callable[..., torch.optim.Optimizer], steps: int = 30) -> None:
    usual, *expected = trained(method, optimizer, steps)
    step, weights, losses = trained(method, optimizer, steps, graph=True)
    assert graphs(step) >= 2  # of whole batches and of smaller ones
    assert all(torch.equal(v, weights[k]) for k, v in expected[0].items())
    assert all(map(torch.equal, expected[1], losses))
    passes = vars(usual.passes)
    assert vars(step.passes) == pytest.approx(passes)


@pytest.mark.parametrize(
    "method",
    [
        steppe.Plain(),
        steppe.SAM(rho=FALLING),
        steppe.ASAM(rho=RISING),
        steppe.GSAM(rho=steppe.WithLR(0.1, 0.05)),
        steppe.RWP(gamma=RISING),
        steppe.SADT(),
        steppe.MESA(start=3),
        steppe.On(steppe.SAM(rho=FALLING), steppe.EMA()),
        steppe.LookSAM(k=2),
        steppe.ActiveWindow(steppe.SAM(), start=0.05, every=2),
    ],
    ids=str,
)
def test_a_replayed_step_makes_the_same_bits(method: steppe.Method) -> None:
    assert_same(method, SGD)


def test_a_replayed_step_of_adam_makes_the_same_bits() -> None:
    assert_same(steppe.On(steppe.SAM(rho=FALLING), steppe.EMA()), ADAM)


def test_a_replayed_step_of_several_optimizers_makes_the_same_bits() -> None:
    weights = []
    for graph in (False, True):
        net = fixtures.small()
        params = list(net.parameters())
        torch.manual_seed(1)
        step = steppe.SAM().bind(net, [SGD(params[:2], 0.05), ADAM(params[2:], 0.01)], steps=50, graph=graph)
        for k in range(16):
            step(fixtures.batch(k))
        weights.append(net.state_dict())
    assert graphs(step)
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_replayed_or_refused_by_name(name: str) -> None:
    method = make(name)
    reason = ""
    try:
        trained(method, SGD, 1, graph=True)
    except InputError as error:
        reason = str(error)
    if method.on_host:
        assert f"{type(method).__name__} needs the host" in reason
    else:
        assert not reason
        assert_same(method, SGD, 50)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["averages:decays=0.5 0.9,k=2,every=4,start=8", "sam+lawa:k=2,every=3"])
def test_replayed_means_of_periods_have_the_same_bits(spec: str) -> None:
    assert_same(steppe.parse(spec), SGD, 80)


@pytest.mark.slow
def test_scheduled_rises_enter_as_numbers() -> None:
    assert_same(steppe.parse("le-sam:sigma=cosine(0.05,0)"), SGD)
    assert_same(steppe.parse("le-sam:sigma=ramp(0.01,0.5),rho=5,start=0.2,stop=0.9"), SGD)
    assert_same(steppe.parse("sam+lookahead:alpha=power(1,0.2,3),every=3"), SGD)
    with pytest.raises(InputError, match="Averages needs the host"):
        trained(steppe.parse("averages:device=cpu"), SGD, 1, graph=True)


@pytest.mark.parametrize("options", [{"clip": 0.5}, {"microbatch": 5}, {"m": 4}, {"transforms": [steppe.GC()]}])
def test_options_of_bind_hold_in_a_replayed_step(options: dict[str, Any]) -> None:
    _, expected, _ = trained(steppe.SAM(rho=FALLING), SGD, 20, **options)
    step, weights, _ = trained(steppe.SAM(rho=FALLING), SGD, 20, graph=True, **options)
    assert graphs(step) and all(torch.equal(v, weights[k]) for k, v in expected.items())


def test_a_replayed_step_that_is_not_finite_changes_nothing() -> None:
    step, _, _ = trained(steppe.SAM(), SGD, 20, graph=True)
    rt = step.runtime
    before = {k: v.clone() for k, v in rt.net.state_dict().items()}
    batch = fixtures.batch(1)
    batch.x[3, 0, 0, 0] = float("nan")
    assert step(batch).skipped
    assert all(torch.equal(v, before[k]) for k, v in rt.net.state_dict().items())
    assert not step(fixtures.batch(2)).skipped
    assert not torch.equal(rt.net.state_dict()["0.weight"], before["0.weight"])


def test_other_settings_and_a_loaded_optimizer_are_recorded_anew() -> None:
    ends = []
    for graph in (False, True):
        step, _, _ = trained(steppe.SAM(), SGD, 16, graph=graph)
        optimizer = step.runtime.optimizer
        optimizer.param_groups[0]["momentum"] = 0.5
        for k in range(5):
            step(fixtures.batch(k))
        optimizer.load_state_dict(optimizer.state_dict())
        for k in range(5):
            step(fixtures.batch(k))
        step.runtime.net[1].eval()
        for k in range(5):
            step(fixtures.batch(k))
        assert bool(graph and graphs(step)) == graph
        step.load_state_dict(step.state_dict())
        assert not (graph and graphs(step))
        for k in range(5):
            step(fixtures.batch(k))
        ends.append(step.runtime.net.state_dict())
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


class Asks(steppe.Method):
    """Ask where training is, outside of a decision."""

    def step(self, batch: steppe.Batch, state: object, rt: steppe.Runtime) -> steppe.StepOutput:
        return super().step(batch, state, rt) if rt.now.step >= 0 else rt.supervised(batch)


class Reads(nn.Linear):
    """Decide by a value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum().detach()) < 1e9 else x


def test_what_the_host_decides_is_refused() -> None:
    net = nn.Linear(3, 2)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    with pytest.raises(InputError, match="asks where training is"):
        Asks().bind(net, torch.optim.SGD(net.parameters(), 0.1, fused=True), graph=True)(x, y)
    with pytest.raises(InputError, match="make it with fused=True"):
        steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1), graph=True)
    with pytest.raises(InputError, match="weigh is a function"):
        steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1, fused=True), graph=True, weigh=lambda _: 1.0)
    net = Reads(3, 2)
    step = steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1, fused=True), graph=True)
    for _ in range(10):
        step(x, y)
    with pytest.raises(InputError, match="host reads a value"):
        step(x, y)


def test_a_ramp_over_a_window_and_chosen_parameters_enter_as_numbers() -> None:
    sam = steppe.SAM(rho=steppe.parse("sam:rho=ramp(0.01,0.2)").rho, where="kernels")  # type: ignore[attr-defined]
    assert_same(steppe.ActiveWindow(sam, start=0.1, stop=0.9), SGD)


class Philox:
    """What `_CudaRNG` uses of a generator of a GPU, whose numbers are those from an offset on."""

    def __init__(self, seed: int, offset: int = 0):
        self.state = [seed, offset]

    def clone_state(self) -> "Philox":
        return Philox(*self.state)

    def graphsafe_get_state(self) -> "Philox":
        own = Philox(0)
        own.state = self.state
        return own

    def graphsafe_set_state(self, other: "Philox") -> None:
        self.state = other.state

    def initial_seed(self) -> int:
        return self.state[0]

    def get_offset(self) -> int:
        return self.state[1]

    def set_offset(self, offset: int) -> None:
        self.state[1] = offset

    def manual_seed(self, seed: int) -> None:
        self.state[:] = [seed, 0]


@pytest.mark.parametrize("first", [False, True])
def test_a_replay_on_a_gpu_draws_what_the_eager_step_would(first: bool) -> None:
    """Masks of a SAM-like step with fresh masks, and with what only its first step does."""
    gpu, seeds = Philox(7, 40), torch.Generator().manual_seed(3)

    def step(rng: Any, draw: Callable[[], Any], once: bool = False) -> list[Any]:
        drawn = []
        rng.begin_clean()
        drawn.append(draw())
        if once:
            with rng.restored():
                draw()
        for seed in (None, rng.draw_seed(seeds)):
            rng.enter(seed)
            drawn += [draw(), draw()]
            rng.leave()
        rng.begin_clean()
        drawn.append(draw())
        rng.end()
        return drawn

    def now() -> tuple[int, int]:
        seed, offset = gpu.state
        gpu.state[1] += 4
        return seed, offset

    eager = []
    for k in range(3):
        eager.append(step(_CudaRNG(gpu, False, 8), now, once=first and k == 0))
    end = list(gpu.state)
    assert len({*eager[0], *eager[1]}) == 2 * len({*eager[0]})  # new ones in each step
    assert eager[0][0] == eager[0][1]  # the pass at other weights has the masks of the clean one

    gpu, seeds = Philox(7, 40), torch.Generator().manual_seed(3)
    taken: dict[int, int] = {}

    def place() -> tuple[list[int], int]:
        taken[id(gpu.state)] = taken.get(id(gpu.state), -4) + 4
        return gpu.state, taken[id(gpu.state)]

    rng = _CudaRNG(gpu, True, 8)
    recorded = step(rng, place)
    for expected in eager:
        rng.set()
        assert [(state[0], state[1] + more) for state, more in recorded] == expected
    assert gpu.state == end
