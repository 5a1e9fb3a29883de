"""A step's own work in Python: steps on a trivial network, next to the loops that one writes by hand.

The network is so small that its passes take less than a millisecond, so that what a step does outside of them is a
large part of it. The loops by hand are the shortest ones that make the same update: they check nothing, restore no
running statistics and could not undo a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steppe import hardware, methods
from steppe.bench.timing import TimingSpread, alternating, at_least_one, no_progress, per_step, spread
from steppe.errors import unknown

_RHO, _SIGMA = 0.05, 1e-4


@dataclass(frozen=True)
class SmallStepCost:
    """Time of a method's step, over that of the loop by hand."""

    method: str
    over: str
    ratio: TimingSpread
    microseconds: float


def network() -> nn.Sequential:
    """Return nine small layers; of units that are never 0, whose momentum would decay to slow denormal numbers."""
    torch.manual_seed(0)
    widths = [(16, 16)] * 4
    layers = [layer for a, b in widths for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def batch_of() -> tuple[Tensor, Tensor]:
    """Return a batch of eight samples."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 16, generator=generator), torch.arange(8) % 4


def sgd(net: nn.Module) -> torch.optim.SGD:
    """Return the optimizer of all contestants."""
    return torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)


def plain_pass(net: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make a forward and a backward pass."""
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]


MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def plain_by_hand(net: nn.Module, x: Tensor, y: Tensor, make: MakeOptimizer = sgd) -> Callable[[], None]:
    """Return the loop of every tutorial."""
    optimizer = make(net)

    def step() -> None:
        plain_pass(net, x, y, optimizer)
        optimizer.step()

    return step


def two_plain_by_hand(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return two steps of that loop."""
    once = plain_by_hand(net, x, y)

    def step() -> None:
        once()
        once()

    return step


def sam_by_hand(net: nn.Module, x: Tensor, y: Tensor, make: MakeOptimizer = sgd) -> Callable[[], None]:
    """Return SAM in foreach operations."""
    optimizer, params = make(net), [p.detach() for p in net.parameters()]

    def step() -> None:
        plain_pass(net, x, y, optimizer)
        with torch.no_grad():
            grads = [p.grad for p in net.parameters() if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            before = [p.clone() for p in params]
            torch._foreach_add_(params, list(torch._foreach_mul(grads, _RHO / (norm + 1e-12))))
        plain_pass(net, x, y, optimizer)
        with torch.no_grad():
            torch._foreach_copy_(params, before)
        optimizer.step()

    return step


def sadt_by_hand(net: nn.Module, x: Tensor, y: Tensor, make: MakeOptimizer = sgd) -> Callable[[], None]:
    """Return variant 1 of SADT in foreach operations."""
    optimizer, params = make(net), [p.detach() for p in net.parameters()]

    def step() -> None:
        optimizer.zero_grad()
        logits = net(x)
        F.cross_entropy(logits, y).backward()  # type: ignore[no-untyped-call]
        clean = F.log_softmax(logits.detach(), 1)
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        optimizer.step()
        with torch.no_grad():
            noise = torch._foreach_mul([torch.randn_like(p) for p in params], _SIGMA)
            before = [p.clone() for p in params]
            torch._foreach_add_(params, list(noise))
        optimizer.zero_grad()
        divergence = F.kl_div(F.log_softmax(net(x), 1), clean, reduction="batchmean", log_target=True)
        divergence.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            torch._foreach_copy_(params, before)
            torch._foreach_add_([p.grad for p in net.parameters() if p.grad is not None], grads)
        optimizer.step()

    return step


BY_HAND: dict[str, dict[str, Callable[..., Callable[[], None]]]] = {
    "plain": {"a plain step": plain_by_hand},
    "sam": {"SAM in foreach": sam_by_hand},
    "sadt-v1": {"two plain steps": two_plain_by_hand, "SADT in foreach": sadt_by_hand},
}


def bound(spec: str, net: nn.Module) -> Callable[[], object]:
    """Return a step of a method on the network."""
    step, (x, y) = methods.parse(spec).bind(net, sgd(net), steps=10**6), batch_of()
    return partial(step, x, y)


def small_steps_cost(
    specs: Sequence[str], *, steps: int, repeats: int, progress: Callable[[int], None] = no_progress
) -> list[SmallStepCost]:
    """Return what a step of each method costs on a trivial network, over the loop by hand.

    Raises InputError for a number below 1, and for a method without such a loop.
    """
    at_least_one(steps=steps, repeats=repeats)
    for spec in specs:
        if spec not in BY_HAND:
            raise unknown("method with a loop by hand", spec, list(BY_HAND))
    works: dict[str, Callable[[], object]] = {}
    for spec in dict.fromkeys(specs):
        works[spec] = bound(spec, network())
        works |= {name: make(network(), *batch_of()) for name, make in BY_HAND[spec].items()}
    with hardware.threads(1):
        for work in works.values():
            per_step(work, 20)
        timed = {name: partial(per_step, work, steps) for name, work in works.items()}
        times = alternating(timed, repeats, progress)
    return [
        SmallStepCost(name, over, spread(times[name], times[over]), 1e6 * median(times[name]))
        for spec in dict.fromkeys(specs)
        for name, over in _compared(spec)
    ]


def _compared(spec: str) -> list[tuple[str, str]]:
    """Return each step with the loop that it is compared with: loops by hand with the first of them."""
    first, *others = BY_HAND[spec]
    return [*((spec, name) for name in BY_HAND[spec]), *((name, first) for name in others)]
