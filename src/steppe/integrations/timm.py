"""A method in timm's training loop: in the place of its loss scaler, and everything else as it is.

    loss_scaler = SteppeScaler(steppe.SAM(rho=0.05), task, optimizer, precision="bf16")

One line in a copy of timm's ``train.py``, where the task is prepared and the optimizer made. The loop calls the
task and then the scaler, as ever; the task hands its micro-batches on, and the scaler makes the method's step with
the last of them. Accumulation, clipping, schedules, EMA and DDP are what the script's arguments say, and what the
method remembers is saved with timm's checkpoints. Needs ``pip install 'steppe[vision]'``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.step import Step
from steppe.errors import InputError
from steppe.integrations import ready

try:
    from timm.task import ClassificationTask, TrainingTask
# torchvision built for another torch raises RuntimeError while it registers its operators
except (ImportError, RuntimeError) as error:
    raise InputError(f"{str(error).splitlines()[0]}; pip install 'steppe[vision]'") from None


class SteppeScaler:
    """What timm's loop calls with each loss; ``step`` is the bound step, from the first update.

    A classification task is trained by its network and criterion, with any method. Another task, distillation for
    instance, computes its loss itself: it is called in each pass, in one process.

    The loss that the loop is shown is the clean pass's. In accumulation it is known with the last micro-batch; the
    others show that of the step before.

    Args:
        method: The method, or its text, 'sam:rho=0.1'.
        task: timm's task, after ``prepare_distributed``; in training mode it only takes batches from now on.
        optimizer: The optimizer of the loop.
        precision: 'fp32', 'bf16' or 'fp16', in the place of the script's own autocast and loss scale.
        bind: Further arguments of `Method.bind`: microbatch, m, sync, steps, epoch, seed.

    Raises:
        InputError: The task computes its loss itself and is distributed; or, at the first update, gradients are to
            be clipped otherwise than by norm, or to be differentiated.
    """

    state_dict_key = "steppe"

    def __init__(
        self,
        method: Method | str,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str = "fp32",
        **bind: Any,
    ):
        self.method, self.task, self.optimizer = ready(method), task, optimizer
        self.bind_with = {"precision": precision, **bind}
        self.step: Step | None = None
        self._whole = _Whole(task)
        if not isinstance(task, ClassificationTask) and _distributed(task):
            raise InputError(
                f"{type(task).__name__} computes its loss itself and is distributed; a method needs to call the "
                "network alone there: use a ClassificationTask, or one process"
            )
        if isinstance(task, ClassificationTask) and not hasattr(task, "trainable_module"):
            raise InputError("this timm's tasks do not name their network; pip install 'timm>=1.0.28'")
        self._parts: list[Batch] = []
        self._saved: dict[str, Any] | None = None
        self._last = 0.0
        task.forward = self._take

    def _take(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Be the task: in training take a batch, and show a loss that is known later."""
        if not self.task.training:
            shown: dict[str, Tensor] = self._whole.outcome(input, target)
            return shown
        self._parts.append(Batch(input, target))
        return {"loss": torch.full((), self._last, device=input.device)}

    def __call__(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        clip_grad: float | None = None,
        clip_mode: str = "norm",
        parameters: Iterable[Tensor] | None = None,
        create_graph: bool = False,
        need_update: bool = True,
    ) -> None:
        """Make the method's step on the batches taken, if this is the last of them."""
        if not need_update:
            return
        if create_graph:
            raise InputError(
                f"{type(optimizer).__name__} differentiates gradients, which no method keeps; use another"
            )
        if self.step is None:
            self.step = self._bound(clip_grad, clip_mode)
        parts, self._parts = self._parts, []
        out = self.step(parts)
        self._last = float(out.loss.detach())
        # the loop divided what it was given by the number of parts, and multiplies it again to show it
        loss.detach().fill_(self._last / len(parts))

    def _bound(self, clip: float | None, mode: str) -> Step:
        if clip is not None and mode != "norm":
            raise InputError(
                f"clip_mode is {mode!r}, and a step clips by the global norm; use 'norm', or no clip_grad and "
                "transforms=[steppe.AGC(0.01)]"
            )
        model, loss = self._whole, "model"
        if isinstance(self.task, ClassificationTask):
            model, loss = self.task.trainable_module, self.task.criterion
        step = self.method.bind(model, self.optimizer, loss=loss, clip=clip, **self.bind_with)
        if self._saved is not None:
            step.load_state_dict(self._saved)
        return step

    def state_dict(self) -> dict[str, Any]:
        """Return what the method remembers, of this process."""
        return {} if self.step is None else self.step.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what a checkpoint holds."""
        self._saved = state_dict or None
        if self.step is not None and self._saved is not None:
            self.step.load_state_dict(self._saved)


class _Whole(nn.Module):
    """A task as a model that returns its loss, called as the task itself was."""

    def __init__(self, task: TrainingTask):
        super().__init__()
        self.task, self.outcome = task, task.forward

    def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the task's loss and output."""
        found = self.outcome(input, target)
        return found["loss"], found["output"]


def _distributed(task: nn.Module) -> bool:
    return any(isinstance(module, DistributedDataParallel) for module in task.modules())
