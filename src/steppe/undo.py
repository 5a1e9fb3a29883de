"""Take back an optimizer update: weights, moments and whatever else the optimizer keeps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Undo:
    """What a model's weights and its optimizer were when this was made; `back` returns to it, in place."""

    def __init__(self, params: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer):
        self.params, self.optimizer = params, optimizer
        self.weights = [p.detach().clone() for p in params]
        self.state = {
            p: {k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in held.items()}
            for p, held in optimizer.state.items()
        }
        self.groups = [_settings(group) for group in optimizer.param_groups]

    def back(self) -> None:
        """Return to then."""
        with torch.no_grad():
            for p, weight in zip(self.params, self.weights, strict=True):
                p.copy_(weight)
            for key in [k for k in self.optimizer.state if k not in self.state]:
                del self.optimizer.state[key]
            for key, before in self.state.items():
                _return(self.optimizer.state[key], before)
        for group, settings in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.update(settings)


def _return(held: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [n for n in held if n not in before]:
        del held[name]
    for name, value in before.items():
        now = held.get(name)
        if isinstance(now, Tensor) and isinstance(value, Tensor) and now.shape == value.shape:
            now.copy_(value)
        else:
            held[name] = value


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
