"""The networks, batches and optimizers of the checks, and comparisons of what they hold."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.batch import Batch

Tensors = dict[str, Tensor]
Make = Callable[[], nn.Module]


def small(seed: int = 0, dtype: torch.dtype = torch.float32, dropout: float = 0.3) -> nn.Sequential:
    """Make a classifier of (B, 2, 6, 6) images into 5 classes, with BatchNorm and dropout."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout)),
        *(nn.Linear(3 * 16, 8), nn.ReLU(), nn.Linear(8, 5)),
    )
    return net.to(dtype)


def smooth(seed: int = 0, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> nn.Sequential:
    """Make a classifier of the same images whose samples do not influence each other: no BatchNorm.

    Dropout acts on the images themselves, where no value is zero, so that masks can be read off.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Dropout(dropout), nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)),
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


def varied(make: Make) -> Make:
    """Return ``make``, but with noise on the weights of all networks after the first."""
    count = 0

    def make_varied() -> nn.Module:
        nonlocal count
        net = make()
        if count:
            g = torch.Generator().manual_seed(count)
            with torch.no_grad():
                for p in net.parameters():
                    p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        count += 1
        return net

    return make_varied


def data(
    seed: int, count: int = 12, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return images (count, 2, 6, 6) and classes (count,), the same for the same seed on every device."""
    g, cpu = torch.Generator().manual_seed(seed), torch.device("cpu")
    x = torch.randn(count, 2, 6, 6, generator=g, device=cpu).to(device, dtype)
    return x, torch.randint(0, 5, (count,), generator=g, device=cpu).to(device)


def batch(seed: int, count: int = 12, dtype: torch.dtype = torch.float32) -> Batch:
    """Return `data` as a batch; at every seed it has the same sample numbers, as if augmented anew."""
    return Batch(*data(seed, count, dtype), index=torch.arange(count))


def split(whole: Batch, sizes: Sequence[int]) -> list[Batch]:
    """Return consecutive parts of a batch with these numbers of samples."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [whole.take(slice(end - n, end)) for n, end in zip(sizes, ends, strict=True)]


@dataclass(frozen=True)
class BaseOptimizer:
    """An optimizer's class and settings, which third-party wrappers take apart."""

    kind: type[torch.optim.Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer over these parameters."""
        return self.kind(params, **self.settings)


SGD = BaseOptimizer(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2})
NESTEROV = BaseOptimizer(torch.optim.SGD, {**SGD.settings, "nesterov": True})
ADAM = BaseOptimizer(torch.optim.Adam, {"lr": 1e-2})
LR_ZERO = BaseOptimizer(torch.optim.SGD, {"lr": 0.0, "momentum": 0.9})


def weights(net: nn.Module) -> Tensors:
    """Return a copy of all parameters by name."""
    return {k: p.detach().clone() for k, p in net.named_parameters()}


def buffers(net: nn.Module) -> Tensors:
    """Return a copy of all buffers by name."""
    return {k: b.detach().clone() for k, b in net.named_buffers()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return a copy of the optimizer's state, by parameter number and name."""
    return {
        f"optimizer state {index}.{key}": torch.as_tensor(value).clone()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor | int | float)
    }


def training_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return a copy of weights, buffers and the optimizer's state."""
    return {**weights(net), **buffers(net), **optimizer_state(optimizer)}


def difference(a: Tensors, b: Tensors) -> str | None:
    """Name the first entry in which two collections differ in a bit; None if they are the same."""
    if a.keys() != b.keys():
        return f"{min(a.keys() ^ b.keys())} is in only one"
    for key, value in a.items():
        if not torch.equal(value, b[key]):
            return f"{key} differs by {(value.double() - b[key].double()).abs().max().item():.1e}"
    return None


def distance(a: Tensors, b: Tensors) -> float:
    """Return the largest difference between two collections with the same names, infinity for NaN."""
    largest = max((v.double() - b[k].double()).abs().max().item() for k, v in a.items())
    return largest if largest == largest else float("inf")


def length(a: Tensors, b: Tensors) -> float:
    """Return the L2 distance between two collections with the same names."""
    squares = [(v.double() - b[k].double()).square().sum() for k, v in a.items()]
    return math.sqrt(float(torch.stack(squares).sum()))
