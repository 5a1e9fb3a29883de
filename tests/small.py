"""Small networks and batches that several test files share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steppe.methods import METHODS

# saf asks for the samples' indices and swa for the length of training; the conformance suite has them too
BARE = [name for name in METHODS if name not in ("saf", "swa")]


def small_net(seed: int = 0, dtype: torch.dtype = torch.float32, dropout: float = 0.3) -> nn.Sequential:
    """A Sequential with everything that goes wrong: convolution, BatchNorm, dropout, two linear layers."""
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


def small_batch(seed: int = 1, count: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 6, 6, generator=g, dtype=dtype), torch.randint(0, 5, (count,), generator=g)


def sgd(net: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=1e-2, nesterov=True)


def adam(net: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr)
