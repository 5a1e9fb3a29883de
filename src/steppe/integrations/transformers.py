"""A Hugging Face `Trainer` that trains with a method, with its arguments, callbacks, schedulers and checkpoints.

    trainer = SteppeTrainer(model=model, args=args, train_dataset=data, method=steppe.SAM(rho=0.05))

It is also a mixin over any subclass of `Trainer`: ``class Mine(SteppeTrainer, Seq2SeqTrainer)``. Each pass of the
method replays the micro-batches of gradient accumulation. Mixed precision, clipping, DDP and the number of epochs
follow the training arguments. Checkpoints hold the method's state. Needs ``pip install 'steppe[hf]'``.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.batch import Batch
from steppe.core.method import Method, overrides
from steppe.core.model_call import call_model, extract_loss, unwrap_model
from steppe.core.runtime import Runtime
from steppe.core.step import Step
from steppe.core.user_loss import ModelLoss
from steppe.errors import InputError
from steppe.integrations import (
    check_accelerator,
    check_modes,
    deployed,
    deployed_by,
    load_state,
    read_state,
    ready,
    write_state,
)

try:
    from transformers import Trainer, TrainerCallback
    from transformers.loss.loss_utils import ForCausalLMLoss
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
except ImportError as error:
    raise InputError(f"{error}; pip install 'steppe[hf]'") from None


class SteppeTrainer(Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` with a ``method``; ``bind`` has further arguments of `Method.bind`.

    Over another subclass of `Trainer` it is named first, ``class Mine(SteppeTrainer, Seq2SeqTrainer)``. Where that
    class has a ``training_step`` of its own, it is named last, and ``method`` and ``bind_options`` are attributes.

    The method may be text, 'sam:rho=0.1'. Each training binds it anew, as ``step``. Evaluation, prediction,
    `save_model` and `push_to_hub` use the deployed weights (the mean of EMA and SWA); checkpoints hold the trained
    weights and each process's state of the method. ``load_best_model_at_end`` loads both.

    The model computes its own loss, from labels of any name; or ``compute_loss`` does, where it is overridden, or
    ``compute_loss_func`` or label smoothing is used, and is then called in every pass.

    A micro-batch's weight in the mean is the number of its ``labels`` other than -100 and the model's
    ``semantic_loss_ignore_index``, without the first of each row where the model predicts the next token; of its
    samples if it has no such labels or their loss is CTC. ``bind={"weigh": ...}`` sets another weight.

    Raises:
        InputError: There is no method; DeepSpeed or LOMO is used, which give no gradient to a method; a
            training_step of another class would not be called; or a callback overrides on_pre_optimizer_step.
    """

    method: Any = None
    bind_options: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, *args: Any, method: Method | str | None = None, bind: dict[str, Any] | None = None, **kwargs: Any
    ):
        self._refuse_deepspeed(kwargs.get("args", args[1] if len(args) > 1 else None))
        super().__init__(*args, **kwargs)
        chosen = self.method if method is None else method
        if chosen is None:
            raise InputError("there is no method; give method=steppe.SAM(rho=0.05), say, or set it in the class")
        self.method, self.bind_options = ready(chosen), {**self.bind_options, **(bind or {})}
        self._forget()
        self._check()

    def _forget(self) -> None:
        self.step: Step | None = None
        self._saved: dict[str, Any] | None = None
        self._shifts_labels = False
        self._micro_batches: list[Batch] = []

    def __getstate__(self) -> dict[str, Any]:
        saved = self._saved if self.step is None else self.step.state_dict()
        return {**vars(self), "step": None, "_saved": saved}  # a copy binds its own

    @staticmethod
    def _refuse_deepspeed(args: Any) -> None:
        """Refuse it before the model is built for it."""
        if getattr(args, "deepspeed", None):
            raise InputError("deepspeed is used, which does not expose gradients; use DDP or FSDP2")

    def _check(self) -> None:
        """Refuse what this class would not call."""
        classes = type(self).__mro__
        for cls in classes[classes.index(SteppeTrainer) + 1 : classes.index(Trainer)]:
            if "training_step" in vars(cls):
                raise InputError(
                    f"{cls.__name__}.training_step would not be called; name SteppeTrainer last, as in class "
                    f"Mine({cls.__name__}, SteppeTrainer), and set method = ... in that class"
                )
        if "lomo" in str(self.args.optim).lower():
            raise InputError(f"optim is {self.args.optim}, which updates during backward; use another optimizer")
        saves = self.args.save_only_model and self.args.save_strategy != "no"
        if saves and overrides(self.method, "deployed_weights"):
            raise InputError(
                f"save_only_model is True, which leaves out the mean of {self.method!r}; leave it out"
            )
        for callback in self.callback_handler.callbacks:
            hook = type(callback).on_pre_optimizer_step
            own = hook is not TrainerCallback.on_pre_optimizer_step
            if own and not hook.__module__.startswith("transformers."):
                raise InputError(
                    f"{type(callback).__name__} overrides on_pre_optimizer_step, where no gradient is left; use "
                    "the optimizer's register_step_pre_hook, which sees the final gradient"
                )
        check_accelerator(self.accelerator)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the model and the optimizer may be others than in the training before."""
        self._forget()
        self._check()
        return super()._inner_training_loop(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Collect a micro-batch; with the last one, make the method's step and return its loss."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        self._micro_batches.append(Batch({k: v for k, v in inputs.items() if k != "labels"}, labels))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        model.train()
        self.optimizer.train()  # schedule-free optimizers have modes; others ignore it
        micro_batches, self._micro_batches = self._micro_batches, []
        if self.step is None:
            self.step = self._bound(model)
            self._shifts_labels = _shifts_labels(
                self.step.runtime, micro_batches[0], self.label_smoother is not None
            )
        # the loss of a micro-batch without labels is the mean of nothing, NaN
        out = self.step([part for part in micro_batches if self._labels(part)] or micro_batches)
        # the loop calls the optimizer next, which does nothing; its scheduler waits if the step was skipped
        self.optimizer._is_overflow = out.skipped
        return out.loss.detach().to(self.args.device)

    def _bound(self, model: nn.Module) -> Step:
        precision = {"bf16": "bf16", "fp16": "fp16"}.get(self.accelerator.mixed_precision, "fp32")
        optimizer = self.optimizer.optimizer
        check_modes(self.method, optimizer)
        options = {
            "loss": ModelLoss(self._computed_loss) if self._computes_loss() else "model",
            "precision": precision,
            "scaler": self.accelerator.scaler if precision == "fp16" else None,
            "clip": self.args.max_grad_norm or None,
            "weigh": lambda batch: self._labels(batch) or len(batch),
            "steps": self.state.max_steps,
            "seed": self.args.seed,
        }
        step: Step = self.method.bind(model, optimizer, **{**options, **self.bind_options})
        self.optimizer.step, self.optimizer._opt_called = _step_is_made, True
        if self._saved is not None:
            load_state(step, self._saved)
        return step

    def _computes_loss(self) -> bool:
        """Return whether the loss is not the model's own."""
        names = ("compute_loss", "compute_loss_context_manager", "autocast_smart_context_manager")
        own = any(getattr(getattr(self, name), "__func__", None) is not getattr(Trainer, name) for name in names)
        return own or self.compute_loss_func is not None or self.label_smoother is not None

    def _computed_loss(self, model: nn.Module, x: Any, labels: Any) -> Any:
        """Return the loss of a micro-batch and the model's output, from the Trainer's functions."""
        inputs = dict(x) if labels is None else {**x, "labels": labels}
        with self.compute_loss_context_manager():
            return self.compute_loss(model, inputs, return_outputs=True)

    def _labels(self, batch: Batch) -> int:
        """Return the number of labels that the model's loss is a mean of."""
        labels = batch.x.get("shift_labels", batch.y)
        config = getattr(unwrap_model(self.model)[0], "config", None)
        if not isinstance(labels, Tensor) or labels.is_floating_point() or hasattr(config, "ctc_loss_reduction"):
            return len(batch)
        if labels is batch.y and self._shifts_labels:
            labels = labels[..., 1:]
        counted = labels != -100
        if labels.dim() > 1:  # an image classifier may have the setting too, and its number as a class
            counted &= labels != getattr(config, "semantic_loss_ignore_index", -100)
        return int(counted.sum())

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict with the deployed weights."""
        with self._deployed():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the deployed weights, those of `evaluate`; a checkpoint (an internal call) has the trained ones."""
        with nullcontext() if _internal_call else self._deployed():
            super().save_model(output_dir, _internal_call)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Upload the deployed weights."""
        with self._deployed():
            return super().push_to_hub(*args, **kwargs)

    def _deployed(self) -> AbstractContextManager[None]:
        net = unwrap_model(self.accelerator.unwrap_model(self.model))[0]
        if self.step is None and self._saved is not None:  # resumed, before its first step
            return deployed_by(self.method, net, self._saved)
        return deployed(self.step, net)

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """Do nothing: the method's step clips."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> None:
        """Return None: no gradient is left after a method's step."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.step is not None:
            write_state(Path(output_dir), self.step.state_dict(), self.args.process_index, self.args.world_size)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._saved = read_state(Path(checkpoint), self.args.process_index, self.args.world_size)

    def _load_best_model(self) -> None:
        self.accelerator.wait_for_everyone()  # until the main process has written its file
        super()._load_best_model()
        folder = Path(self.state.best_model_checkpoint)
        saved = read_state(folder, self.args.process_index, self.args.world_size)
        if self.step is not None and saved is not None:
            load_state(self.step, saved)


def _step_is_made(closure: Any = None) -> None:
    """Do nothing in place of the optimizer's step: the method's step has been made."""


# or schedulers would warn that the optimizer was replaced
_step_is_made._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def _shifts_labels(rt: Runtime, batch: Batch, smoothed: bool) -> bool:
    """Return whether the model's loss compares each token's logits with the next label, measured by one pass.

    Some causal language models expect labels that are shifted already (those of BART and its kin).
    """
    net: Any = rt.net
    net = net.get_base_model() if hasattr(net, "get_base_model") else net
    names = {cls.__name__ for cls in type(net).__mro__} & {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    causal = bool(names) or getattr(net, "loss_type", None) is not None
    if smoothed:  # as the Trainer's label smoother decides
        return bool(names)
    if not causal or getattr(net, "loss_function", None) is not ForCausalLMLoss or batch.y is None:
        return False
    first = torch.full_like(batch.y, -100)
    first[..., 0] = 0
    with rt.preserve_state(), torch.no_grad(), rt.precision.autocast():
        loss, _ = extract_loss(call_model(rt.model, batch.x, first))
    return not bool(loss > 0)  # the mean over no label is NaN
