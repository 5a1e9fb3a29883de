"""Loss functions that methods share; each is a pure function of tensors."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.core.amp import upcast_to_float32
from steppe.core.schedules import TrainingProgress
from steppe.errors import InputError


def _log_probabilities(logits: Tensor, T: float) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.log_softmax(wide / T, dim=1)


def kl_divergence(reference: Tensor, logits: Tensor, T: float = 1.0) -> Tensor:
    r"""Return the mean Kullback-Leibler divergence :math:`\frac1B\sum_b D(p_b \| q_b)`.

    :math:`p = \mathrm{softmax}(\text{reference}/T)` and :math:`q = \mathrm{softmax}(\text{logits}/T)`, both
    (B, classes). No factor :math:`T^2` is applied. Computed from log-probabilities in at least float32, so
    that large logits neither overflow nor give log 0. Gradients flow into whichever argument carries a graph.
    """
    log_p = _log_probabilities(reference, T)
    log_q = _log_probabilities(logits, T)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def kl_per_sample(reference: Tensor, logits: Tensor, T: float = 1.0) -> Tensor:
    """Return the divergence of each sample (B,), whose mean is `kl_divergence`."""
    log_p = _log_probabilities(reference, T)
    log_q = _log_probabilities(logits, T)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def distillation_loss(teacher: Tensor, logits: Tensor, T: float) -> Tensor:
    r"""Return :math:`\frac{T^2}B\sum_b D(\mathrm{softmax}(t_b/T) \| \mathrm{softmax}(z_b/T))`."""
    return T**2 * kl_divergence(teacher, logits, T)


def sigmoid_rampup(now: TrainingProgress, over: float) -> float:
    """Return exp(-5 (1 - t)^2), where t is the done part of the first ``over`` (steps, or a share); 1 after them.

    Laine and Aila, ICLR 2017, arXiv:1610.02242, section 2.2.
    """
    part = now.part_of(over, "ramp") if over else 1.0
    return math.exp(-5 * (1 - part) ** 2)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of losses."""
    return torch.stack(list(terms)).sum()


def one_hot(y: Tensor, like: Tensor) -> Tensor:
    """Return targets as probabilities (B, classes) in the precision of ``like``."""
    if y.is_floating_point():
        return y.to(like.dtype)
    return F.one_hot(y, like.shape[1]).to(like.dtype)


