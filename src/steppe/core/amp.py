"""The precision of a pass, and the loss scale of fp16."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.errors import InputError

PRECISIONS = ("fp32", "bf16", "fp16", "fp64")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """Autocast, and for fp16 one `GradScaler`, updated once per step.

    Gradients leave this class unscaled, so that no method sees the loss scale: neither the size of a
    perturbation nor clipping depends on it.

    Raises InputError if the parameters' type does not fit the precision.
    """

    def __init__(self, name: str, parameter: Tensor, scaler: GradScaler | None = None):
        if name not in PRECISIONS:
            raise InputError(f"precision is {name!r}; choose one of {', '.join(PRECISIONS)}")
        if name == "fp64" and parameter.dtype != torch.float64:
            raise InputError(f"precision is 'fp64' and the weights are {parameter.dtype}; call model.double()")
        if name == "fp16" and parameter.dtype != torch.float32:
            raise InputError(
                f"precision is 'fp16' and the weights are {parameter.dtype}; keep the weights in float32, "
                "autocast makes the passes half precision"
            )
        if scaler is not None and name != "fp16":
            raise InputError(f"a scaler is given and precision is {name!r}; only 'fp16' scales the loss")
        if scaler is not None and not hasattr(scaler, "unscale_"):
            raise InputError(f"scaler is {scaler!r}; give a torch.amp.GradScaler, or None for one of its own")
        self.name = name
        self.reduced = name in _AUTOCAST
        self.device = parameter.device.type
        self.scaler = (scaler or GradScaler(self.device)) if name == "fp16" else None
        # a scaler finds overflow by unscaling gradients; this one is 0, or inf if the step was not finite
        self._probe = nn.Parameter(torch.zeros(1, device=parameter.device))
        self._probe_optimizer = torch.optim.SGD([self._probe], 0.0)
        self._one = torch.ones((), device=parameter.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that a forward pass runs in."""
        if not self.reduced:
            return nullcontext()
        return torch.autocast(self.device, dtype=_AUTOCAST[self.name])

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to call ``backward`` on."""
        if self.scaler is None:
            return loss
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def unscaled(self, grads: Vec) -> Vec:
        """Return the gradients of the loss from those of the scaled loss."""
        if self.scaler is None:
            return grads
        # get_scale() would wait for the device; a power of two divides without rounding
        return vector.scale(grads, self.scaler.scale(self._one).reciprocal())

    def record(self, skipped: bool | Tensor) -> None:
        """End a step: the scale is reduced if it was skipped, and grows after many others; a tensor is 1 or 0."""
        if self.scaler is None or not self.scaler.is_enabled():
            return
        if isinstance(skipped, Tensor):
            self._probe.grad = (1 - skipped.detach().reshape(1).to(self._probe)).reciprocal()
        else:
            self._probe.grad = torch.full_like(self._probe, float("inf") if skipped else 0.0)
        self.scaler.unscale_(self._probe_optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the loss scale and its growth counter, empty without one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Load a loss scale."""
        if self.scaler is not None and content:
            self.scaler.load_state_dict(content)


def upcast_to_float32(t: Tensor) -> Tensor:
    """Return half-precision values as float32: losses are computed in at least float32."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def autocast_disabled(like: Tensor) -> AbstractContextManager[Any]:
    """Return the context that runs operations of a pass in their inputs' own precision."""
    return torch.autocast(like.device.type, enabled=False)
