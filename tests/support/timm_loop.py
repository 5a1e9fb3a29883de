"""timm's training loop, in a module of its own because other processes import it by name."""

from typing import Any

import pytest
import torch
from support.foreign import declare_operators
from support.many import smooth_net
from support.small import small_batch, small_net
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steppe

declare_operators()

from timm.task import ClassificationTask, TrainingTask  # noqa: E402
from timm.utils import dispatch_clip_grad  # noqa: E402

from steppe.integrations.timm import SteppeScaler  # noqa: E402


def batches(count: int = 7, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    return [small_batch(seed=k, count=size) for k in range(count)]


def epoch(
    task: Any,
    optimizer: Any,
    scaler: Any,
    data: Any,
    accumulate: int = 1,
    clip: float | None = None,
    mode: str = "norm",
) -> list[float]:
    """Train an epoch as timm's script does, with a smaller last step; return the losses that it logs."""
    losses, rest = [], len(data) % accumulate
    task.train()
    optimizer.zero_grad()
    for i, (x, y) in enumerate(data):
        need_update = i == len(data) - 1 or (i + 1) % accumulate == 0
        count = rest if rest and i >= len(data) - rest else accumulate
        loss = task(x, y)["loss"]
        if count > 1:
            loss = loss / count
        if scaler is None:
            loss.backward()
            if need_update:
                if clip is not None:
                    dispatch_clip_grad(task.get_clip_parameters("agc" in mode), clip, mode=mode)
                optimizer.step()
        else:
            parameters = task.get_clip_parameters("agc" in mode)
            scaler(loss, optimizer, clip_grad=clip, clip_mode=mode, parameters=parameters, need_update=need_update)
        losses.append(loss.detach().item() * count)
        if need_update:
            optimizer.zero_grad()
    return losses


def of_timm(net: nn.Module | None = None, criterion: Any = None) -> tuple[Any, Any]:
    net = small_net(dropout=0.0) if net is None else net
    task = ClassificationTask(net, nn.CrossEntropyLoss() if criterion is None else criterion, verbose=False)
    return task, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)


class Matching(TrainingTask):
    """Distillation from a teacher: a loss of more than logits and targets."""

    def __init__(self, student: nn.Module, teacher: nn.Module):
        super().__init__(verbose=False)
        self.trainable_module, self.teacher = student, teacher.requires_grad_(False)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        output = self.trainable_module(input)
        distance = (output - self.teacher(input)).square().mean()
        return {"loss": nn.functional.cross_entropy(output, target) + distance, "output": output}


def of_process(rank: int) -> list[Tensor]:
    net = smooth_net()
    task, optimizer = of_timm(net)
    task.trainable_module = DistributedDataParallel(net)
    scaler = SteppeScaler(steppe.SAM(rho=0.1), task, optimizer, sync="global")
    epoch(task, optimizer, scaler, [(x[rank::2], y[rank::2]) for x, y in batches(4)], 2)
    other = Matching(task.trainable_module, smooth_net())
    with pytest.raises(steppe.InputError, match="is distributed"):
        SteppeScaler(steppe.SAM(), other, optimizer)
    return [p.detach().clone() for p in net.parameters()]
