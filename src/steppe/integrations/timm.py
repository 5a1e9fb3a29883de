"""A method in timm's training loop, in place of its loss scaler.

    loss_scaler = SteppeScaler(steppe.SAM(rho=0.05), task, optimizer, precision="bf16")

It is one line in a copy of timm's ``train.py``, after the task is prepared and the optimizer created. The loop
calls the task and then the scaler, as before. The task collects micro-batches, and the scaler makes the method's
step with the last of them. Accumulation, clipping, schedules, EMA and DDP follow the script's arguments, and the
method's state is saved in timm's checkpoints. Needs ``pip install 'steppe[vision]'``.
"""

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
    """Replaces timm's ``NativeScaler``; ``step`` is the bound step, from the first update on.

    Of a classification task the method calls the network and the criterion. Any other task (distillation, for
    instance) computes its own loss: each pass calls the task, in one process only.

    The loop sees the clean pass's loss. With accumulation it is known at the last micro-batch; until then the loop
    sees the loss of the step before.

    Args:
        method: The method, or its text, 'sam:rho=0.1'. task: timm's task, after ``prepare_distributed``; in
        training mode, calling it only collects batches from now on. optimizer: The optimizer of the loop.
        precision: 'fp32', 'bf16' or 'fp16', in place of the script's own autocast and loss scale. bind: Further
        arguments of `Method.bind`.

    Raises:
        InputError: The task computes its own loss and is distributed; or, at the first update, clipping is not by
            norm, or the optimizer needs ``create_graph``.
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
        self.bind_options = {"precision": precision, **bind}
        self.step: Step | None = None
        self._task_model = _TaskModel(task)
        distributed = any(isinstance(module, DistributedDataParallel) for module in task.modules())
        if not isinstance(task, ClassificationTask) and distributed:
            raise InputError(
                f"{type(task).__name__} computes its own loss and is distributed, so no method can call the "
                "network alone; use a ClassificationTask, or one process"
            )
        if isinstance(task, ClassificationTask) and not hasattr(task, "trainable_module"):
            raise InputError("this version of timm has no trainable_module; pip install 'timm>=1.0.28'")
        self._micro_batches: list[Batch] = []
        self._saved: dict[str, Any] | None = None
        self._last_loss = 0.0
        task.forward = self._collect

    def _collect(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Replace the task's forward: in training collect a batch, and return the last loss that is known."""
        if not self.task.training:
            outputs: dict[str, Tensor] = self._task_model.task_forward(input, target)
            return outputs
        self._micro_batches.append(Batch(input, target))
        return {"loss": torch.full((), self._last_loss, device=input.device)}

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
        """Make the method's step on the collected batches, if this is the last of them."""
        if not need_update:
            return
        if create_graph:
            raise InputError(
                f"{type(optimizer).__name__} needs create_graph, which no step has; use another optimizer"
            )
        if self.step is None:
            self.step = self._bound(clip_grad, clip_mode)
        micro_batches, self._micro_batches = self._micro_batches, []
        out = self.step(micro_batches)
        self._last_loss = float(out.loss.detach())
        # the loop has divided its loss by the number of micro-batches, and multiplies it again to log it
        loss.detach().fill_(self._last_loss / len(micro_batches))

    def _bound(self, clip: float | None, mode: str) -> Step:
        if clip is not None and mode != "norm":
            raise InputError(
                f"clip_mode is {mode!r}, but a step clips by the global norm; use 'norm', or no clip_grad and "
                "transforms=[steppe.AGC(0.01)]"
            )
        model, loss = self._task_model, "model"
        if isinstance(self.task, ClassificationTask):
            model, loss = self.task.trainable_module, self.task.criterion
        step = self.method.bind(model, self.optimizer, loss=loss, clip=clip, **self.bind_options)
        if self._saved is not None:
            step.load_state_dict(self._saved)
        return step

    def state_dict(self) -> dict[str, Any]:
        """Return the method's state, of this process."""
        return {} if self.step is None else self.step.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the method's state, now or when the method is bound."""
        self._saved = state_dict or None
        if self.step is not None and self._saved is not None:
            self.step.load_state_dict(self._saved)


class _TaskModel(nn.Module):
    """A task as a model that returns its own loss."""

    def __init__(self, task: TrainingTask):
        super().__init__()
        self.task, self.task_forward = task, task.forward

    def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the task's loss and output."""
        outputs = self.task_forward(input, target)
        return outputs["loss"], outputs["output"]
