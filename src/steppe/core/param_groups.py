"""Which parameters a method works on, which module holds each, and what their groups set for them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, compress
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn

from steppe.errors import InputError


def trainable(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the optimizer's trainable parameters, each once, in its order; raises InputError if it has none."""
    return _trainable(*_held(optimizer))


class Trainable:
    """An optimizer's trainable parameters (see `trainable`), and whether they are still the same."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer, self._held = optimizer, _held(optimizer)
        self.params = _trainable(*self._held)

    def renew(self) -> bool:
        """Look again; return whether they are others now."""
        before, now = self._held, _held(self._optimizer)
        if same(before[0], now[0]) and before[1] == now[1]:
            return False
        self._held, self.params = now, _trainable(*now)
        return True


def _held(optimizer: torch.optim.Optimizer) -> tuple[list[nn.Parameter], list[bool]]:
    """Return all that an optimizer has, and which of it is to be trained."""
    held = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    return held, list(map(attrgetter("requires_grad"), held))


def _trainable(held: list[nn.Parameter], wanted: list[bool]) -> list[nn.Parameter]:
    seen = {id(p): p for p in compress(held, wanted)}
    if not seen:
        raise InputError("the optimizer holds no trainable parameter; give it model.parameters()")
    return list(seen.values())


def same(a: Sequence[nn.Parameter], b: Sequence[nn.Parameter]) -> bool:
    """Return whether these are the same parameters in the same order."""
    return len(a) == len(b) and all(map(is_, a, b))


def owners(net: nn.Module, params: Sequence[nn.Parameter]) -> list[nn.Module]:
    """Return the module that holds each parameter, the network itself for a stranger."""
    held = {id(p): m for m in net.modules() for p in m.parameters(recurse=False)}
    return [held.get(id(p), net) for p in params]


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
