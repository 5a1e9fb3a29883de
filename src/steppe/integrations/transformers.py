"""A Hugging Face `Trainer` that trains with a method, with its arguments, callbacks, schedulers and checkpoints.

    trainer = SteppeTrainer(model=model, args=args, train_dataset=data, method=steppe.SAM(rho=0.05))

Each pass of the method replays the micro-batches of gradient accumulation. Mixed precision, clipping, DDP and the
number of epochs follow the training arguments. Checkpoints hold the method's state. Needs ``pip install
'steppe[hf]'``.
"""

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

STATE, PARTS = "steppe.safetensors", ("state", "generators")  # the file, and its parts that are tensors


class SteppeTrainer(Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` with a ``method``; ``bind`` has further arguments of `Method.bind`.

    The method may be text, 'sam:rho=0.1'. Evaluation and prediction use the deployed weights (the mean of EMA and
    SWA); checkpoints hold the trained weights and the method's state.

    The model computes its own loss. A micro-batch's weight in the mean is the number of its labels other than
    -100, or of its samples if it has no such labels.

    Raises:
        InputError: label_smoothing_factor, compute_loss_func or DeepSpeed is used; they compute the loss or the
            gradient where a method cannot call them.
    """

    def __init__(self, *args: Any, method: Method | str, bind: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.method, self.bind_options = ready(method), dict(bind or {})
        self.step: Step | None = None
        self._micro_batches: list[Batch] = []
        self._saved: Path | None = None
        for name, used in (
            ("label_smoothing_factor", self.args.label_smoothing_factor > 0),
            ("compute_loss_func", self.compute_loss_func is not None),
            ("deepspeed", bool(self.args.deepspeed)),
        ):
            if used:
                raise InputError(f"{name} is used, but a method calls the model's own loss; leave {name} out")

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Collect a micro-batch; with the last one, make the method's step and return its loss."""
        self._micro_batches.append(_batch(self._prepare_inputs(inputs)))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        if self.step is None:
            self.step = self._bound(model)
        model.train()
        micro_batches, self._micro_batches = self._micro_batches, []
        out = self.step(micro_batches)
        # the loop calls the optimizer next, which does nothing; its scheduler waits if the step was skipped
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
            weigh=_label_count,
            steps=self.state.max_steps,
            seed=self.args.seed,
            **self.bind_options,
        )
        self.optimizer.step, self.optimizer._opt_called = _step_is_made, True
        if self._saved is not None:
            saved = read(self._saved)
            step.load_state_dict({**saved.data, **{part: dict(saved.part(part)) for part in PARTS}})
        return step

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict with the deployed weights."""
        net = unwrap_model(self.accelerator.unwrap_model(self.model))[0]
        with deployed(self.step, net):
            return super().evaluation_loop(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """Do nothing: the method's step clips."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> None:
        """Return None: no gradient is left after a method's step."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.step is not None and self.args.should_save:
            content = self.step.state_dict()
            tensors = {f"{part}.{k}": v for part in PARTS for k, v in content[part].items()}
            data = {k: content[k] for k in ("method", "passes", "scaler")}
            write(Path(output_dir) / STATE, Checkpoint(tensors, json.loads(json.dumps(data))))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / STATE).exists():
            self._saved = Path(checkpoint) / STATE


def _step_is_made(closure: Any = None) -> None:
    """Do nothing in place of the optimizer's step: the method's step has been made."""


# or schedulers would warn that the optimizer was replaced
_step_is_made._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def _batch(inputs: dict[str, Any]) -> Batch:
    if "labels" not in inputs:
        raise InputError("the batch has no labels, but the model's loss needs them; give a column 'labels'")
    return Batch({k: v for k, v in inputs.items() if k != "labels"}, inputs["labels"])


def _label_count(batch: Batch) -> float:
    """Return the number of labels that the model's loss is a mean of."""
    if batch.y.is_floating_point():
        return len(batch)
    return float((batch.y != -100).sum()) or float(len(batch))
