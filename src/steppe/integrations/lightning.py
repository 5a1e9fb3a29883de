"""A `LightningModule` that trains with a method: `SteppeMixin`, and ``self.step`` in training_step.

    class Classifier(SteppeMixin, lightning.LightningModule):
        method, bind_options = steppe.SAM(rho=0.05), {"clip": 1.0, "precision": "bf16"}

        def training_step(self, batch, batch_idx):
            out = self.step(*batch)
            self.log("loss", out.loss)

This is Lightning's manual optimisation: clipping, precision and micro-batches are ``bind_options``, not arguments
of the trainer, and the module steps its schedulers itself. Needs ``pip install 'steppe[lightning]'``.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, cast

import torch.distributed as dist

from steppe.core.method import Method, overrides
from steppe.core.step import Step
from steppe.errors import InputError
from steppe.integrations import check_modes, deployed, deployed_by, ready

try:
    from lightning.pytorch import Callback, LightningModule
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
    from lightning.pytorch.tuner.lr_finder import _LRCallback
except ImportError as error:
    raise InputError(f"{error}; pip install 'steppe[lightning]'") from None

TRAINED = "steppe_trained"  # the trained weights in a checkpoint whose own are the deployed ones
PRECISIONS = ("32-true", "64-true", "bf16-true")  # no autocast and no loss scale of Lightning's own
# what Lightning calls around its own backward pass and update only, on callbacks and on the module
BACKWARD_HOOKS = ("on_before_backward", "on_after_backward", "on_before_zero_grad")
GRADIENT_HOOKS = (
    *BACKWARD_HOOKS, "backward", "configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad"
)  # fmt: skip


class _Stages(Callback):  # type: ignore[misc]
    """Follows the trainer for a `SteppeMixin`, whatever hooks its module overrides."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin another training, on the state of a checkpoint only if it resumes one."""
        pl_module._step = None
        pl_module._saved = pl_module._saved if pl_module._resumes else None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Raise InputError for a module written for Lightning's own optimisation."""
        if pl_module._step is None and isinstance(outputs, Mapping) and "loss" in outputs:
            raise InputError(
                "training_step returned a loss and did not call self.step, so that nothing is trained; "
                "write out = self.step(*batch) in its place"
            )

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Use the deployed weights."""
        pl_module._deploy()

    def on_validation_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Restore the trained weights."""
        pl_module._deployed.close()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_exception = on_validation_end


