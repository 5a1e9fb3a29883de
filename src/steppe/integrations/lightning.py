"""A Lightning `Trainer` that trains with a method: a callback, and the module as it is.

    trainer = lightning.Trainer(callbacks=[SteppeCallback(steppe.SAM(rho=0.05))], gradient_clip_val=1.0)
    trainer.fit(module, loader)

The module's ``training_step`` is the forward pass of every pass that the method makes. Accumulation, clipping,
precision, DDP, learning rate schedules and ``global_step`` are what the trainer's arguments say; what the method
remembers is saved with Lightning's checkpoints. Needs ``pip install 'steppe[lightning]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steppe.core.batch import Batch, as_batch
from steppe.core.method import Method, name_of, overrides
from steppe.core.model_call import NoLogitsError
from steppe.core.runtime import LossFunction
from steppe.core.step import Step
from steppe.errors import InputError
from steppe.integrations import deployed, ready

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
    from lightning.pytorch.utilities.data import extract_batch_size
    from lightning.pytorch.utilities.model_helpers import is_overridden
    from lightning_utilities.core.apply_func import apply_to_collection
    from torchmetrics import Metric
except ImportError as error:
    raise InputError(f"{error}; pip install 'steppe[lightning]'") from None

_PRECISIONS = {
    "32-true": "fp32",
    "64-true": "fp64",
    "bf16-true": "fp32",  # the weights' own type, as in fp32: autocast has nothing to do
    "bf16-mixed": "bf16",
    "16-mixed": "fp16",
}
# what a module may define to work on gradients or on the update; a method's step leaves nothing to work on
_HOOKS = (
    *("backward", "optimizer_step", "configure_gradient_clipping"),
    *("on_before_backward", "on_after_backward", "on_before_optimizer_step"),
)


class SteppeCallback(Callback):  # type: ignore[misc]
    """Train a `LightningModule` with ``method``; ``step`` is the bound step, from the start of training.

    The module optimises automatically, with one optimizer. Its ``training_step`` returns the mean loss of the
    batch, or a mapping with it under 'loss', is called once in each pass of the method, and logs in the clean one
    alone. A step takes the micro-batches of ``accumulate_grad_batches`` together: the losses that Lightning is
    given are 0 but for the last of them, which has the mean of all. Validation, test and prediction see the
    weights that the method deploys (the mean of EMA and SWA); checkpoints hold those that are trained, and the
    method's own state.

    Args:
        method: The method, or its text, 'sam:rho=0.1'.
        loss: ``loss(logits, y)``, for methods that compute losses themselves (SADT, SAF). The network is then the
            module's ``forward``, a batch is (x, y) or a mapping with 'labels', and ``training_step`` is not used.
        bind: Further arguments of `Method.bind`: transforms, microbatch, m, sync, seed.

    Raises:
        InputError: When training starts: several optimizers, manual optimisation, a strategy or a precision that
            hides gradients, clipping by value, or a module with hooks of its own on gradients or updates.
    """

    def __init__(
        self, method: Method | str, *, loss: LossFunction | None = None, bind: dict[str, Any] | None = None
    ):
        super().__init__()
        self.method, self.loss, self.bind_with = ready(method), loss, dict(bind or {})
        self.step: Step | None = None
        self._saved: Mapping[str, Any] | None = None
        self._parts: list[Batch] = []
        self._complete = False
        self._undo: list[Callable[[], None]] = []
        self._standing = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind the method to the module and its optimizer, and take over what makes an update."""
        _check(trainer, pl_module)
        if self.loss is None and overrides(self.method, "objective"):
            raise _loss_wanted(name_of(self.method))
        strategy, plugin = trainer.strategy, trainer.precision_plugin
        precision = _PRECISIONS[trainer.precision]
        steps, per_epoch = trainer.estimated_stepping_batches, trainer.num_training_batches
        self.step = self.method.bind(
            strategy.model,
            trainer.optimizers[0],
            loss=self.loss or "model",
            clip=trainer.gradient_clip_val or None,
            precision=precision,
            scaler=plugin.scaler if precision == "fp16" else None,
            steps=int(steps) if steps != float("inf") else None,
            epoch=-(-per_epoch // trainer.accumulate_grad_batches) if per_epoch != float("inf") else None,
            **self.bind_with,
        )
        if self._saved is not None:
            self._load(self.step, self._saved)
        self._parts = []
        self._put(strategy, "training_step", lambda *given: self._train(trainer, pl_module, *given))
        # whoever calls them has already had the method's step
        self._put(strategy, "backward", lambda loss, *_, **__: loss)
        self._put(pl_module, "optimizer_step", self._last_part)

    def _put(self, owner: Any, name: str, value: Any) -> None:
        setattr(owner, name, value)
        self._undo.append(lambda: delattr(owner, name))

    def _last_part(self, epoch: int, index: int, optimizer: Any, closure: Callable[[], Any]) -> None:
        """Lightning calls this in place of the closure alone where the accumulation is complete."""
        self._complete = True
        try:
            closure()
        finally:
            self._complete = False

    def _train(self, trainer: Trainer, module: LightningModule, batch: Any, *rest: Any) -> dict[str, Tensor]:
        """Collect a micro-batch; with the last one of a step make the method's step, and return its loss."""
        self._parts.append(_pair(batch) if self.loss is not None else Batch(_Rows(batch, rest)))
        if not self._complete:
            return {"loss": torch.zeros((), device=module.device)}
        parts, self._parts = self._parts, []
        if self.step is None:
            raise RuntimeError("no step: training has not started")
        if self.loss is not None:
            return {"loss": self.step(parts).loss.detach()}
        try:
            with _as_forward(trainer, module, self.step, sum(map(len, parts))):
                return {"loss": self.step(parts).loss.detach()}
        except NoLogitsError:
            raise _loss_wanted(name_of(self.method)) from None

    # -- evaluate what is deployed -----------------------------------------------------------------------

    def _deploy(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._standing.enter_context(deployed(self.step, pl_module))

    def _train_on(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._standing.close()

    on_validation_start = on_test_start = on_predict_start = _deploy
    on_validation_end = on_test_end = on_predict_end = _train_on

    # -- save, resume, leave -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what the method remembers, of all processes: their random streams differ."""
        if self.step is None:
            return {}
        mine = self.step.state_dict()
        states = [mine] * _size()
        if len(states) > 1:
            dist.all_gather_object(states, mine)
        return {"processes": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the method is bound."""
        self._saved = state_dict or None

    def _load(self, step: Step, saved: Mapping[str, Any]) -> None:
        states, size = saved["processes"], _size()
        if len(states) != size:
            raise InputError(
                f"the checkpoint was written by {len(states)} processes and this is one of {size}; "
                "go on with as many as before"
            )
        step.load_state_dict(states[dist.get_rank() if size > 1 else 0])
        self._saved = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave trainer and module as they were."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave trainer and module as they were."""
        self._standing.close()
        while self._undo:
            self._undo.pop()()


def _loss_wanted(method: str) -> InputError:
    return InputError(
        f"{method} computes losses itself, and loss is None; give the callback "
        "loss=torch.nn.functional.cross_entropy, say, and batches (x, y)"
    )


class _Rows:
    """A batch as Lightning has it, whatever its structure; its rows are those of all tensors in it.

    ``rest`` is what training_step takes beside it: the batch's number, or nothing.
    """

    def __init__(self, batch: Any, rest: tuple[Any, ...]):
        self.batch, self.rest = batch, rest

    def __len__(self) -> int:
        return int(extract_batch_size(self.batch))

    def __getitem__(self, rows: Any) -> _Rows:
        return _Rows(apply_to_collection(self.batch, Tensor, lambda t: t[rows] if t.ndim else t), self.rest)


@contextmanager
def _as_forward(trainer: Trainer, module: LightningModule, step: Step, count: int) -> Iterator[None]:
    """Let calls of the module, also through DDP, be its training_step, which logs ``count`` samples."""
    recorded = 0

    def forward(rows: _Rows) -> Any:
        nonlocal recorded
        # inside of training_step the module is its own network
        del module.forward
        quiet = step.runtime.untracked or recorded >= count
        recorded += 0 if quiet else len(rows)
        try:
            with trainer.precision_plugin.forward_context(), _unrecorded(module) if quiet else _recorded():
                out = module.training_step(rows.batch, *rows.rest)
            # a bare tensor would pass for logits
            return {"loss": out} if isinstance(out, Tensor) else out
        finally:
            module.forward = forward

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _recorded() -> Iterator[None]:
    yield


@contextmanager
def _unrecorded(module: nn.Module) -> Iterator[None]:
    """Log nothing, and return torchmetrics to what they had counted."""
    metrics = [m for m in module.modules() if isinstance(m, Metric)]
    before = [dict(vars(m)) | {k: _copied(v) for k, v in m.metric_state.items()} for m in metrics]
    module.log = lambda *_, **__: None  # type: ignore[assignment]  # log_dict goes through it
    try:
        yield
    finally:
        del module.log
        for metric, held in zip(metrics, before, strict=True):
            vars(metric).update(held)


def _copied(state: Any) -> Any:
    return state.clone() if isinstance(state, Tensor) else list(state)


def _pair(batch: Any) -> Batch:
    return as_batch(tuple(batch) if isinstance(batch, list) else batch)


def _size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _check(trainer: Trainer, module: LightningModule) -> None:
    """Refuse what would hide gradients from a method, or updates from its module."""
    if len(trainer.optimizers) != 1:
        raise InputError(
            f"configure_optimizers gives {len(trainer.optimizers)} optimizers, and a method makes one update of "
            "all weights; give one, with parameter groups"
        )
    if not module.automatic_optimization:
        raise InputError(
            "automatic_optimization is False, and a method calls training_step in each of its passes; "
            "leave it at True and return the loss"
        )
    for name in _HOOKS:
        if is_overridden(name, module, LightningModule):
            raise InputError(f"{name} is overridden, and a method's step does what it is for; leave it out")
    if trainer.precision not in _PRECISIONS:
        raise InputError(f"precision is {trainer.precision!r}; use one of {', '.join(_PRECISIONS)}")
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        kind = type(trainer.strategy).__name__
        raise InputError(f"strategy is {kind}, whose gradients a method cannot average; use 'auto' or 'ddp'")
    if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        raise InputError("gradient_clip_algorithm is 'value'; a method's step clips by 'norm'")
