"""What a method may know of the optimizer's next update, without making it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steppe.core.execution._operations import for_optimizer
from steppe.core.numerics.complex_params import leaf, real_view
from steppe.core.numerics.vector import Vec
from steppe.core.optimizers.joint import with_inner
from steppe.core.runtime import Runtime

Entries = Mapping[str, Any]


def look_ahead(rt: Runtime, grads: Vec) -> Vec:
    """Return by how much an update with these mean gradients would move the weights; nothing is changed.

    They are transformed and clipped as those of an update. The rule is Adam's (decoupled decay for AdamW) where a
    parameter's group has ``betas`` and ``eps``, and else SGD's: for these it is exact. Parameters without a
    gradient stay where they are.
    """
    entries = zip(rt.params, for_optimizer(rt, grads), _entries(rt), strict=True)
    with torch.no_grad():
        return [None if g is None else _update(p.detach(), g, *own) for p, g, own in entries]


def first_update(rt: Runtime, index: int, grad: Tensor) -> Tensor:
    """Return by how much a first update of the optimizer moves a weight with this gradient, without weight decay.

    The weight is a further one of the group of parameter ``index``: -lr g with SGD, -lr g / (|g| + eps) with Adam.
    """
    update: Tensor = _update(grad, grad, {}, {**_entries(rt)[index][1], "weight_decay": 0.0})
    return update


def preconditioned(rt: Runtime, grads: Vec) -> Vec:
    """Return gradients divided by the optimizer's denominators: sqrt(v) + eps of Adam and RMSprop, 1 of SGD.

    v is the second moment as the last update left it; a parameter that has none yet has the denominator 1.
    """
    scales = [_denominator(state, group) for state, group in _entries(rt)]
    return [g if g is None or s is None else g / s for g, s in zip(grads, scales, strict=True)]


def _entries(rt: Runtime) -> list[tuple[Entries, Entries]]:
    """Return of each parameter what the optimizer, or one in it, keeps for it, and its group."""
    optimizers = with_inner(rt.optimizer)
    groups = {id(p): group for o in optimizers for group in o.param_groups for p in group["params"]}
    states = [o.state for o in optimizers if hasattr(o, "state")]
    leaves = list(map(leaf, rt.params))
    return [(next((s[p] for s in states if p in s), {}), groups[id(p)]) for p in leaves]


def _moment(state: Entries, *names: str) -> Tensor | None:
    value = next((state[name] for name in names if state.get(name) is not None), None)
    return None if value is None else real_view(value)


def _count(state: Entries) -> Any:
    """Return the number of updates so far, in the precision in which Adam raises its decays to that power."""
    count = state.get("step", 0)
    return count.double() if isinstance(count, Tensor) and count.device.type == "cpu" else count


def _denominator(state: Entries, group: Entries) -> Tensor | None:
    square: Any = _moment(state, "exp_avg_sq", "square_avg")
    if square is None:
        return None
    if "betas" in group and "step" in state:
        square = square / (1 - group["betas"][1] ** _count(state))
    denominator: Tensor = square.sqrt() + group.get("eps", 1e-8)
    return denominator


def _update(p: Tensor, g: Tensor, state: Entries, group: Entries) -> Any:
    lr, decay = group["lr"], group.get("weight_decay", 0.0)
    g = -g if group.get("maximize") else g
    if "betas" not in group or "eps" not in group:
        d, momentum = g + decay * p, group.get("momentum", 0.0)
        v = _moment(state, "momentum_buffer")
        v = d if v is None else momentum * v + (1 - group.get("dampening", 0.0)) * d
        return -lr * (d + momentum * v if group.get("nesterov") else v)
    decoupled = group.get("decoupled_weight_decay", False)
    d = g if decoupled else g + decay * p
    m, square = _moment(state, "exp_avg"), _moment(state, "exp_avg_sq")
    b1, b2 = group["betas"]
    t = _count(state) + 1
    m = (1 - b1) * d if m is None else b1 * m + (1 - b1) * d
    square = (1 - b2) * d.square() if square is None else b2 * square + (1 - b2) * d.square()
    largest = _moment(state, "max_exp_avg_sq") if group.get("amsgrad") else None
    square = square if largest is None else torch.maximum(square, largest)
    step = m / (1 - b1**t) / ((square / (1 - b2**t)).sqrt() + group["eps"])
    return -lr * (step + decay * p if decoupled else step)
