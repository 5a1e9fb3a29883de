"""Cost of a step outside its passes: all work on parameters, with given gradients instead of backward passes.

Where there is a usual loop for a method, it is timed too: for SAM a norm, a copy, a move and a restore per tensor,
one tensor after the other, and two walks over all modules that keep the second pass out of the running statistics,
with the base optimizer in PyTorch's default implementation and in the fused one. All use the same gradients and
are timed in turns (`steppe.bench.timing`); the time to assign gradients, the work of a backward pass, is not
counted. The loops do not check that gradients are finite and could not undo a step; ours do both.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steppe import hardware, methods, models
from steppe.bench.timing import TimingSpread, alternating, at_least_one, no_progress, now, per_step, spread
from steppe.core.batch import Batch
from steppe.core.step_state import StepOutput
from steppe.errors import InputError

_CLASSES, _ROWS = 10, 8
_MOMENTUM = "saved_momentum"


@dataclass(frozen=True)
class ParamsCost:
    """Time of a step's work on parameters: over plain's, and that of the usual loop, if there is one, over ours.

    ``loop`` has the optimizer's default implementation, ``loop_fused`` the fused one, as ours.
    """

    method: str
    of_plain: TimingSpread
    loop: TimingSpread | None
    loop_fused: TimingSpread | None
    milliseconds: float


def params_cost(
    specs: Sequence[str],
    *,
    model: str,
    steps: int,
    repeats: int,
    progress: Callable[[int], None] = no_progress,
) -> list[ParamsCost]:
    """Return what a step of each method costs outside its passes, on the parameters of a model.

    Raises InputError for a number below 1, an unknown name, and a method that runs the network itself.
    """
    at_least_one(steps=steps, repeats=repeats)
    names = list(dict.fromkeys(["plain", *specs]))
    works: dict[str, ParamStep] = {}
    for name in names:
        works[name] = bound_method(name, _network(model))
        if name in LOOPS:
            works[f"{name} loop"] = usual_loop(name, _network(model), fused=False)
            works[f"{name} loop fused"] = usual_loop(name, _network(model), fused=True)

    with hardware.threads(1):
        for work in works.values():
            work.time(2)
        times = alternating({name: partial(work.time, steps) for name, work in works.items()}, repeats, progress)
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


class FixedGradients:
    """Random gradients, assigned to parameters as by a backward pass; ``seconds`` is the time that this took."""

    def __init__(self, params: Sequence[nn.Parameter]):
        g = torch.Generator().manual_seed(0)
        self.params, self.seconds = params, 0.0
        self.grads = [(torch.randn(p.shape, generator=g) * 1e-3).to(p.device) for p in params]

    def assign(self) -> None:
        """Set ``.grad`` of each parameter."""
        start = now()
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g
        self.seconds += now() - start


@dataclass(frozen=True)
class ParamStep:
    """A step on parameters, and the gradients that it uses."""

    step: Callable[[], None]
    gradients: FixedGradients

    def time(self, steps: int) -> float:
        """Return the mean seconds of a step, without the time to assign gradients."""
        before = self.gradients.seconds
        seconds = per_step(self.step, steps)
        return seconds - (self.gradients.seconds - before) / steps


class _Loss(Tensor):
    """A loss whose backward pass assigns the gradients."""

    gradients: FixedGradients
    # results of operations on it are plain tensors, at the cost of plain tensors
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def backward(self, *_: Any, **__: Any) -> None:
        self.gradients.assign()


class _Idle(nn.Module):
    """A network with parameters that is never run."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        raise InputError("this method runs the network itself; measure whole steps with `steppe bench methods`")


def bound_method(spec: str, network: nn.Module) -> ParamStep:
    """Return a step of a method on a network's parameters, with fixed gradients."""
    net = _Idle(network).eval()  # no passes for running statistics
    step = methods.parse(spec).bind(net, _sgd(net, fused=True), steps=10**6, epoch=100)
    loss = torch.zeros((), requires_grad=True).as_subclass(_Loss)
    loss.gradients = FixedGradients(step.runtime.params)
    logits = torch.zeros(_ROWS, _CLASSES)
    step.runtime.objective = lambda batch: StepOutput(
        loss, logits if len(batch) == _ROWS else logits[: len(batch)]
    )
    batch = Batch(torch.zeros(_ROWS, 1), torch.arange(_ROWS) % _CLASSES, torch.arange(_ROWS))

    def once() -> None:
        step(batch)

    return ParamStep(once, loss.gradients)


def usual_loop(name: str, network: nn.Module, *, fused: bool) -> ParamStep:
    """Return a step of the usual loop of this method on a network's parameters, with the same gradients."""
    gradients = FixedGradients(list(network.parameters()))
    return ParamStep(LOOPS[name](gradients, _sgd(network, fused), network), gradients)


def _plain_loop(gradients: FixedGradients, base: torch.optim.Optimizer, net: nn.Module) -> Callable[[], None]:
    def once() -> None:
        gradients.assign()
        base.step()
        base.zero_grad()

    return once


def _sam_loop(gradients: FixedGradients, base: torch.optim.Optimizer, net: nn.Module) -> Callable[[], None]:
    """SAM one tensor after the other, with the old weights in the optimizer's state.

    As in the loops in use: a factor of one where the adaptive form has its scaling, in the norm and in the move;
    norm and radius moved to the tensor's device; statistics of norm layers switched off and on over all modules.
    """
    params = gradients.params
    state: dict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)

    def perturb() -> None:
        device = params[0].device
        norms = [(1.0 * p.grad).norm(p=2).to(device) for p in params if p.grad is not None]
        radius = 0.05 / (torch.stack(norms).norm(p=2) + 1e-12)
        for p in params:
            if p.grad is not None:
                state[p]["old_p"] = p.data.clone()
                p.add_(1.0 * p.grad * radius.to(p))

    def restore() -> None:
        for p in params:
            if p.grad is not None:
                p.data = state[p]["old_p"]

    def once() -> None:
        net.apply(_enable_statistics)
        gradients.assign()
        with torch.no_grad():
            perturb()
        base.zero_grad()
        net.apply(_disable_statistics)
        gradients.assign()
        with torch.no_grad():
            restore()
        base.step()
        base.zero_grad()

    return once


def _disable_statistics(module: nn.Module) -> None:
    if isinstance(module, _BatchNorm):
        setattr(module, _MOMENTUM, module.momentum)
        module.momentum = 0.0


def _enable_statistics(module: nn.Module) -> None:
    if isinstance(module, _BatchNorm) and hasattr(module, _MOMENTUM):
        module.momentum = getattr(module, _MOMENTUM)


LOOPS = {"plain": _plain_loop, "sam": _sam_loop}


def _network(model: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build(model, classes=_CLASSES, channels=3, size=32)


def _sgd(net: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9, fused=True if fused else None)
