"""The targets of KDCL, from the networks' logits z (N, B, K) and one-hot labels y (B, K).

Rows of zeros in y are samples without a class. They have no weight, and their rows of a target no meaning.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def counted(y: Tensor) -> Tensor:
    """Return 1 for samples with a class and 0 for others (B, 1), in the precision of y."""
    return (y != 0).any(1, keepdim=True).to(y.dtype)


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
    """Return the convex combination with the least cross-entropy.

    Of two networks by `_between`; of more by a primal-dual interior-point method in float64, with a barrier mu
    that falls after every full Newton step, which ends when the cross-entropy is proved to be within 1e-13 of the
    least, relative to the largest logit. Where it fails, at logits of hundreds, the best network is returned.
    """
    wide, target = z.double(), y.double()
    counts = counted(target)
    if len(z) == 2:
        return _between(wide[0], wide[1], target, early=z.device.type == "cpu").to(z.dtype)
    scale = wide.abs().amax().clamp(min=1)
    a = wide.new_full((len(z),), 1 / len(z))
    mu = 0.1 * scale
    s = mu / a  # multipliers of a >= 0; a s = mu at the end of the path
    lengths = 0.995 * 0.5 ** torch.arange(12, device=z.device, dtype=a.dtype)
    for _ in range(100):
        mixed = torch.einsum("n,nbk->bk", a, wide)
        p = torch.softmax(mixed, 1)
        g = torch.einsum("bk,nbk->n", counts * p - target, wide) / z.shape[1]
        gap = a @ g - g.min()
        if gap <= 1e-13 * scale:
            return mixed.to(z.dtype)
        if not gap > 0:  # logits or weights are not finite
            break
        centred = wide - torch.einsum("bk,nbk->nb", p, wide)[..., None]
        h = torch.einsum("bk,nbk,mbk->nm", counts * p, centred, centred) / z.shape[1] + torch.diag(s / a)
        free, shift = torch.linalg.solve_ex(h, torch.stack([mu / a - g, torch.ones_like(a)], 1))[0].unbind(1)
        d = free - shift * (free.sum() / shift.sum())  # sums to zero, so that the weights still sum to one
        ds = (mu - s * d) / a - s
        steps = lengths / (-d / a).amax().clamp(min=1)
        along = torch.einsum("n,nbk->bk", d, wide)
        ahead = a + steps[:, None] * d
        barrier = mu * ahead.log().sum(1)
        best = (cross_entropy(mixed + steps[:, None, None] * along, target).mean(1) - barrier).argmin()
        s = s + 0.995 / (-ds / s).amax().clamp(min=1) * ds
        a = ahead[best] / ahead[best].sum()
        s = s.clamp(1e-4 * mu / a, 1e4 * mu / a)
        mu = torch.where(best < 2, (0.25 * mu).clamp(min=1e-15 * scale), mu)
    # logits so large that the method fails: the best network, or the mean
    candidates = torch.cat([wide.mean(0, keepdim=True), wide])
    return candidates[cross_entropy(candidates, target).mean(1).argmin()].to(z.dtype)  # NaN stays NaN


def _between(first: Tensor, second: Tensor, y: Tensor, *, early: bool = True) -> Tensor:
    """Return the combination of two networks' logits (B, K) with the least cross-entropy.

    Newton's method for the weight of the second, within a bracket that bisection halves: 50 steps without waiting
    for the device, or, ``early``, until the weight is known to 1e-14.
    """
    along, counts = second - first, counted(y)
    low, high = along.new_zeros(()), along.new_ones(())
    a, width = along.new_tensor(0.5), along.new_ones(())
    for _ in range(50):
        p = torch.softmax(first + a * along, 1) * counts
        slope = ((p - y) * along).sum(1).mean()
        mean_along = (p * along).sum(1, keepdim=True)
        curvature = (p * (along - mean_along).square()).sum(1).mean()
        low, high = torch.where(slope < 0, a, low), torch.where(slope < 0, high, a)
        newton = (a - slope / curvature).clamp(0, 1)  # also to an end of the line
        # Newton's step if it stays in the bracket and is at most half of the last one, as in Numerical Recipes
        good = (newton >= low) & (newton <= high) & (2 * (newton - a).abs() <= width)
        ahead = torch.where(good, newton, (low + high) / 2)
        width = (ahead - a).abs()
        a = ahead
        if early and not width > 1e-14:
            break
    return first + a * along


def general(z: Tensor, y: Tensor) -> Tensor:
    """Return the combination whose error has the least expected square, weights summing to one."""
    error = (torch.softmax(z, 2) * counted(y) - y).flatten(1)
    c = error @ error.T / z.shape[1]
    ridge = (1e-6 * c.diagonal().mean()).clamp(min=1e-30)  # of samples without a class alone, C is zero
    c = c + ridge * torch.eye(len(z), dtype=z.dtype, device=z.device)
    w = torch.linalg.solve(c, torch.ones(len(z), dtype=z.dtype, device=z.device))
    return torch.einsum("n,nbk->bk", w / w.sum(), z)


TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "linear": linear,
    "min-logit": min_logit,
    "general": general,
    "mean": mean,
}
