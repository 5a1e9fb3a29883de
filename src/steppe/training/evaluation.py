"""Accuracy and loss over held-out images, split over the processes of a run."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steppe.core.amp import upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.multi_network import MultiNetwork
from steppe.core.numerics.losses import diversity
from steppe.core.step import Step
from steppe.data.dataset import Images
from steppe.data.loader import evaluation_batches
from steppe.data.normalize import Normalizer
from steppe.distributed import collectives

BATCH = 500


def evaluate(method: Method, step: Step, images: Images, normalize: Normalizer) -> dict[str, Any]:
    """Return accuracy (fraction) and mean cross-entropy of the deployed model over ``images``.

    A method with several outputs adds ``outputs``: the same for each of its networks, branches and ensembles by
    name, and ``diversity``, the mean L2 distance between the probabilities of two of its networks or branches.

    All processes call it together and get the same numbers.
    """
    world, net, like = collectives.current_world(), step.runtime.net, step.runtime.params[0]
    members = net.names if isinstance(net, MultiNetwork) else []
    local = images.part(world.rows(len(images)))
    world.share_buffers(net)
    net.eval()
    sums: dict[str, float] = {}
    with torch.no_grad():
        for batch in evaluation_batches(local, BATCH, normalize, like.device):
            batch = to_model_format(batch, like)
            for name, value in _sums(method.outputs(net, step.state, batch.x), batch.y, members).items():
                sums[name] = sums.get(name, 0.0) + value
        # all processes gather a sharded network together, so each makes as many passes as the one with most rows
        most = math.ceil(math.ceil(len(images) / world.size) / BATCH)
        for _ in range(most - math.ceil(len(local) / BATCH)):
            batch = to_model_format(Batch(normalize(images.at(slice(0, 1))), images.y[:1]), like)
            for name in _sums(method.outputs(net, step.state, batch.x), batch.y, members):
                sums.setdefault(name, 0.0)
    net.train()
    means = {k: v / len(images.y) for k, v in zip(sums, world.all_reduce_sum(*sums.values()), strict=True)}
    return _nested(means)


def _sums(outputs: dict[str, Tensor], y: Tensor, names: list[str]) -> dict[str, float]:
    """Return hits and summed loss of each output of a batch, and the summed distance between members."""
    sums = {}
    for name, z in outputs.items():
        logits = upcast_to_float32(z)
        sums[f"accuracy {name}"] = float((logits.argmax(1) == y).sum())
        sums[f"loss {name}"] = float(F.cross_entropy(logits, y, reduction="sum"))
    members = [outputs[name] for name in names if name in outputs]
    if len(members) > 1:
        sums["diversity"] = float(diversity(members)) * len(y)
    return sums


def _nested(means: dict[str, float]) -> dict[str, Any]:
    """Return the means of the deployed model, and those of the other outputs below ``outputs``."""
    outputs: dict[str, dict[str, float]] = {}
    for key, value in means.items():
        kind, _, name = key.partition(" ")
        if name:
            outputs.setdefault(name, {})[kind] = value
    result: dict[str, Any] = outputs.pop("deployed")
    if outputs:
        result["outputs"] = outputs
    return result | ({"diversity": means["diversity"]} if "diversity" in means else {})


def to_model_format(batch: Batch, like: Tensor) -> Batch:
    """Return the batch on the device and in the dtype of the parameter ``like``, images in channels_last."""
    batch = batch.to(like.device)

    def convert(x: Tensor) -> Tensor:
        return x.to(like.dtype).contiguous(memory_format=torch.channels_last)

    y = batch.y.to(like.dtype) if batch.y.is_floating_point() else batch.y
    return Batch(convert(batch.x), y, batch.index, {name: convert(view) for name, view in batch.extra.items()})
