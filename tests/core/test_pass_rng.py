"""Draws of Python's and NumPy's generators in the passes of a step."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe.core.execution import _graph_backends
from steppe.core.state.pass_rng import NumPyRandom, PassRNG, PythonRandom
from steppe.core.step import Step
from steppe.errors import InputError

DRAWS = {
    "python": random.random,
    "numpy": np.random.rand,
    "normal": np.random.randn,
}  # randn keeps its second value


class Noisy(nn.Linear):
    """Draws a number in each forward pass in training, from a step on."""

    def __init__(self, draw: str, start: int = 0):
        torch.manual_seed(0)
        super().__init__(4, 2)
        self.drawn, self.calls = [], 0
        self.draw, self.start = DRAWS[draw], start

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= self.start:
            return super().forward(x)
        self.drawn.append(self.draw())
        return super().forward(x) * (1 + self.drawn[-1])


def trained(spec: str, draw: str, steps: int, start: int = 0) -> tuple[Noisy, Step, list[float]]:
    random.seed(0)
    np.random.seed(0)
    net = Noisy(draw, start)
    step = steppe.parse(spec).bind(net, torch.optim.SGD(net.parameters(), 0.1))
    for _ in range(steps):
        step(torch.ones(3, 4), torch.tensor([0, 1, 0]))
    return net, step, [random.random(), np.random.rand(), np.random.randn()]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("spec", ["sam", "sam:ascents=2", "gsam", "looksam"])
def test_passes_of_a_step_have_the_same_draws_and_advance_as_one(spec: str, draw: str) -> None:
    plain, _, rest = trained("plain", draw, 12)
    net, step, own = trained(spec, draw, 12)
    assert own == rest
    repeats = [net.drawn.count(number) for number in plain.drawn]
    assert sum(repeats) == len(net.drawn) == net.calls > 12 and min(repeats) >= 1
    kinds = {"python": PythonRandom}.get(draw, NumPyRandom)
    assert [type(g) for g in step.runtime.pass_rng.generators] == [torch.Generator, kinds]


def test_fresh_masks_have_draws_of_their_own_and_leave_the_generators_as_they_were() -> None:
    rng = PassRNG(torch.device("cpu"))
    states = [PythonRandom.get_state(), np.random.get_state()[2]]
    numbers = []
    for _ in range(2):
        rng.enter(2**40 + 3)
        numbers.append([random.random(), np.random.rand()])
        rng.leave()
    assert numbers[0] == numbers[1]
    assert [PythonRandom.get_state(), np.random.get_state()[2]] == states


def test_generators_that_no_pass_draws_from_are_left_out_after_the_first_steps(monkeypatch) -> None:
    _, step, _ = trained("sam", "numpy", 10, start=99)
    monkeypatch.setattr(NumPyRandom, "get_state", staticmethod(lambda: 1 / 0))
    step(torch.ones(3, 4), torch.tensor([0, 1, 0]))
    assert len(step.runtime.pass_rng.generators) == 1


def test_draws_between_steps_are_not_the_model_s() -> None:
    net = nn.Linear(4, 2)
    step = steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1))
    for _ in range(10):
        random.random()
        np.random.rand()
        step(torch.ones(3, 4), torch.tensor([0, 1, 0]))
    assert len(step.runtime.pass_rng.generators) == 1


def test_a_resumed_step_goes_on_watching_or_not_as_it_did() -> None:
    whole, _, _ = trained("sam", "numpy", 24, start=30)  # draws after the steps that are watched
    again, other, _ = trained("sam", "numpy", 20, start=30)
    content, weights = other.state_dict(), again.state_dict()
    np.random.seed(0)
    np.random.rand(len(again.drawn))
    resumed = Noisy("numpy")
    resumed.load_state_dict(weights)
    step = steppe.parse("sam").bind(resumed, torch.optim.SGD(resumed.parameters(), 0.1))
    step.load_state_dict(content)
    for _ in range(4):
        step(torch.ones(3, 4), torch.tensor([0, 1, 0]))
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("draw", ["numpy", "python"])
def test_a_graph_refuses_draws_of_the_host_and_saves_no_states(draw: str) -> None:
    def graphed(start: int) -> Step:
        net = Noisy(draw, start)
        return steppe.SAM().bind(net, torch.optim.SGD(net.parameters(), 0.1, fused=True), graph=True)

    def train(step: Step) -> None:
        for _ in range(12):
            step(torch.ones(3, 4), torch.tensor([0, 1, 0]))

    step = graphed(start=99)
    assert len(step.runtime.pass_rng.generators) == 1
    train(step)
    with pytest.raises(InputError, match="draws numbers on the host"):
        train(graphed(start=0))


def test_a_cuda_graph_has_the_generator_of_torch(monkeypatch) -> None:
    given = []
    monkeypatch.setattr(_graph_backends, "_CudaRNG", lambda generator, *_: given.append(generator))
    graph = object.__new__(_graph_backends.CudaGraph)
    graph._device, graph._passes = torch.device("cpu"), 0
    graph.begin(PassRNG(torch.device("cpu")), [], False)
    assert given == [torch.default_generator]
