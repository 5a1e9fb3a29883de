"""Networks, data and optimizers that the checks train: small, and with everything that goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.batch import Batch

Pair = tuple[Tensor, Tensor]
Make = Callable[[], nn.Module]


def small(seed: int = 0, dtype: torch.dtype = torch.float32, dropout: float = 0.3) -> nn.Sequential:
    """Make a classifier of (B, 2, 6, 6) images into 5 classes, with BatchNorm and dropout."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(3 * 16, 8),
        nn.ReLU(),
        nn.Linear(8, 5),
    )
    return net.to(dtype)


def smooth(seed: int = 0, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> nn.Sequential:
    """Make a classifier of the same images whose samples do not influence each other: no BatchNorm.

    Dropout acts on the images themselves, where no value is zero, so that masks can be read off.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Dropout(dropout),
        nn.Conv2d(2, 4, 3),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 8),
        nn.Tanh(),
        nn.Linear(8, 5),
    )
    return net.to(dtype)


class Awkward(nn.Module):
    """The small network with a parameter that never has a gradient, one that is frozen, and two that are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()
        self.idle = nn.Parameter(torch.randn(3))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.again = self.net[11]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 5)."""
        z: Tensor = self.net(x) + self.frozen.sum()
        return z


def apart(make: Make) -> Make:
    """Return ``make``, whose networks after the first start from other weights, for methods of several."""
    made = 0

    def another() -> nn.Module:
        nonlocal made
        net = make()
        if made:
            g = torch.Generator().manual_seed(made)
            with torch.no_grad():
                for p in net.parameters():
                    p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        made += 1
        return net

    return another


def data(seed: int, count: int = 12, dtype: torch.dtype = torch.float32) -> Pair:
    """Return images (count, 2, 6, 6) and classes (count,), the same for the same seed."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 6, 6, generator=g).to(dtype), torch.randint(0, 5, (count,), generator=g)


@dataclass(frozen=True)
class BaseOptimizer:
    """An optimizer by class and settings, because third-party wrappers want it in parts."""

    kind: Callable[..., torch.optim.Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer over these parameters."""
        return self.kind(params, **self.settings)


SGD = BaseOptimizer(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2})
NESTEROV = BaseOptimizer(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True})
ADAM = BaseOptimizer(torch.optim.Adam, {"lr": 1e-2})
STILL = BaseOptimizer(torch.optim.SGD, {"lr": 0.0})


def weights(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all parameters by name."""
    return {k: p.detach().clone() for k, p in net.named_parameters()}


def buffers(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all buffers by name."""
    return {k: b.detach().clone() for k, b in net.named_buffers()}


def memory(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a copy of all that an optimizer remembers, by parameter number and name."""
    return {
        f"optimizer state {index}.{key}": torch.as_tensor(value).clone()
        for index, held in optimizer.state_dict()["state"].items()
        for key, value in held.items()
        if isinstance(value, Tensor | int | float)
    }


def batch(seed: int, count: int = 12, dtype: torch.dtype = torch.float32) -> Batch:
    """Return `data` as a batch of the same samples at every seed, seen anew as by augmentation."""
    return Batch(*data(seed, count, dtype), index=torch.arange(count))


def cut(whole: Batch, sizes: Sequence[int]) -> list[Batch]:
    """Return consecutive parts of a batch with these numbers of samples."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [whole.take(slice(end - n, end)) for n, end in zip(sizes, ends, strict=True)]


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> str | None:
    """Name the first thing in which two collections differ in a bit, None if they are the same."""
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        return f"{odd[0]} is there in only one"
    for key, value in a.items():
        if not torch.equal(value, b[key]):
            off = (value.double() - b[key].double()).abs().max().item()
            return f"{key} differs by {off:.1e}"
    return None


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest difference between two collections with the same names, infinity for NaN."""
    off = max((v.double() - b[k].double()).abs().max().item() for k, v in a.items())
    return off if off == off else float("inf")


def length(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the L2 distance between two collections with the same names."""
    squares = [(v.double() - b[k].double()).square().sum() for k, v in a.items()]
    return math.sqrt(float(torch.stack(squares).sum()))
