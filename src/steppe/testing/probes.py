"""Observers of a step from outside: hooks on modules and optimizers, and a layer that fails on request."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steppe.testing import fixtures
from steppe.testing.fixtures import Make, Tensors


class Trapped(RuntimeError):  # noqa: N818 - raised on purpose
    """The error of a `Trap`."""


class Trap(nn.Module):
    """A last layer that returns its input, but fails at its ``at``-th call (from 1) in training.

    ``kind`` 'forward' and 'backward' raise `Trapped` in that pass; 'nan' and 'inf' make the output so.
    """

    def __init__(self, kind: str = "nan", at: int = 0):
        super().__init__()
        self.kind, self.at, self.calls, self.sprung = kind, at, 0, False

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, or fail."""
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


def trapped(make: Make = fixtures.small, kind: str = "nan") -> Make:
    """Return a function that makes sequences with a `Trap` as last layer."""
    return lambda: make().append(Trap(kind))  # type: ignore[operator]


def trap_in(net: nn.Module) -> Trap:
    """Return the first trap of a network, or of the first of several."""
    return next(m for m in net.modules() if isinstance(m, Trap))


@dataclass
class Calls:
    """Forward and backward passes of each layer with weights, in whole batches, and updates."""

    forward: dict[str, float] = field(default_factory=dict)
    backward: dict[str, float] = field(default_factory=dict)
    updates: int = 0


@contextmanager
def counting(networks: Sequence[nn.Module], optimizer: torch.optim.Optimizer, batch: int) -> Iterator[Calls]:
    """Count the passes of each layer, whoever starts them, and the optimizer's updates.

    The layers are those of the first network; layers of the other networks that are copies of them count too.
    """
    calls = Calls()

    def hook(name: str) -> Any:
        def count_forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            share = len(output) / batch
            calls.forward[name] += share

            def count_backward(grad: Tensor) -> None:
                calls.backward[name] += share

            if output.requires_grad:
                output.register_hook(count_backward)  # type: ignore[no-untyped-call]

        return count_forward

    def count_update(*_: Any) -> None:
        calls.updates += 1

    with ExitStack() as hooks:
        for name, module in networks[0].named_modules():
            if _has_weights(module):
                calls.forward[name] = calls.backward[name] = 0.0
                hooks.enter_context(module.register_forward_hook(hook(name)))
        for name, module in (named for other in networks[1:] for named in other.named_modules()):
            layer = next((k for k in calls.forward if f".{name}".endswith(f".{k}")), None)
            if layer is not None and _has_weights(module):
                hooks.enter_context(module.register_forward_hook(hook(layer)))
        hooks.enter_context(optimizer.register_step_post_hook(count_update))
        yield calls


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


@dataclass
class StepRecord:
    """``perturbations``, the L2 distance from the weights in each pass before the first update, and ``grads``.

    ``grads`` are the gradients that the optimizer got, one collection per update.
    """

    perturbations: list[float] = field(default_factory=list)
    grads: list[Tensors] = field(default_factory=list)


@contextmanager
def recording(net: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[StepRecord]:
    """Record a step's perturbations and the optimizer's gradients."""
    record, start = StepRecord(), fixtures.weights(net)
    first = next(m for m in net.modules() if _has_weights(m))

    def on_pass(*_: Any) -> None:
        if not record.grads:
            record.perturbations.append(fixtures.length(fixtures.weights(net), start))

    def on_update(*_: Any) -> None:
        named = net.named_parameters()
        record.grads.append({k: p.grad.detach().clone() for k, p in named if p.grad is not None})

    with first.register_forward_pre_hook(on_pass), optimizer.register_step_pre_hook(on_update):
        yield record


@contextmanager
def masks(net: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record input and mask of each call of the first dropout layer in training mode."""
    calls: list[tuple[Tensor, Tensor]] = []
    layer = next(m for m in net.modules() if isinstance(m, nn.Dropout))

    def on_call(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module.training:
            calls.append((inputs[0], output.detach() != 0))

    with layer.register_forward_hook(on_call):
        yield calls


@contextmanager
def batch_norm_calls(net: nn.Module) -> Iterator[list[tuple[int, Tensors]]]:
    """Record, per call of the first BatchNorm layer, its samples and the running statistics after it alone."""
    calls: list[tuple[int, Tensors]] = []
    name, layer = next((k, m) for k, m in net.named_modules() if isinstance(m, nn.BatchNorm2d))
    before = fixtures.buffers(layer)

    def on_call(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x, momentum = inputs[0].detach(), layer.momentum or 0.0
        batch = {"running_mean": x.mean((0, 2, 3)), "running_var": x.var((0, 2, 3), unbiased=True)}
        after = {f"{name}.{k}": before[k] * (1 - momentum) + momentum * v for k, v in batch.items()}
        calls.append((len(x), after))

    with layer.register_forward_pre_hook(on_call):
        yield calls
