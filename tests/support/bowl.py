"""Networks whose measures have closed forms: a loss that is a quadratic of the weights, and a sign."""

import torch
from torch import Tensor, nn

from steppe.diagnostics.loss_surface import LossSurface


class Point(nn.Module):
    """A network that returns its weights, in tensors of these shapes, for every sample."""

    def __init__(self, *tensors: Tensor):
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(t.clone()) for t in tensors])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([p.reshape(-1) for p in self.parts]).expand(len(x), -1)


def bowl(h: Tensor, *tensors: Tensor, linear: Tensor | None = None) -> LossSurface:
    """Return the surface of w'Hw/2 + b'w at the weights given, over three batches of 4, 4 and 2 samples."""
    b = torch.zeros(len(h), dtype=h.dtype) if linear is None else linear

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return (0.5 * ((logits @ h) * logits).sum(1) + logits @ b).mean()

    data = [(torch.zeros(n, 1), torch.zeros(n)) for n in (4, 4, 2)]
    return LossSurface(Point(*tensors), data, loss)


def curved(size: int, seed: int = 0, lowest: float = 0.1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=g, dtype=torch.float64)
    return a @ a.T / size + lowest * torch.eye(size, dtype=torch.float64)


class Sign(nn.Module):
    """Two classes, the first where w x > 0."""

    def __init__(self, w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x * self.w, torch.zeros_like(x)], 1)


def signs(w: float, count: int = 1000, wrong: int = 0) -> LossSurface:
    y = torch.zeros(count, dtype=torch.long)
    y[:wrong] = 1
    return LossSurface(Sign(w), [(torch.ones(count, 1, dtype=torch.float64), y)])