def mean_of(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean of several networks' logits, in at least float32."""
    return torch.stack([upcast_to_float32(z) for z in logits]).mean(0)


def diversity(logits: Sequence[Tensor]) -> Tensor:
    """Return the L2 distance between the probabilities of two networks, averaged over pairs and samples."""
    p = torch.stack([torch.softmax(upcast_to_float32(z), 1) for z in logits])
    pairs = [(a - b).norm(dim=1).mean() for i, a in enumerate(p) for b in p[i + 1 :]]
    return torch.stack(pairs).mean()


def per_sample(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, y: Tensor) -> Tensor:
    """Return what each sample (B,) adds to a loss that averages over them, up to a common factor.

    A loss with the argument or attribute ``reduction``, as those of PyTorch, is evaluated with 'none': weights of
    classes count, and samples whose labels are ignored add 0. Any other is evaluated on each sample alone.

    Raises InputError if the mean of these is not the loss, which then weighs samples in a way that is not known.
    """
    loss = getattr(loss, "_orig_mod", loss)
    values: Tensor | None = None
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        own: Any = copy.copy(loss)
        own.reduction = "none"
        values = own(logits, y)
    elif "reduction" in inspect.signature(loss).parameters:
        values = loss(logits, y, reduction="none")  # type: ignore[call-arg]
    if values is not None and values.ndim and values.numel() % len(logits) == 0:
        return values.reshape(len(logits), -1).mean(1)
    return _alone(loss, logits, y)


def _alone(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, y: Tensor) -> Tensor:
    def one(z: Tensor, target: Tensor) -> Tensor:
        return loss(z[None], target[None])

    try:
        values: Tensor = torch.vmap(one)(logits, y)
    except RuntimeError:  # control flow that depends on values cannot be mapped
        values = torch.stack([one(z, target) for z, target in zip(logits, y, strict=True)])
    ignored = values.isnan()
    mean, (whole, again) = values[~ignored].mean(), (loss(logits, y) for _ in range(2))
    # a loss with a state of its own, such as a running mean, is another one each time
    settled = torch.isfinite(whole) and torch.equal(whole, again)
    if settled and not torch.isclose(mean, whole, rtol=1e-3, atol=1e-6):
        raise InputError(
            f"samples are ranked by their losses, and the loss ({float(whole):.4g}) is not the mean of these "
            f"({float(mean):.4g}); give it the argument reduction, as torch.nn.functional.cross_entropy has it"
        )
    return values.masked_fill(ignored, 0.0)


# The targets of KDCL, from the networks' logits z (N, B, K) and one-hot labels y (B, K).


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample (..., B) from logits (..., B, K) and probabilities (B, K)."""
    return -(y * torch.log_softmax(z, -1)).sum(-1)


def naive_target(z: Tensor, y: Tensor) -> Tensor:
    """Return, per sample, the logits of the network with the least cross-entropy; z (N, B, K)."""
    best = cross_entropy(z, y).argmin(0)
    return z[best, torch.arange(len(best), device=z.device)]


def min_logit_target(z: Tensor, y: Tensor) -> Tensor:
    """Return the least gap of each class to the true one; never worse than the best network."""
    true = y.argmax(1)[None, :, None].expand(len(z), -1, 1)
    return (z - z.gather(2, true)).amin(0)


def mean_target(z: Tensor, y: Tensor) -> Tensor:
    """Return the mean of the logits."""
    return z.mean(0)


def linear_target(z: Tensor, y: Tensor) -> Tensor:
    """Return the convex combination with the least cross-entropy.

    A primal-dual interior-point method in float64, with a barrier mu that falls after every full Newton step. It
    ends when the cross-entropy is proved to be within 1e-13 of the least, relative to the largest logit.
    """
    wide, target = z.double(), y.double()
    scale = wide.abs().amax().clamp(min=1)
    a = wide.new_full((len(z),), 1 / len(z))
    mu = 0.1 * scale
    s = mu / a  # multipliers of a >= 0; a s = mu at the end of the path
    lengths = 0.995 * 0.5 ** torch.arange(12, device=z.device, dtype=a.dtype)
    for _ in range(100):
        mixed = torch.einsum("n,nbk->bk", a, wide)
        p = torch.softmax(mixed, 1)
        g = torch.einsum("bk,nbk->n", p - target, wide) / z.shape[1]
        if not a @ g - g.min() > 1e-13 * scale:  # also where logits are not finite
            break
        centred = wide - torch.einsum("bk,nbk->nb", p, wide)[..., None]
        h = torch.einsum("bk,nbk,mbk->nm", p, centred, centred) / z.shape[1] + torch.diag(s / a)
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
    return torch.einsum("n,nbk->bk", a, wide).to(z.dtype)


def general_target(z: Tensor, y: Tensor) -> Tensor:
    """Return the combination whose error has the least expected square, weights summing to one."""
    error = (torch.softmax(z, 2) - y).flatten(1)
    c = error @ error.T / z.shape[1]
    c = c + 1e-6 * c.diagonal().mean() * torch.eye(len(z), dtype=z.dtype, device=z.device)
    w = torch.linalg.solve(c, torch.ones(len(z), dtype=z.dtype, device=z.device))
    return torch.einsum("n,nbk->bk", w / w.sum(), z)


KDCL_TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive_target,
    "linear": linear_target,
    "min-logit": min_logit_target,
    "general": general_target,
    "mean": mean_target,
}
