"""What methods of peers have in common: views of a sample, the pull towards a teacher, its ramp-up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.amp import upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.numerics.losses import kl_divergence
from steppe.core.schedules import TrainingProgress
from steppe.errors import InputError

VIEW = "view {}"  # names of the further views of a batch's samples, from 2 on


def views_of(batch: Batch, count: int) -> Any:
    """Return what ``count`` networks are called with: the batch's inputs, or a view of them each.

    The first view is ``batch.x``; the others travel with it as ``batch.extra["view 2"]`` and so on. A batch
    without them is seen by all networks alike.

    Raises InputError if there are several views, but fewer than ``count``.
    """
    further = [name for i in range(2, count + 1) if (name := VIEW.format(i)) in batch.extra]
    if not further:
        return batch.x
    if len(further) < count - 1:
        raise InputError(
            f"the batch has {len(further) + 1} views of each sample and the method takes {count}; give as many, "
            "or one"
        )
    return {"views": [batch.x, *(batch.extra[name] for name in further)]}


def inputs_of(count: int, x: Any, views: Sequence[Any] | None, named: Mapping[str, Any]) -> list[Any]:
    """Return the input of each of ``count`` networks, from the arguments of a forward pass."""
    if views is not None:
        return list(views)
    return [x if x is not None else dict(named)] * count


def fresh_networks(new_model: Callable[[], nn.Module], count: int) -> list[nn.Module]:
    """Make ``count`` networks; raises InputError if two are one object, or share a parameter."""
    networks = [new_model() for _ in range(count)]
    owner: dict[int, int] = {}
    for i, net in enumerate(networks):
        for p in net.parameters():
            if owner.setdefault(id(p), i) != i:
                raise InputError(
                    "build was given a function that returns the same network again; give one that makes a new "
                    "network at each call"
                )
    return networks


def expect_views(net: nn.Module, kind: type[nn.Module], count: int, name: str, field: str) -> None:
    """Raise InputError unless ``net`` is what the method's ``build`` made with so many networks."""
    size = getattr(net, "size", None)
    if not isinstance(net, kind):
        raise InputError(
            f"{name} trains several networks and was bound to {type(net).__name__}; "
            f"bind what it builds: model = {name}(...).build(make_model)"
        )
    if size != count:
        raise InputError(f"{name}: {field} is {count} and the model was built with {size}; give both the same")


def distillation_loss(teacher: Tensor, logits: Tensor, T: float) -> Tensor:
    r"""Return :math:`\frac{T^2}B\sum_b D(\mathrm{softmax}(t_b/T) \| \mathrm{softmax}(z_b/T))`."""
    return T**2 * kl_divergence(teacher, logits, T)


def sigmoid_rampup(now: TrainingProgress, over: float) -> float:
    """Return exp(-5 (1 - t)^2) for the part t of the first ``over`` (steps, or a share) that is done, then 1.

    Laine and Aila, ICLR 2017, arXiv:1610.02242, section 2.2.
    """
    part = now.part_of(over, "ramp") if over else 1.0
    return math.exp(-5 * (1 - part) ** 2)


def one_hot(y: Tensor, like: Tensor) -> Tensor:
    """Return targets as probabilities (B, classes) in the precision of ``like``."""
    if y.is_floating_point():
        return y.to(like.dtype)
    return torch.nn.functional.one_hot(y, like.shape[1]).to(like.dtype)


def mean_of(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean of several networks' logits, in at least float32."""
    return torch.stack([upcast_to_float32(z) for z in logits]).mean(0)


def diversity(logits: Sequence[Tensor]) -> Tensor:
    """Return the L2 distance between the probabilities of two networks, meant over pairs and samples."""
    p = torch.stack([torch.softmax(upcast_to_float32(z), 1) for z in logits])
    pairs = [(a - b).norm(dim=1).mean() for i, a in enumerate(p) for b in p[i + 1 :]]
    return torch.stack(pairs).mean()
