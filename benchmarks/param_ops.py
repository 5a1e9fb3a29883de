"""What a step costs beside its passes: all that is done to parameters, with gradients given, not computed.

Beside a method stands, where there is one, the usual loop in its place: for SAM a norm, a copy, a move and a way
back per tensor, one tensor after the other, and two walks over all modules that keep the second pass out of the
running statistics, with the base optimizer of PyTorch's default or a fused one. All are driven by the same
gradients and timed in turns, see `steppe.bench.timing`; to put gradients where a backward pass would leave them is
not counted. The loops do not look whether gradients are finite, and could not take a step back; ours do and can.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steppe import hardware, methods, models
from steppe.bench.timing import TimingSpread, alternating, at_least_one, now, per_step, spread
from steppe.core.batch import Batch
from steppe.core.numerics.vector import Vec
from steppe.core.step_state import StepOutput
from steppe.errors import InputError

_CLASSES, _ROWS = 10, 8
_IN_USE = "momentum_in_use"


@dataclass(frozen=True)
class ParamsCost:
    """Parameter-side time of a step: of plain's, and how many times as long the usual loop takes, if there is one.

    ``loop`` has the optimizer's default implementation, ``loop_fused`` the fused one that ours has.
    """

    method: str
    of_plain: TimingSpread
    loop: TimingSpread | None
    loop_fused: TimingSpread | None
    milliseconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def params_cost(
    specs: Sequence[str] = ("plain", "sam"),
    *,
    model: str = "resnet110",
    steps: int = 5,
    repeats: int = 15,
    tell: Callable[[int], None] = lambda repeat: None,
) -> list[ParamsCost]:
    """Return what a step of each method costs beside its passes.

    Args:
        specs: Methods, as on the command line; those whose gradients are all of the step's objective.
        model: Name of the model whose parameters they work on.
        steps: Steps per timing.
        repeats: Timings of each.
        tell: Called with the number of each finished repeat.

    Raises:
        InputError: A number is below 1, a name is unknown, or a method runs the network on its own account.
    """
    at_least_one(steps=steps, repeats=repeats)
    names = list(dict.fromkeys(["plain", *specs]))
    works: dict[str, Work] = {}
    for name in names:
        works[name] = ours(name, _network(model))
        if name in LOOPS:
            works[f"{name} loop"] = loop(name, _network(model), fused=False)
            works[f"{name} loop fused"] = loop(name, _network(model), fused=True)

    with hardware.threads(1):
        for work in works.values():
            work.time(2)
        times = alternating({name: partial(work.time, steps) for name, work in works.items()}, repeats, tell)
    return [
        ParamsCost(
            name,
            spread(times[name], times["plain"]),
            spread(times[f"{name} loop"], times[name]) if name in LOOPS else None,
            spread(times[f"{name} loop fused"], times[name]) if name in LOOPS else None,
            1000 * median(times[name]),
        )
        for name in names
    ]


class Given:
    """Gradients, put in their places as a backward pass would; ``spent`` is how many seconds that has taken."""

    def __init__(self, params: Sequence[nn.Parameter]):
        self.params, self.grads, self.spent = params, given_gradients(params), 0.0

    def place(self) -> None:
        """Put them where the optimizer looks for them."""
        start = now()
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g
        self.spent += now() - start


@dataclass(frozen=True)
class Work:
    """A step on parameters, and the gradients that it is given."""

    step: Callable[[], None]
    given: Given

    def time(self, steps: int) -> float:
        """Return how long one of so many steps takes, without the time for putting gradients in their places."""
        before = self.given.spent
        took = per_step(self.step, steps)
        return took - (self.given.spent - before) / steps


class _Loss(Tensor):
    """A loss whose backward pass is given."""

    given: Given
    # what comes of it is an ordinary tensor, and costs what one does
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def backward(self, *_: Any, **__: Any) -> None:
        self.given.place()


class _Idle(nn.Module):
    """A network that has parameters and is never run."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        raise InputError("this method runs its network for more than its objective; use `steppe bench methods`")


def ours(spec: str, network: nn.Module) -> Work:
    """Return a step of a method on a network's parameters, whose gradients are given."""
    net = _Idle(network)
    step = methods.parse(spec).bind(net, _sgd(net, fused=True), steps=10**6, epoch=100)
    loss = torch.zeros(()).as_subclass(_Loss)
    loss.given = Given(step.runtime.params)
    logits = torch.zeros(_ROWS, _CLASSES)
    step.runtime.objective = lambda batch: StepOutput(
        loss, logits if len(batch) == _ROWS else logits[: len(batch)]
    )
    batch = Batch(torch.zeros(_ROWS, 1), torch.arange(_ROWS) % _CLASSES, torch.arange(_ROWS))

    def once() -> None:
        step(batch)

    return Work(once, loss.given)


def loop(name: str, network: nn.Module, *, fused: bool) -> Work:
    """Return a step of the usual loop for this method on a network's parameters, on the same gradients."""
    given = Given(list(network.parameters()))
    return Work(LOOPS[name](given, _sgd(network, fused), network), given)


def _plain_loop(given: Given, base: torch.optim.Optimizer, net: nn.Module) -> Callable[[], None]:
    def once() -> None:
        given.place()
        base.step()
        base.zero_grad()

    return once


def _sam_loop(given: Given, base: torch.optim.Optimizer, net: nn.Module) -> Callable[[], None]:
    """SAM one tensor after the other, what was there kept in the optimizer's state.

    As in the loops in use: times one where an adaptive form has its scaling, in the norm and in the move; norm and
    radius brought to the tensor's device; the norm layers' statistics switched off and on over all modules.
    """
    params = given.params
    state: dict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)

    def climb() -> None:
        device = params[0].device
        norms = [(1.0 * p.grad).norm(p=2).to(device) for p in params if p.grad is not None]
        radius = 0.05 / (torch.stack(norms).norm(p=2) + 1e-12)
        for p in params:
            if p.grad is not None:
                state[p]["here"] = p.data.clone()
                p.add_(1.0 * p.grad * radius.to(p))

    def come_back() -> None:
        for p in params:
            if p.grad is not None:
                p.data = state[p]["here"]

    def once() -> None:
        net.apply(_count_statistics)
        given.place()
        with torch.no_grad():
            climb()
        base.zero_grad()
        net.apply(_forget_statistics)
        given.place()
        with torch.no_grad():
            come_back()
        base.step()
        base.zero_grad()

    return once


def _forget_statistics(module: nn.Module) -> None:
    if isinstance(module, _BatchNorm):
        setattr(module, _IN_USE, module.momentum)
        module.momentum = 0.0


def _count_statistics(module: nn.Module) -> None:
    if isinstance(module, _BatchNorm) and hasattr(module, _IN_USE):
        module.momentum = getattr(module, _IN_USE)


LOOPS = {"plain": _plain_loop, "sam": _sam_loop}


def _network(model: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build(model, classes=_CLASSES, channels=3, size=32)


def given_gradients(params: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradients that every contestant is given."""
    g = torch.Generator().manual_seed(0)
    drawn: Vec = [torch.randn(p.shape, generator=g) * 1e-3 for p in params]
    return [d.to(p.device) for d, p in zip(drawn, params, strict=True) if d is not None]


def _sgd(net: nn.Module, fused: bool) -> torch.optim.Optimizer:
    kind = {"fused": True} if fused else {}
    return torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9, **kind)
