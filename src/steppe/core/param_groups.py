"""The parameters that a method works on, the module of each, and what their groups set for them."""

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import nn

from steppe.errors import InputError


def trainable(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the optimizer's trainable parameters, each once, in its order; raises InputError if it has none."""
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    unique = {id(p): p for p in params if p.requires_grad}
    if not unique:
        raise InputError("the optimizer holds no trainable parameter; give it model.parameters()")
    return list(unique.values())


def same(a: Sequence[nn.Parameter], b: Sequence[nn.Parameter]) -> bool:
    """Return whether these are the same parameters in the same order."""
    return len(a) == len(b) and all(map(is_, a, b))


def owners(net: nn.Module, params: Sequence[nn.Parameter]) -> list[nn.Module]:
    """Return the module that each parameter belongs to, the network itself for one that is not in it."""
    modules = {id(p): m for m in net.modules() for p in m.parameters(recurse=False)}
    return [modules.get(id(p), net) for p in params]


def per_group(
    optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], name: str, common: float
) -> float | list[float]:
    """Return what the parameters' groups set under ``name``: one number if all agree, else one per parameter."""
    own: dict[int, Any] = {}
    for group in optimizer.param_groups:
        if name in group:
            own |= {id(p): group[name] for p in group["params"]}
    if not own:
        return common
    values = [float(own.get(id(p), common)) for p in params]
    return values[0] if len(set(values)) == 1 else values
