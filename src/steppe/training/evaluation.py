"""Accuracy and loss over held-out images, each process of a run taking its part of them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.core.amp import upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.step import Step
from steppe.data.dataset import Images
from steppe.data.loader import evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.distributed import collectives
from steppe.models.multi.inputs import diversity

BATCH = 500
PEERS = ("network ", "branch ")  # how the names of outputs begin that are of equal rank


def evaluate(method: Method, step: Step, images: Images, normalize: Normalizer) -> dict[str, Any]:
    """Return accuracy (fraction) and mean cross-entropy over ``images`` of what the method deploys.

    A method with more to look at adds ``outputs``: the same of each of its networks, branches and ensembles by
    name, and ``diversity``, the mean L2 distance between the probabilities of two of its networks or branches.

    All processes of a team call it together and get the same numbers.
    """
    here, net, like = collectives.current_world(), step.runtime.net, step.runtime.params[0]
    rows = here.rows(len(images))
    own = images.part(rows)
    here.share_buffers(net)
    net.eval()
    sums: dict[str, float] = {}
    with torch.no_grad():
        for batch in evaluation_batches(own, BATCH, normalize):
            batch = to_model_format(batch, like)
            for name, value in _counted(method.outputs(net, step.state, batch.x), batch.y).items():
                sums[name] = sums.get(name, 0.0) + value
        # a sharded network is gathered by all processes at once, also by one that has nothing left to look at
        for _ in range(_passes(here.size, len(images)) - math.ceil(len(own) / BATCH)):
            one = to_model_format(Batch(normalize(images.at(slice(0, 1))), images.y[:1]), like)
            for name in _counted(method.outputs(net, step.state, one.x), one.y):
                sums.setdefault(name, 0.0)
    net.train()
    means = {k: v / len(images.y) for k, v in zip(sums, here.all_reduce_sum(*sums.values()), strict=True)}
    return _arranged(means)


def _counted(outputs: dict[str, Tensor], y: Tensor) -> dict[str, float]:
    """Return hits and summed loss of each output of a batch, and the summed distance between peers."""
    found = {}
    for name, z in outputs.items():
        logits = upcast_to_float32(z)
        found[f"accuracy {name}"] = float((logits.argmax(1) == y).sum())
        found[f"loss {name}"] = float(F.cross_entropy(logits, y, reduction="sum"))
    peers = [z for name, z in outputs.items() if name.startswith(PEERS)]
    if len(peers) > 1:
        found["diversity"] = float(diversity(peers)) * len(y)
    return found


def _arranged(means: dict[str, float]) -> dict[str, Any]:
    """Return the means with those of what is deployed in front."""
    each: dict[str, dict[str, float]] = {}
    for key, value in means.items():
        kind, _, name = key.partition(" ")
        if name:
            each.setdefault(name, {})[kind] = value
    found: dict[str, Any] = each.pop("deployed")
    if each:
        found["outputs"] = each
    return found | ({"diversity": means["diversity"]} if "diversity" in means else {})


def to_model_format(batch: Batch, like: Tensor) -> Batch:
    """Return the batch as the network takes it: on its device, in its precision, in the fast memory layout."""
    batch = batch.to(like.device)

    def fit(x: Tensor) -> Tensor:
        return x.to(like.dtype).contiguous(memory_format=torch.channels_last)

    y = batch.y.to(like.dtype) if batch.y.is_floating_point() else batch.y
    return Batch(fit(batch.x), y, batch.index, {name: fit(view) for name, view in batch.extra.items()})


def _passes(size: int, count: int) -> int:
    """Return how many batches the process with the most rows has."""
    return math.ceil(math.ceil(count / size) / BATCH)
