"""Accuracy and loss over held-out images, each process of a run taking its part of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from steppe import team
from steppe.batch import Batch
from steppe.data.images import Images
from steppe.data.loader import Normalizer, evaluation_batches
from steppe.method import Method
from steppe.precision import widened
from steppe.step import Step

BATCH = 500


def evaluate(method: Method, step: Step, images: Images, normalize: Normalizer) -> dict[str, float]:
    """Return accuracy (fraction) and mean cross-entropy over ``images`` of what the method deploys.

    All processes of a team call it together and get the same numbers.
    """
    here, net, like = team.here(), step.runtime.net, step.runtime.params[0]
    rows = here.rows(len(images))
    own = Images(images.x[rows], images.y[rows])
    here.share_buffers(net)
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for batch in evaluation_batches(own, BATCH, normalize):
            batch = on(batch, like)
            logits = widened(step.predict(batch.x))
            correct += int((logits.argmax(1) == batch.y).sum())
            loss += float(F.cross_entropy(logits, batch.y, reduction="sum"))
        # a sharded network is gathered by all processes at once, also by one that has nothing left to look at
        for _ in range(_passes(here.size, len(images)) - math.ceil(len(own) / BATCH)):
            step.predict(on(Batch(normalize(images.x[:1]), images.y[:1]), like).x)
    net.train()
    correct_sum, loss_sum = here.sums(correct, loss)
    return {"accuracy": correct_sum / len(images.y), "loss": loss_sum / len(images.y)}


def on(batch: Batch, like: Tensor) -> Batch:
    """Return the batch as the network takes it: on its device, in its precision, in the fast memory layout."""
    batch = batch.to(like.device)
    x = batch.x.to(like.dtype).contiguous(memory_format=torch.channels_last)
    y = batch.y.to(like.dtype) if batch.y.is_floating_point() else batch.y
    return Batch(x, y, batch.index)


def _passes(size: int, count: int) -> int:
    """Return how many batches the process with the most rows has."""
    return math.ceil(math.ceil(count / size) / BATCH)
