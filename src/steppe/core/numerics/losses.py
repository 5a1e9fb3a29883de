"""Loss functions that methods share; each is a pure function of tensors."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from steppe.core.amp import upcast_to_float32
from steppe.core.numerics import _kdcl_targets
from steppe.core.schedules import TrainingProgress
from steppe.errors import InputError

KDCL_TARGETS = _kdcl_targets.TARGETS


def _log_probabilities(logits: Tensor, T: float) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.log_softmax(wide if T == 1 else wide / T, dim=1)


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


def one_hot(y: Tensor, like: Tensor, ignored: int = -100) -> Tensor:
    """Return targets as probabilities (B, classes) in the precision of ``like``.

    A row is zero if its target is ``ignored``, or no class.
    """
    if y.is_floating_point():
        return y.to(like.dtype)
    counts = (y != ignored) & (y >= 0) & (y < like.shape[1])
    rows = y.clamp(0, like.shape[1] - 1)[:, None]
    # F.one_hot reads the largest class
    return like.new_zeros(len(y), like.shape[1]).scatter_(1, rows, counts[:, None].to(like.dtype))


def mean_of(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean of several networks' logits, in at least float32."""
    return torch.stack([upcast_to_float32(z) for z in logits]).mean(0)


def diversity(predictions: Sequence[Tensor]) -> Tensor:
    """Return the L2 distance between the predictions (B, K) of two networks, averaged over pairs and samples."""
    p = torch.stack(list(predictions))
    pairs = [(a - b).norm(dim=1).mean() for i, a in enumerate(p) for b in p[i + 1 :]]
    return torch.stack(pairs).mean()


def per_sample(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, y: Tensor) -> Tensor:
    """Return what each sample (B,) adds to a loss that averages over them, up to a common factor.

    A loss with the argument or attribute ``reduction``, as those of PyTorch, is evaluated with 'none': weights of
    classes count, and samples whose labels are ignored add 0. Any other is evaluated on each sample alone; if the
    mean of these is not the loss, the losses of PyTorch that it calls are evaluated per sample.

    Raises InputError if neither's mean is the loss, which then weighs samples in a way that is not known.
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
        with suppress(Exception), _PerSample(len(logits)):
            unreduced = loss(logits, y)
            if unreduced.shape == values.shape and torch.isclose(unreduced.mean(), whole, rtol=1e-3, atol=1e-6):
                return unreduced
        raise InputError(
            f"samples are ranked by their losses, and the loss ({float(whole):.4g}) is not the mean of these "
            f"({float(mean):.4g}); give it the argument reduction, as torch.nn.functional.cross_entropy has it"
        )
    return values.masked_fill(ignored, 0.0)


class _PerSample(TorchFunctionMode):
    """Within it, the losses of PyTorch return their term of each sample (B,), whose mean is the loss."""

    def __init__(self, samples: int):
        super().__init__()
        self.samples = samples

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        if options.get("reduction") != "mean" or getattr(func, "__module__", "") != "torch.nn.functional":
            return result
        each = func(*args, **{**options, "reduction": "none"}).reshape(self.samples, -1).mean(1)
        # a mean that is weighed, by classes say, divides by other than the number of samples
        return each * torch.where(each.mean() == 0, 1.0, result / each.mean())
