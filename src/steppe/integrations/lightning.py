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
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from steppe.core.method import Method
from steppe.core.step import Step
from steppe.errors import InputError
from steppe.integrations import deployed, ready

try:
    from lightning.pytorch import LightningModule
except ImportError as error:
    raise InputError(f"{error}; pip install 'steppe[lightning]'") from None

PRECISIONS = ("32-true", "64-true", "bf16-true")  # no autocast and no loss scale of Lightning's own
GRADIENT_HOOKS = ("on_before_backward", "on_after_backward", "configure_gradient_clipping")


class SteppeMixin(LightningModule):  # type: ignore[misc]
    """Goes before `LightningModule` among the bases; the network is the module's ``forward``.

    ``method`` may be text, 'sam:rho=0.1'; ``bind_options`` are further arguments of `Method.bind`. Validation,
    test and prediction use the deployed weights (the mean of EMA and SWA); checkpoints hold the trained weights
    and the method's state. ``global_step`` counts updates. A module that overrides a hook of this class calls
    ``super()`` in it.
    """

    method: Method | str
    bind_options: Mapping[str, Any] = {}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self._step: Step | None = None
        self._saved: list[dict[str, Any]] | None = None  # the checkpoint's, until the method is bound
        self._deployed = ExitStack()

    @property
    def step(self) -> Step:
        """The bound step; each ``fit`` binds it when training_step first uses it.

        Raises InputError for several optimizers, hooks on gradients, and mixed precision or sharding by Lightning.
        """
        if self._step is None or (self.trainer.training and self._step.runtime.optimizer is not self.optimizers()):
            self._check()
            counts = {"steps": self.trainer.estimated_stepping_batches, "epoch": self.trainer.num_training_batches}
            options = {k: int(n) for k, n in counts.items() if 0 < n < float("inf")} | dict(self.bind_options)
            self._step = ready(self.method).bind(self.trainer.strategy.model, self.optimizers(), **options)
            self._load()
            self._saved = None
        return self._step

    def _check(self) -> None:
        optimizers, model, precision = self.optimizers(), self.trainer.strategy.model, self.trainer.precision
        if isinstance(optimizers, list):
            raise InputError(
                f"configure_optimizers gives {len(optimizers)} optimizers; give one, with parameter groups"
            )
        if precision not in PRECISIONS:
            raise InputError(
                f"precision is {precision!r}; leave it out and set bind_options = {{'precision': 'bf16'}}"
            )
        if model is not self and not isinstance(model, DistributedDataParallel):
            raise InputError(f"strategy is {type(self.trainer.strategy).__name__}; use 'auto' or 'ddp'")
        for name in GRADIENT_HOOKS:
            if getattr(type(self), name) is not getattr(LightningModule, name):
                raise InputError(f"{name} is overridden and would not be called; use on_before_optimizer_step")

    def _load(self) -> None:
        if self._step is None or self._saved is None:
            return
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if len(self._saved) != size:
            raise InputError(f"the checkpoint has {len(self._saved)} processes and this run {size}; start as many")
        self._step.load_state_dict(self._saved[rank])

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the method's state, now or when the method is bound."""
        super().on_load_checkpoint(checkpoint)
        self._saved = checkpoint.get("steppe")
        self._load()

    def on_validation_start(self) -> None:
        """Use the deployed weights."""
        self._deployed.enter_context(deployed(self._step, self))

    def on_validation_end(self) -> None:
        """Restore the trained weights."""
        self._deployed.close()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_step": None}  # a copy binds its own
