"""Metric and loss over held-out samples, split over the processes of a run."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, softmax

from steppe.config import Run
from steppe.core.amp import upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.model_call import extract_loss
from steppe.core.multi_network import MultiNetwork
from steppe.core.numerics.losses import diversity
from steppe.core.step import Step
from steppe.core.user_loss import calls_model, own_loss
from steppe.data.dataset import DataSet, Fetched, Samples
from steppe.data.splits import shot_groups
from steppe.distributed import collectives
from steppe.tasks.meters import MeanMeter, Meter
from steppe.tasks.objective import Objective
from steppe.training.factories import evaluated_batches, is_user_model

_MANY = 100  # classes above which top-5 accuracy is measured too, as papers do for ImageNet


def evaluate(
    run: Run, method: Method, step: Step, data: DataSet, samples: Samples, goal: Objective
) -> dict[str, Any]:
    """Return metric and mean loss of the deployed model over ``samples``, a part of ``data``.

    The metric's key is 'accuracy' (a fraction), or 'metric' for any other. The loss is the cross-entropy of
    classes without label smoothing, else that of training. A method with several outputs adds ``outputs``: the
    same for each of its networks, branches and ensembles by name, and for classes ``diversity``, the mean L2
    distance between the probabilities of two of its networks or branches. Of more than 100 classes it adds
    ``top-5``, the share of samples whose class is among the five largest outputs. With ``data.imbalance`` it adds
    ``per_class``, the accuracy of each class, and ``groups``, that over classes with many, a medium number of and
    few training samples (see `shot_groups`). With ``data.tta`` each output is the mean over several views of an
    image, and ``outputs`` has the deployed one of the image alone as 'one view'.

    All processes call it together and get the same numbers.
    """
    world, net = collectives.current_world(), step.runtime.net
    local = samples.part(world.rows(len(samples)))
    world.share_buffers(net)
    groups = shot_groups(data.class_counts) if run.data.imbalance is not None and data.class_counts else {}
    outputs = partial(_outputs, method, step, run.data.tta)
    add = _Hits(outputs, step, groups) if goal.counts_hits else _Totals(outputs, method, step, goal, data)
    net.eval()
    with torch.no_grad():
        count = 0
        for batch in evaluated_batches(run, data, local):
            add(network_input(run, batch, step.runtime.params[0]), counted=True)
            count += 1
        # all processes gather a sharded network together, so each makes as many passes as the one with most
        for _ in range(int(max(world.all_gather_object(count))) - count if world.size > 1 else 0):
            batch = next(iter(evaluated_batches(run, data, samples.part(slice(0, 1)))))
            add(network_input(run, batch, step.runtime.params[0]), counted=False)
    net.train()
    return add.result(world, len(samples))


Outputs = Callable[[Any], dict[str, Tensor]]


def _outputs(method: Method, step: Step, tta: str, x: Any) -> dict[str, Tensor]:
    """Return the method's outputs, with ``tta`` their means over the views of images (B, C, H, W)."""
    of_views = [
        (weight, method.outputs(step.runtime.net, step.state, view)) for weight, view in image_views(x, tta)
    ]
    _, alone = of_views[0]
    if not tta:
        return alone
    means = {name: sum(weight * outputs[name] for weight, outputs in of_views) for name in alone}
    return cast(dict[str, Tensor], means) | {"one view": alone["deployed"]}


def image_views(x: Any, tta: str) -> Iterator[tuple[float, Any]]:
    """Yield the views of images (B, C, H, W) with their weights, of which the sum is 1; the image itself is first.

    'mirror': the image and its mirror image. 'mirror-shift': these have half of the weight; the other half have
    both, shifted by one pixel up and left, and down and right, with reflection at the border (the six views of
    KellerJordan/cifar10-airbench).
    """
    if not tta:
        yield 1.0, x
        return
    share = 1.0 if tta == "mirror" else 0.5
    yield share / 2, x
    yield share / 2, x.flip(3)
    if tta == "mirror-shift":
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        for start in (0, 2):
            shifted = padded[:, :, start : start + x.shape[2], start : start + x.shape[3]]
            yield share / 4, shifted
            yield share / 4, shifted.flip(3)


def of_constant(goal: Objective, data: DataSet, samples: Samples) -> float | None:
    """Return the error over ``samples`` of predicting the mean of the training targets for all of them.

    A network that is no better has learned nothing of the numbers. None for other targets and for metrics that are
    no mean error.
    """
    y = data.train.y
    meter = goal.new_meter() if goal.new_meter is not None else None
    if goal.outputs != "numbers" or not isinstance(meter, MeanMeter) or goal.metric.higher:
        return None
    if isinstance(data.train, Fetched) or isinstance(samples, Fetched) or y is None or samples.y is None:
        return None  # which would have to be fetched once more
    mean, targets = data.in_unit(y.double()).mean(0), data.in_unit(samples.y.double())
    meter.update(mean.expand_as(targets), targets)
    value = meter.value([meter.state()])
    return value if math.isfinite(value) else None


