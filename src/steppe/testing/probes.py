"""Instruments that look at a step from outside: hooks on modules and optimizers, and a layer that misbehaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steppe.testing import fixtures as nets


class Trapped(RuntimeError):  # noqa: N818 - sprung on purpose
    """What a `Trap` raises."""


class Trap(nn.Module):
    """A last layer that passes its input on, except at its ``at``-th call (from 1) in training.

    ``kind`` is what happens then: 'forward' and 'backward' raise `Trapped` there, 'nan' and 'inf' are what
    comes out.
    """

    def __init__(self, kind: str = "nan", at: int = 0):
        super().__init__()
        self.kind, self.at, self.calls, self.sprung = kind, at, 0, False

    def forward(self, x: Tensor) -> Tensor:
        """Pass on, or not."""
        if not self.training:
            return x
        self.calls += 1
        if self.calls != self.at:
            return x
        if self.kind == "forward":
            self._raise()
        if self.kind == "backward":
            y = x.view_as(x)
            if y.requires_grad:
                y.register_hook(self._raise)  # type: ignore[no-untyped-call]
            return y
        return x + float(self.kind)

    def _raise(self, *_: Any) -> None:
        self.sprung = True
        raise Trapped(f"in {self.kind}")


def trap_in(net: nn.Module) -> Trap:
    """Return the first trap of a network, or of the first of several."""
    return next(m for m in net.modules() if isinstance(m, Trap))


class Calls:
    """How often each layer with weights ran forward and backward, in whole batches, and updates."""

    def __init__(self) -> None:
        self.forward: dict[str, float] = {}
        self.backward: dict[str, float] = {}
        self.updates = 0


@contextmanager
def counting(nets: Sequence[nn.Module], optimizer: torch.optim.Optimizer, batch: int) -> Iterator[Calls]:
    """Count passes layer by layer, whoever starts them, and updates of the optimizer.

    The layers are those of the first network; those of copies, in the others, count with them.
    """
    calls, handles = Calls(), []

    def hook(name: str) -> Any:
        def ran(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            share = len(output) / batch
            calls.forward[name] += share

            def back(grad: Tensor) -> None:
                calls.backward[name] += share

            if output.requires_grad:
                output.register_hook(back)  # type: ignore[no-untyped-call]

        return ran

    def updated(*_: Any) -> None:
        calls.updates += 1

    for name, module in nets[0].named_modules():
        if _has_weights(module):
            calls.forward[name] = calls.backward[name] = 0.0
            handles.append(module.register_forward_hook(hook(name)))
    for name, module in (named for other in nets[1:] for named in other.named_modules()):
        layer = next((k for k in calls.forward if f".{name}".endswith(f".{k}")), None)
        if layer is not None and _has_weights(module):
            handles.append(module.register_forward_hook(hook(layer)))
    handles.append(optimizer.register_step_post_hook(updated))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


class Seen:
    """What a step did: ``moves``, how far each pass was from where the weights rest, and ``given``.

    ``moves`` are L2 distances of the passes before the first update; ``given`` the gradients that the optimizer
    got, one collection per update.
    """

    def __init__(self) -> None:
        self.moves: list[float] = []
        self.given: list[dict[str, Tensor]] = []


@contextmanager
def watching(net: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Seen]:
    """Record a step's perturbations and what reaches the optimizer."""
    seen, rest = Seen(), nets.weights(net)
    first = next(m for m in net.modules() if _has_weights(m))

    def looked(*_: Any) -> None:
        if not seen.given:
            seen.moves.append(nets.length(nets.weights(net), rest))

    def given(*_: Any) -> None:
        named = net.named_parameters()
        seen.given.append({k: p.grad.detach().clone() for k, p in named if p.grad is not None})

    handles = [first.register_forward_pre_hook(looked), optimizer.register_step_pre_hook(given)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def masks(net: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record input and mask of each call of the first dropout layer in training mode."""
    found: list[tuple[Tensor, Tensor]] = []
    layer = next(m for m in net.modules() if isinstance(m, nn.Dropout))

    def drawn(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if module.training:
            found.append((given[0], output.detach() != 0))

    handle = layer.register_forward_hook(drawn)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def norms(net: nn.Module) -> Iterator[list[tuple[int, dict[str, Tensor]]]]:
    """Record, per call of the first BatchNorm layer, its samples and the statistics that it alone gives."""
    found: list[tuple[int, dict[str, Tensor]]] = []
    name, layer = next((k, m) for k, m in net.named_modules() if isinstance(m, nn.BatchNorm2d))
    before = nets.buffers(layer)

    def looked(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x, momentum = inputs[0].detach(), layer.momentum or 0.0
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=True)
        alone = {
            f"{name}.running_mean": before["running_mean"] * (1 - momentum) + momentum * mean,
            f"{name}.running_var": before["running_var"] * (1 - momentum) + momentum * var,
        }
        found.append((len(x), alone))

    handle = layer.register_forward_pre_hook(looked)
    try:
        yield found
    finally:
        handle.remove()
