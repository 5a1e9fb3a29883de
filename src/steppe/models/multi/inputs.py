"""Inputs and outputs of several networks, and the fresh networks that a method trains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.multi_network import VIEW
from steppe.errors import InputError


def views_of(batch: Batch, count: int) -> Any:
    """Return what ``count`` networks are called with: the batch's inputs, or a view of them each.

    The first view is ``batch.x``; the others are ``batch.extra["view 2"]`` and so on. In a batch without further
    views all networks get ``batch.x``.

    Raises InputError if there are several views, but fewer than ``count``, or one of another name.
    """
    named = [name for name in batch.extra if name.lower().startswith("view")]
    if wrong := set(named) - {VIEW.format(i) for i in range(2, len(named) + 2)}:
        raise InputError(
            f"the batch's extra has {min(wrong)!r}; the first view is x, name the others 'view 2', 'view 3'"
        )
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


def of_one_shape(logits: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the networks' logits; raises InputError if their shapes differ, which would be broadcast."""
    for z in logits:
        if z.shape != logits[0].shape:
            raise InputError(
                f"one network returns {tuple(logits[0].shape)} and another {tuple(z.shape)}, and methods of "
                "several networks compare them; give networks whose outputs have one shape"
            )
    return tuple(logits)


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