class SteppeMixin(LightningModule):  # type: ignore[misc]
    """Goes before `LightningModule` among the bases; the network is the module's ``forward``.

    ``method`` may be text, 'sam:rho=0.1'; ``bind_options`` are further arguments of `Method.bind`. Validation,
    test and prediction use the deployed weights (the mean of EMA and SWA), also those of a checkpoint;
    checkpoints hold the deployed weights, so that ``load_from_checkpoint`` gives the mean, the trained ones, from
    which training goes on, and the method's state. `to_onnx` and `to_torchscript` export the deployed weights.
    ``global_step`` counts updates. A module that
    overrides a hook of this class calls ``super()`` in it.
    """

    method: Method | str | None = None
    bind_options: Mapping[str, Any] = {}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self._step: Step | None = None
        self._saved: list[dict[str, Any]] | None = None  # the checkpoint's, of each process
        self._resumes = False  # whether the next training begins with it
        self._deployed = ExitStack()

    def configure_callbacks(self) -> Any:
        """Add the callback of this class."""
        return [*super().configure_callbacks(), _Stages()]

    @property
    def step(self) -> Step:
        """The bound step; each ``fit`` binds it when training_step first uses it.

        Raises InputError without a ``method``, for several optimizers, hooks on gradients, and mixed precision or
        sharding by Lightning.
        """
        if self._step is None:
            self._check()
            counts = {"steps": self.trainer.estimated_stepping_batches, "epoch": self.trainer.num_training_batches}
            options = {k: int(n) for k, n in counts.items() if 0 < n < float("inf")} | dict(self.bind_options)
            method: Any = self.method
            self._step = ready(method).bind(self.trainer.strategy.model, self.optimizers(), **options)
            if self._saved is not None:
                rank, size = _process()
                if len(self._saved) != size:
                    raise InputError(
                        f"the checkpoint has {len(self._saved)} processes and this run {size}; start as many"
                    )
                self._step.load_state_dict(self._saved[rank])
            self._saved, self._resumes = None, False
        return self._step

    def _check(self) -> None:
        if self.method is None:
            raise InputError("method is not set; set method = steppe.SAM(rho=0.05), say, in the class or __init__")
        if self.automatic_optimization:
            raise InputError("automatic_optimization is True, but self.step makes the update; leave it False")
        if not any(isinstance(callback, _Stages) for callback in self.configure_callbacks()):
            raise InputError("configure_callbacks is overridden; return [*super().configure_callbacks(), ...]")
        if any(isinstance(callback, _LRCallback) for callback in self.trainer.callbacks):
            raise InputError(
                "lr_find varies no learning rate in manual optimisation; set one in configure_optimizers"
            )
        if isinstance(optimizers := self.optimizers(), list):
            raise InputError(
                f"configure_optimizers gives {len(optimizers)} optimizers; give one, with parameter groups"
            )
        check_modes(ready(self.method), optimizers)
        if (precision := self.trainer.precision) not in PRECISIONS:
            raise InputError(
                f"precision is {precision!r}; leave it out and set bind_options = {{'precision': 'bf16'}}"
            )
        if not isinstance(strategy := self.trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise InputError(f"strategy is {type(strategy).__name__}; use 'auto' or 'ddp'")
        own = [(self, name, LightningModule) for name in GRADIENT_HOOKS]
        own += [(callback, name, Callback) for callback in self.trainer.callbacks for name in BACKWARD_HOOKS]
        for owner, name, base in own:
            if getattr(getattr(owner, name), "__func__", None) is not getattr(base, name):
                raise InputError(
                    f"{name} is overridden in {type(owner).__name__} and would not be called; use "
                    "on_before_optimizer_step"
                )

    def _deploy(self) -> None:
        if self._step is None and self._saved is not None and self.method is not None:
            self._deployed.enter_context(deployed_by(self.method, self, self._saved[0]))
        else:
            self._deployed.enter_context(deployed(self._step, self))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the method's state of all processes: each has its own random state."""
        super().on_save_checkpoint(checkpoint)
        self._deployed.close()  # in place, so that the checkpoint's tensors are the trained weights again
        if self._step is not None:
            states = [self._step.state_dict()]
            if dist.is_initialized():
                states *= dist.get_world_size()
                dist.all_gather_object(states, states[0])
            checkpoint["steppe"] = states
        elif self._saved is not None:
            checkpoint["steppe"] = self._saved
        if "steppe" in checkpoint and overrides(ready(cast(Method, self.method)), "deployed_weights"):
            with self._deployed:
                self._deploy()
                mean = {name: value.detach().clone() for name, value in self.state_dict().items()}
            checkpoint[TRAINED], checkpoint["state_dict"] = checkpoint["state_dict"], mean

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the method's state, now or when the method is bound."""
        super().on_load_checkpoint(checkpoint)
        self._saved = checkpoint.get("steppe")
        self._resumes = self._trainer is not None and self.trainer.state.fn == "fit"
        if self._resumes and TRAINED in checkpoint:
            checkpoint["state_dict"] = checkpoint[TRAINED]
        if self._step is not None and self._saved is not None and not self._resumes:
            rank, size = _process()
            self._step.load_state_dict(self._saved[rank if len(self._saved) == size else 0])

    def to_onnx(self, *args: Any, **kwargs: Any) -> Any:
        """Export the deployed weights."""
        with deployed(self._step, self):
            return super().to_onnx(*args, **kwargs)

    def to_torchscript(self, *args: Any, **kwargs: Any) -> Any:
        """Export the deployed weights."""
        with deployed(self._step, self):
            return super().to_torchscript(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_step": None, "_deployed": ExitStack()}  # a copy binds its own


def _process() -> tuple[int, int]:
    """Return the rank of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
