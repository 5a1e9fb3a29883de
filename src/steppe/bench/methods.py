"""What a step costs: methods side by side in one process, as ratios to plain training and to their own floor.

The floor of a method is what its counted passes cost in plain training: forward passes at the price of a forward
pass, backward passes at the rest of a plain step. Plain training is timed right before and after each of them,
itself included, whose line so tells how far noise reaches. What a step does beside its passes is timed within it,
and so more exactly (`steppe.bench.passes`). How they are timed: `steppe.bench.timing`; memory:
`steppe.bench.memory`. An optimizer of another package (``module:Class``) runs in the loop that its users write,
with the same network, memory layout and base optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steppe import hardware, methods, models
from steppe.bench.memory import peak_bytes
from steppe.bench.passes import Timed, above
from steppe.bench.timing import TimingSpread, at_least_one, beside, per_step, spread
from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.testing.fixtures import BaseOptimizer
from steppe.testing.resolve import subjects_of
from steppe.testing.subjects import OurMethod
from steppe.testing.third_party import ThirdParty

PLAIN, FORWARD = "plain", "(forward)"
_RATE, _MOMENTUM = 1e-4, 0.9


@dataclass(frozen=True)
class StepCost:
    """A method's price: step time as a multiple of plain's, with quartiles, and of its floor; its passes.

    ``beside`` is what its step does beside its passes, over what as many plain steps do, as a share of the floor;
    None on a GPU, where passes do not end when their calls do. ``memory`` is the most that tensors take during a
    step, weights, states and activations, as a multiple of plain's.
    """

    method: str
    ratio: float
    low: float
    high: float
    floor: float
    over_floor: float
    beside: TimingSpread | None
    forward: float
    backward: float
    updates: float
    milliseconds: float
    memory: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def methods_cost(
    specs: Sequence[str],
    *,
    model: str = "simple-cnn",
    batch: int = 64,
    size: int = 32,
    steps: int = 5,
    repeats: int = 15,
    tell: Callable[[int], None] = lambda repeat: None,
) -> list[StepCost]:
    """Return what a step of each method costs on random images.

    Args:
        specs: Methods, as on the command line; ``module:Class`` for an optimizer of another package.
        model: Name of a model.
        batch: Images per step.
        size: Side of the images in pixels.
        steps: Steps per timing; a whole number of a method's period keeps LookSAM and the like in step.
        repeats: Timings of each method.
        tell: Called with the number of each finished repeat.

    Raises:
        InputError: A number is below 1, or a method, an optimizer or a model does not exist.
    """
    at_least_one(batch=batch, size=size, steps=steps, repeats=repeats)
    names = [PLAIN, *(s for s in dict.fromkeys(specs) if s != PLAIN)]
    with hardware.threads(1):
        return _measured(names, model, batch, size, steps, repeats, tell)


def _measured(
    names: list[str], model: str, batch: int, size: int, steps: int, repeats: int, tell: Callable[[int], None]
) -> list[StepCost]:
    works = {name: _work(name, model, batch, size) for name in names}
    for work in works.values():
        per_step(work.once, 2 * steps)
    whole = {**{n: work.once for n, work in works.items()}, FORWARD: works[PLAIN].forward}
    timed = {n: Timed(once, steps, watched=not torch.cuda.is_available()) for n, once in whole.items()}
    times, plain = beside(timed[PLAIN], timed, repeats, tell)
    ratios = {name: spread(t, plain[name]) for name, t in times.items()}
    share = ratios[FORWARD].median
    passes = {name: work.per_step() for name, work in works.items()}
    apart = {name: one.beside for name, one in timed.items()}
    base = median(plain[PLAIN])
    del works, whole, timed
    memory = {name: peak_bytes(lambda n=name: _work(n, model, batch, size).once) for name in names}  # type: ignore[misc]
    found = []
    for name in names:
        (ahead, back, updates), ratio = passes[name], ratios[name]
        floor = share * ahead + (1 - share) * back
        added = above(apart[name], apart[PLAIN], back, floor * base) if apart[name] else None
        found.append(
            StepCost(
                *(name, ratio.median, ratio.low, ratio.high, floor, ratio.median / floor, added),
                *(ahead, back, updates, 1000 * median(times[name]), memory[name] / memory[PLAIN]),
            )
        )
    return found


class _StepWork:
    """The network or networks of a method, a batch of as many views as it looks at, and steps on it."""

    def __init__(self, method: Method, model: str, batch: int, size: int):
        device = hardware.device()
        torch.manual_seed(0)
        net = method.build(lambda: models.build(model, classes=10, channels=3, size=size)).to(device)
        self.net: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        views = {f"view {i}": x for i in range(2, method.views + 1)}
        self.batch = Batch(x, torch.arange(batch, device=device) % 10, torch.arange(batch), views)

    def once(self) -> None:
        """Make a step."""
        raise NotImplementedError

    def per_step(self) -> tuple[float, float, float]:
        """Return forward passes, backward passes and updates of the mean step."""
        raise NotImplementedError

    def forward(self) -> None:
        """Make a forward pass."""
        with torch.no_grad():
            self.net(self.batch.x)


class _Ours(_StepWork):
    """A method bound to the network."""

    def __init__(self, method: Method, *about: Any):
        super().__init__(method, *about)
        optimizer = torch.optim.SGD(self.net.parameters(), _RATE, momentum=_MOMENTUM, fused=True)
        self.step = method.bind(self.net, optimizer, steps=10**6)

    def once(self) -> None:
        """Make a step."""
        self.step(self.batch)

    def per_step(self) -> tuple[float, float, float]:
        """Return what was counted."""
        return self.step.passes.per_step()


class _Theirs(_StepWork):
    """Another package's optimizer in the loop that it asks for."""

    def __init__(self, party: ThirdParty, *about: Any):
        super().__init__(methods.parse(PLAIN), *about)
        base = BaseOptimizer(torch.optim.SGD, {"lr": _RATE, "momentum": _MOMENTUM, "fused": True})
        self.optimizer, self.form = party.make(self.net, base), party.form
        self.passes = self.steps = 0

    def once(self) -> None:
        """Make a step."""
        self.steps += 1
        if self.form == "closure":
            self.optimizer.step(self.closure)
            self.optimizer.zero_grad()
            return
        self.one_pass()
        self.optimizer.first_step(zero_grad=True)
        self.one_pass()
        self.optimizer.second_step(zero_grad=True)

    def closure(self) -> Tensor:
        """Clear the gradients and make a pass."""
        self.optimizer.zero_grad()
        return self.one_pass()

    def one_pass(self) -> Tensor:
        """Make a forward and a backward pass."""
        self.passes += 1
        loss = F.cross_entropy(self.net(self.batch.x), self.batch.y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def per_step(self) -> tuple[float, float, float]:
        """Return how often the loop was asked for a pass."""
        each = self.passes / self.steps
        return each, each, 1.0


def _work(spec: str, *about: Any) -> _StepWork:
    """Return the work of a method, or of another package's optimizer."""
    (subject,) = subjects_of([spec])
    if isinstance(subject, OurMethod):
        return _Ours(subject.method, *about)
    assert isinstance(subject, ThirdParty)
    return _Theirs(subject, *about)
