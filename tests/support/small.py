"""Small networks and batches that several test files share."""

from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.method import Method, overrides
from steppe.core.step import Step
from steppe.methods import METHODS, make
from steppe.testing.fixtures import small as small_net

__all__ = ["BARE", "adam", "bound", "close", "indexed", "same", "sgd", "small_batch", "small_net", "trained"]

# without saf (needs sample indices), methods that need the length of training, and methods that build a network;
# the conformance suite covers all
LENGTH = ("swa", "averages", "ae-sam")
BARE = [name for name in METHODS if name not in ("saf", *LENGTH) and not overrides(make(name), "build")]


def small_batch(seed: int = 1, count: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 6, 6, generator=g, dtype=dtype), torch.randint(0, 5, (count,), generator=g)


def sgd(net: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=1e-2, nesterov=True)


def adam(net: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr)


def indexed(k: int, count: int = 12) -> Batch:
    x, y = small_batch(seed=k, count=count)
    return Batch(x, y, torch.arange(count))


def bound(method: Method, net: nn.Module | None = None, **options: Any) -> tuple[nn.Module, Step]:
    """Return a network, a small one by default, and a step of SGD with momentum that trains it."""
    net = small_net() if net is None else net
    return net, method.bind(net, sgd(net), **options)


def trained(method: Method, net: nn.Module | None = None, steps: int = 5, **options: Any) -> nn.Module:
    net = small_net() if net is None else net
    torch.manual_seed(7)
    step = method.bind(net, sgd(net), steps=10, **options)
    for k in range(steps):
        step(indexed(k))
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    """Return whether all weights and buffers of two networks have the same bits."""
    return all(torch.equal(s, t) for s, t in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def close(a: nn.Module, b: nn.Module, **tolerances: float) -> bool:
    """Return whether the parameters of two networks are equal within tolerances of `torch.allclose`."""
    return all(torch.allclose(p, q, **tolerances) for p, q in zip(a.parameters(), b.parameters(), strict=True))