class _Hits:
    """Hits and summed cross-entropy, of each output of a method; with ``groups`` also the hits of each class."""

    def __init__(self, outputs: Outputs, step: Step, groups: Mapping[str, Sequence[int]]):
        self.outputs, self.groups = outputs, groups
        self.classes = 1 + max((c for classes in groups.values() for c in classes), default=-1)
        net = step.runtime.net
        self.members = net.names if isinstance(net, MultiNetwork) else []
        self.sums: dict[str, float] = {}

    def __call__(self, batch: Batch, counted: bool) -> None:
        """Add a batch, or only make its passes."""
        outputs = self.outputs(batch.x)
        sums = _sums(outputs, batch.y, self.members)
        if self.groups:
            hit = batch.y[outputs["deployed"].argmax(1) == batch.y]
            for kind, y in (("hits", hit), ("samples", batch.y)):
                counts = torch.bincount(y, minlength=self.classes).tolist()
                sums |= {f"{kind} {c}": float(n) for c, n in enumerate(counts)}
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + (value if counted else 0.0)

    def result(self, world: collectives.World, count: int) -> dict[str, Any]:
        """Return the means over all processes."""
        sums = dict(zip(self.sums, world.all_reduce_sum(*self.sums.values()), strict=True))
        if not self.groups:
            return _nested({name: value / count for name, value in sums.items()})
        hits, samples = ([sums.pop(f"{kind} {c}") for c in range(self.classes)] for kind in ("hits", "samples"))

        def share(classes: Sequence[int]) -> float | None:
            total = sum(samples[c] for c in classes)
            return sum(hits[c] for c in classes) / total if total else None

        return _nested({name: value / count for name, value in sums.items()}) | {
            "groups": {
                name: value for name, classes in self.groups.items() if (value := share(classes)) is not None
            },
            "per_class": [share([c]) for c in range(self.classes)],
        }


class _Totals:
    """Weighted loss and metric of any task, of each output of a method."""

    def __init__(self, outputs: Outputs, method: Method, step: Step, goal: Objective, data: DataSet):
        self.outputs, self.method, self.step, self.goal, self.data = outputs, method, step, goal, data
        self.meters: dict[str, Meter] = {}
        self.losses: dict[str, float] = {}
        self.weight = 0.0

    def __call__(self, batch: Batch, counted: bool) -> None:
        """Add a batch, or only make its passes."""
        weight = float(self.goal.weigh(batch))
        for name, (loss, output) in self._outputs(batch).items():
            self.losses.setdefault(name, 0.0)
            if self.goal.new_meter is not None and name not in self.meters:
                self.meters[name] = self.goal.new_meter()
            if counted:
                self.losses[name] += loss * weight if weight else 0.0
                if name in self.meters:
                    self.meters[name].update(self.data.in_unit(output), self.data.in_unit(batch.y))
        self.weight += weight if counted else 0.0

    def _outputs(self, batch: Batch) -> dict[str, tuple[float, Tensor]]:
        """Return loss and outputs, in at least float32, of all that can be evaluated."""
        net, state, loss = self.step.runtime.net, self.step.state, self.goal.loss
        if calls_model(loss):
            with self.method.deployed_weights(net, state):
                value, output = extract_loss(own_loss(loss, net, batch.x, batch.y))
            return {"deployed": (float(value), upcast_to_float32(output))}
        outputs = {k: upcast_to_float32(z) for k, z in self.outputs(batch.x).items()}
        return {name: (float(loss(z, batch.y)), z) for name, z in outputs.items()}

    def result(self, world: collectives.World, count: int) -> dict[str, Any]:
        """Return loss and metric over all processes."""
        weight, *losses = world.all_reduce_sum(self.weight, *self.losses.values())
        results: dict[str, dict[str, float]] = {}
        for name, total in zip(self.losses, losses, strict=True):
            loss = value = total / weight if weight else math.nan
            if name in self.meters:
                meter = self.meters[name]
                value = meter.value(world.all_gather_object(meter.state()))
            results[name] = {self.goal.key: value, "loss": loss}
        deployed: dict[str, Any] = results.pop("deployed")
        return deployed | ({"outputs": results} if results else {})


def _sums(outputs: dict[str, Tensor], y: Tensor, names: list[str]) -> dict[str, float]:
    """Return hits and summed loss of each output of a batch, and the summed distance between members."""
    sums = {}
    for name, z in outputs.items():
        logits = upcast_to_float32(z)
        sums[f"accuracy {name}"] = float((logits.argmax(1) == y).sum())
        if logits.shape[1] > _MANY:
            sums[f"top-5 {name}"] = float((logits.topk(5, dim=1).indices == y.unsqueeze(1)).sum())
        sums[f"loss {name}"] = float(F.cross_entropy(logits, y, reduction="sum"))
    members = [outputs[name] for name in names if name in outputs]
    if len(members) > 1:
        sums["diversity"] = float(diversity([softmax(upcast_to_float32(z), 1) for z in members])) * len(y)
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


def network_input(run: Run, batch: Batch, like: Tensor) -> Batch:
    """Return the batch as a run's network takes it; a network of the user's gets no channels_last."""
    return to_model_format(batch, like, channels_last=not is_user_model(run))


def to_model_format(batch: Batch, like: Tensor, *, channels_last: bool = True) -> Batch:
    """Return the batch on the device and in the dtype of the parameter ``like``, images in channels_last.

    Whole numbers, such as tokens, keep their type.
    """
    batch = batch.to(like.device)

    def convert(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: convert(value) for name, value in x.items()}
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        last = channels_last and x.ndim == 4
        return x.to(like.dtype).contiguous(memory_format=torch.channels_last) if last else x.to(like.dtype)

    return Batch(convert(batch.x), convert(batch.y), batch.index, {k: convert(v) for k, v in batch.extra.items()})
