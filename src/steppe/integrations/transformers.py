"""A Hugging Face `Trainer` that trains with a method: same arguments, same callbacks, schedulers and checkpoints.

    trainer = SteppeTrainer(model=model, args=args, train_dataset=data, method=steppe.SAM(rho=0.05))

The method replays the micro-batches of gradient accumulation in each of its passes; mixed precision, clipping, DDP
and the number of epochs are what the arguments say. What the method remembers is saved with the checkpoints.
Needs ``pip install 'steppe[hf]'``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.method import Method
from steppe.core.model_call import unwrap_model
from steppe.core.step import Step
from steppe.errors import InputError
from steppe.integrations import deployed, ready
from steppe.training.checkpoint.file import Checkpoint, read, write

try:
    from transformers import Trainer
except ImportError as error:
    raise InputError(f"{error}; pip install 'steppe[hf]'") from None

STATE = "steppe.safetensors"


class SteppeTrainer(Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` with a ``method``; ``bind`` holds further arguments of `Method.bind`.

    The method may be given as text, 'sam:rho=0.1'. Evaluation and prediction see the weights that it deploys (the
    mean of EMA and SWA); what is saved are those that are trained, and the method's own state.

    The model computes its own loss. A micro-batch counts in the mean what its loss counts: its labels that are not
    -100, and as many samples where there are none.

    Raises:
        InputError: label_smoothing_factor, compute_loss_func or DeepSpeed is used, which compute the loss or the
            gradient in places that a method cannot call.
    """

    def __init__(self, *args: Any, method: Method | str, bind: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.method, self.bind_with = ready(method), dict(bind or {})
        self.step: Step | None = None
        self._parts: list[Batch] = []
        self._saved: Path | None = None
        for name, used in (
            ("label_smoothing_factor", self.args.label_smoothing_factor > 0),
            ("compute_loss_func", self.compute_loss_func is not None),
            ("deepspeed", bool(self.args.deepspeed)),
        ):
            if used:
                raise InputError(f"{name} is used, and a method calls the model's own loss; leave {name} out")

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Collect a micro-batch; with the last one of a step make the method's step, and return its loss."""
        self._parts.append(_batch(self._prepare_inputs(inputs)))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        if self.step is None:
            self.step = self._bound(model)
        model.train()
        parts, self._parts = self._parts, []
        out = self.step(parts)
        # the loop's own optimizer step comes next; this one was made, or skipped, and the scheduler asks which
        self.optimizer._is_overflow = out.skipped
        return out.loss.detach().to(self.args.device)

    def _bound(self, model: nn.Module) -> Step:
        precision = {"bf16": "bf16", "fp16": "fp16"}.get(self.accelerator.mixed_precision, "fp32")
        step = self.method.bind(
            model,
            self.optimizer.optimizer,
            loss="model",
            precision=precision,
            scaler=self.accelerator.scaler if precision == "fp16" else None,
            clip=self.args.max_grad_norm or None,
            weigh=_counted,
            steps=self.state.max_steps,
            seed=self.args.seed,
            **self.bind_with,
        )
        self.optimizer.step, self.optimizer._opt_called = _made_already, True
        if self._saved is not None:
            _load(step, self._saved)
        return step

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, or predict, with the weights that the method deploys."""
        net = unwrap_model(self.accelerator.unwrap_model(self.model))[0]
        with deployed(self.step, net):
            return super().evaluation_loop(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """The method's step has clipped."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> None:
        """No gradient is left after a method's step."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.step is not None and self.args.should_save:
            _save(self.step, Path(output_dir) / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / STATE).exists():
            self._saved = Path(checkpoint) / STATE


def _made_already(closure: Any = None) -> None:
    """Whoever calls the optimizer's step has already had the method's."""


# or schedulers would take it for a mistake
_made_already._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def _batch(inputs: dict[str, Any]) -> Batch:
    if "labels" not in inputs:
        raise InputError("the batch has no labels, and a method needs the model's loss; give a column 'labels'")
    return Batch({k: v for k, v in inputs.items() if k != "labels"}, inputs["labels"])


def _counted(batch: Batch) -> float:
    """Return over how many labels the model's loss is a mean."""
    if batch.y.is_floating_point():
        return len(batch)
    return float((batch.y != -100).sum()) or float(len(batch))


def _save(step: Step, path: Path) -> None:
    content = step.state_dict()
    tensors = {f"{part}.{k}": v for part in ("state", "generators") for k, v in content[part].items()}
    data = {k: content[k] for k in ("method", "passes", "scaler")}
    write(path, Checkpoint(tensors, json.loads(json.dumps(data))))


def _load(step: Step, path: Path) -> None:
    saved = read(path)
    step.load_state_dict({**saved.data, **{part: dict(saved.part(part)) for part in ("state", "generators")}})
