"""Loss functions that methods share; each is a pure function of tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


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


def per_sample(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, y: Tensor) -> Tensor:
    """Return a loss of each sample (B,) by itself, from a function that averages over samples."""

    def one(z: Tensor, target: Tensor) -> Tensor:
        return loss(z[None], target[None])

    try:
        values: Tensor = torch.vmap(one)(logits, y)
    except RuntimeError:  # control flow that depends on values cannot be mapped
        values = torch.stack([one(z, target) for z, target in zip(logits, y, strict=True)])
    return values
