"""The parameters that a method works on, the module of each, and what their groups set for them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from steppe.core.schedules import finite
from steppe.errors import InputError


def trainable(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the optimizer's trainable parameters, each once, in its order.

    Raises InputError if it has none, or a complex one.
    """
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    unique = {id(p): p for p in params if p.requires_grad}
    if not unique:
        raise InputError("the optimizer holds no trainable parameter; give it model.parameters()")
    refuse_complex(unique.values())
    return list(unique.values())


def refuse_complex(params: Iterable[Tensor]) -> None:
    """Raise InputError for a complex parameter: norms and inner products are of real vectors."""
    for p in params:
        if p.is_complex():
            raise InputError(
                f"a parameter of shape {tuple(p.shape)} is {p.dtype}; keep it as a real one, torch.view_as_real(p)"
            )


def same(a: Sequence[nn.Parameter], b: Sequence[nn.Parameter]) -> bool:
    """Return whether these are the same parameters in the same order."""
    return len(a) == len(b) and all(map(is_, a, b))


def owners(net: nn.Module, params: Sequence[nn.Parameter]) -> list[nn.Module]:
    """Return the module that each parameter belongs to, the network itself for one that is not in it."""
    modules = {id(p): m for m in net.modules() for p in m.parameters(recurse=False)}
    return [modules.get(id(p), net) for p in params]


def setting(
    optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], name: str, common: float
) -> float | list[float]:
    """Return a method's hyper-parameter: one number, or one per parameter where groups set it (`check_setting`).

    Raises InputError for a value that is not a finite number of at least 0.
    """
    _check_value(name, common)
    return per_group(optimizer, params, name, common) if check_setting(optimizer, name) else common


def check_setting(optimizer: torch.optim.Optimizer, name: str) -> bool:
    """Return whether parameter groups set a method's hyper-parameter ``name``.

    A key that the optimizer has itself (in ``optimizer.defaults``: Adadelta's rho, say) is the optimizer's.

    Raises InputError for a group's value that is not a finite number of at least 0.
    """
    if name in getattr(optimizer, "defaults", ()):
        return False
    values = [group[name] for group in optimizer.param_groups if group.get(name) is not None]
    for value in values:
        _check_value(name, value, " in a parameter group")
    return bool(values)


def _check_value(name: str, value: Any, where: str = "") -> None:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not finite(number) or number < 0:
        raise InputError(f"{name} is {number!r}{where}; give a finite number of at least 0")


def per_group(
    optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], name: str, common: float
) -> float | list[float]:
    """Return what the parameters' groups set under ``name``: one number if all agree, else one per parameter."""
    own: dict[int, Any] = {}
    for group in optimizer.param_groups:
        if group.get(name) is not None:
            own |= {id(p): group[name] for p in group["params"]}
    if not own:
        return common
    values = [float(own.get(id(p), common)) for p in params]
    return values[0] if len(set(values)) == 1 else values


@contextmanager
def switched_off(params: Sequence[nn.Parameter]) -> Iterator[None]:
    """Compute no gradient for these parameters."""
    for p in params:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(True)


def has_custom_backward(loss: Tensor) -> bool:
    """Return whether a loss's graph has a backward pass written in Python, such as that of reentrant checkpoints.

    It may use parameters that the graph does not show.
    """
    nodes: set[Any] = set()
    stack: list[Any] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if isinstance(node, BackwardCFunction):
            return True
        if node is not None and node not in nodes:
            nodes.add(node)
            stack += [n for n, _ in node.next_functions]
    return False
