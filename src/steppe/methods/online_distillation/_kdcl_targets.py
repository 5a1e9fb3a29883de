"""The targets of KDCL, from the networks' logits z (N, B, K) and one-hot labels y (B, K)."""

from collections.abc import Callable

import torch
from torch import Tensor


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample (..., B) from logits (..., B, K) and probabilities (B, K)."""
    return -(y * torch.log_softmax(z, -1)).sum(-1)


def naive(z: Tensor, y: Tensor) -> Tensor:
    """Return, per sample, the logits of the network with the least cross-entropy; z (N, B, K)."""
    best = cross_entropy(z, y).argmin(0)
    return z[best, torch.arange(len(best), device=z.device)]


def min_logit(z: Tensor, y: Tensor) -> Tensor:
    """Return the least gap of each class to the true one; never worse than the best network."""
    true = y.argmax(1)[None, :, None].expand(len(z), -1, 1)
    return (z - z.gather(2, true)).amin(0)


def mean(z: Tensor, y: Tensor) -> Tensor:
    """Return the mean of the logits."""
    return z.mean(0)


def linear(z: Tensor, y: Tensor) -> Tensor:
    """Return the convex combination with the least cross-entropy: Frank-Wolfe from the best network.

    Each step searches its line by bisecting the derivative, so the first is exact for two networks and none
    raises the loss.
    """
    a = torch.nn.functional.one_hot(cross_entropy(z, y).mean(1).argmin(), len(z)).to(z.dtype)
    digits = 52 if z.dtype == torch.float64 else 24

    def error(weights: Tensor) -> Tensor:
        return torch.softmax(torch.einsum("n,nbk->bk", weights, z), 1) - y

    for _ in range(1 if len(z) == 2 else 8):
        corner = torch.einsum("bk,nbk->n", error(a), z).argmin()
        d = torch.nn.functional.one_hot(corner, len(z)).to(z.dtype) - a
        along = torch.einsum("n,nbk->bk", d, z)
        low, high = torch.zeros_like(a[0]), torch.ones_like(a[0])
        for _ in range(digits):
            middle = (low + high) / 2
            falls = (error(a + middle * d) * along).sum() < 0
            low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
        a = a + low * d
    return torch.einsum("n,nbk->bk", a, z)


def general(z: Tensor, y: Tensor) -> Tensor:
    """Return the combination whose error has the least expected square, weights summing to one."""
    error = (torch.softmax(z, 2) - y).flatten(1)
    c = error @ error.T / z.shape[1]
    c = c + 1e-6 * c.diagonal().mean() * torch.eye(len(z), dtype=z.dtype, device=z.device)
    w = torch.linalg.solve(c, torch.ones(len(z), dtype=z.dtype, device=z.device))
    return torch.einsum("n,nbk->bk", w / w.sum(), z)


TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "linear": linear,
    "min-logit": min_logit,
    "general": general,
    "mean": mean,
}
