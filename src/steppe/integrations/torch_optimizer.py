"""SAM and ASAM as an optimizer with ``first_step`` and ``second_step``, for code written for davda54/sam.

    optimizer = SAMOptimizer(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9, model=model)

Weights are restored bitwise in their own storage; given the model, running statistics count each batch once; inf
or NaN in either gradient skips the update, and `step` restores running statistics too. The loop runs the passes:
each draws its own dropout masks, and DDP averages the gradients of each. Other methods, and replayed
micro-batches, need ``method.bind(model, optimizer)``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from steppe.core import param_groups
from steppe.core.data_parallel import check_wrappers
from steppe.core.model_call import unwrap_model
from steppe.core.numerics import vector
from steppe.core.numerics.complex_params import real_view
from steppe.core.numerics.perturbations import scaled_perturbation
from steppe.core.schedules import finite
from steppe.core.state.snapshot import Buffers, Snapshot
from steppe.core.user_loss import CHECKED_STEPS
from steppe.errors import InputError

_BIND = "method.bind(model, optimizer)"


class SAMOptimizer(torch.optim.Optimizer):
    """SAM around another optimizer: make both passes yourself, or give `step` a closure.

    ``param_groups``, ``state``, hooks and all other attributes are the base optimizer's own, so that schedulers,
    checkpoints, hooks and modes work as without SAM; step hooks run once per update. A parameter group may have
    its own ``rho``, unless the base optimizer has one itself. ``skipped`` is True if a gradient of the last step
    was not finite: nothing was updated.

    Args:
        params: The network's parameters, or groups of them; unused if the base optimizer is already made.
        base_optimizer: Class of the optimizer that makes the updates, or an optimizer.
        rho: Radius of the perturbation.
        adaptive: Scale the perturbation by the size of each weight (ASAM with scaling 'all').
        model: The network; without it both passes update the running statistics.
        settings: Arguments of the base optimizer's class: lr, momentum and so on.

    Raises:
        InputError: A ``rho``, also of a group, is not a number of at least 0; ``base_optimizer`` is no optimizer,
            needs a closure itself, or is already made and ``settings`` are given; or the parameters are sharded by
            FSDP1 or DeepSpeed.
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., torch.optim.Optimizer] | torch.optim.Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        model: nn.Module | None = None,
        **settings: Any,
    ):
        is_optimizer = isinstance(base_optimizer, torch.optim.Optimizer)
        if is_optimizer and settings:
            raise InputError(f"base_optimizer is already made and {', '.join(settings)} is given; give its class")
        base = (
            base_optimizer(params, **settings) if callable(base_optimizer) and not is_optimizer else base_optimizer
        )
        if not isinstance(base, torch.optim.Optimizer) or isinstance(base, torch.optim.LBFGS):
            raise InputError(f"base_optimizer is {base!r}; give SGD or Adam, say, or its class, or use {_BIND}")
        _check_rho(rho)
        param_groups.check_setting(base, "rho")
        params = [p for group in base.param_groups for p in group["params"]]
        check_wrappers(None if model is None else unwrap_model(model)[0], params)
        # not Optimizer.__init__: groups, state and hooks are the base optimizer's
        self.base_optimizer, self.defaults, self.model = base, base.defaults, model
        self.rho, self.adaptive, self.skipped = rho, adaptive, False
        self._buffers = None if model is None else Buffers(model)
        self._first_steps = CHECKED_STEPS  # in which a forward pass may register buffers
        self._saved: list[tuple[Tensor, Tensor]] | None = None  # None outside of a step
        self._saved_buffers: Snapshot | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "base_optimizer":  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.base_optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "step"}  # a scheduler's wrapper of it

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's groups."""
        return self.base_optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state."""
        return self.base_optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state; SAM itself has none between steps."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base optimizer's state."""
        self.base_optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; raises InputError for a ``rho`` that is not usable."""
        if "rho" not in self.defaults:
            _check_rho(param_group.get("rho", 0))
        self.base_optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.base_optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Perturb the weights along their gradients; if the last step was not finished, it is undone first."""
        self._restore()
        if self._buffers is not None and self._first_steps:
            self._first_steps -= 1
            self._buffers.refresh()
        self._finite = self._grads_are_finite()
        every = [p for g in self.param_groups for p in g["params"]]
        own = param_groups.setting(self.base_optimizer, every, "rho", self.rho)
        each = own if isinstance(own, list) else [own] * len(every)
        moved = [
            (real_view(p), real_view(p.grad), rho)
            for p, rho in zip(every, each, strict=True)
            if rho > 0 and p.grad is not None and self._finite
        ]
        self._saved = [(p, p.clone()) for p, _, _ in moved]
        self._saved_buffers = None if self._buffers is None else self._buffers.snapshot()
        if moved:
            params, grads, radii = map(list, zip(*moved, strict=True))
            scale = [p.abs() for p in params] if self.adaptive else None
            rho = radii if len(set(radii)) > 1 else radii[0]
            offset = scaled_perturbation(grads, rho, scale)
            if isinstance(offset, vector.ScaledVector):
                vector.move(params, vector.present(offset.direction), offset.times)
            else:
                vector.move(params, vector.present(offset))
            torch.clear_autocast_cache()  # if both passes are within one autocast
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the weights, and update them with the gradients of the second pass.

        Raises InputError without a first_step.
        """
        if self._saved is None:
            raise InputError("second_step without first_step; call first_step after the first backward pass")
        self.skipped = not (self._grads_are_finite() and self._finite)
        self._restore()
        if not self.skipped:
            self.base_optimizer.step()
            torch.clear_autocast_cache()
        self._opt_called = True  # for schedulers, which warn if no update came before them
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step: ``closure`` makes one forward and backward pass, and returns the loss.

        It is called for both passes, with cleared gradients, and does not scale the loss. After a first pass with
        inf or NaN there is no second one. Given the model, a skipped step leaves no such value in its running
        statistics either. Returns the first loss.

        Raises InputError without a closure, and if it scales the loss.
        """
        if closure is None:
            raise InputError(f"step needs a closure; give one, call first_step and second_step, or use {_BIND}")
        self._restore()
        before = None if self._buffers is None else self._buffers.snapshot()
        try:
            with torch.enable_grad(), _no_loss_scale():
                self.zero_grad()
                loss = closure()
                self.first_step(zero_grad=True)
                if self._finite:
                    closure()
            self.second_step()
        except BaseException:
            self._restore()
            if before is not None:
                before.restore()
            raise
        if before is not None:
            if self.skipped:
                before.restore()
            before.release()
        return loss

    def _grads_are_finite(self) -> bool:
        """Return whether all gradients are finite, on every process if the model is in DDP."""
        norm = vector.norm([real_view(p.grad) for group in self.param_groups for p in group["params"]])
        finite = torch.isfinite(norm).float()
        if isinstance(self.model, DistributedDataParallel):
            dist.all_reduce(finite, dist.ReduceOp.MIN, self.model.process_group)
        return bool(finite)

    @torch.no_grad()
    def _restore(self) -> None:
        for p, value in self._saved or []:
            p.copy_(value)
        if self._saved:
            torch.clear_autocast_cache()
        if self._saved_buffers is not None:
            self._saved_buffers.restore()
        self._saved = self._saved_buffers = None


def _check_rho(rho: Any) -> None:
    if not finite(rho) or rho < 0:
        raise InputError(f"rho is {rho!r}; give a number of at least 0, or use {_BIND}")


@contextmanager
def _no_loss_scale() -> Iterator[None]:
    """Raise InputError for a loss that is scaled: the gradients in a closure could not be unscaled."""
    scale = GradScaler.scale

    def refuse(scaler: GradScaler, outputs: Any) -> Any:
        if scaler.is_enabled():
            raise InputError(
                "the closure scales its loss by a GradScaler; call scaler.unscale_ before first_step and "
                f"second_step instead, or use {_BIND} with precision='fp16'"
            )
        return scale(scaler, outputs)

    GradScaler.scale = refuse  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        GradScaler.scale = scale  # type: ignore[method-assign]
