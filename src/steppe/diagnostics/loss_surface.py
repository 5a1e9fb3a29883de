"""The loss as a function of the weights: what every measure of this package looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steppe.core import param_groups
from steppe.core.amp import upcast_to_float32
from steppe.core.batch import Accumulated, Batch, as_batch
from steppe.core.model_call import call_model, extract_logits, extract_loss, unwrap_model
from steppe.core.numerics import vector
from steppe.core.numerics.vector import Vec
from steppe.errors import InputError

BatchLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SurfaceValue:
    """What a network does at one point: mean loss, and accuracy as a fraction where targets are class indices."""

    loss: float
    accuracy: float | None


class LossSurface:
    """The mean loss of a network over fixed data, as a function of its trainable weights.

    The network is in evaluation mode whenever it is looked at: dropout is off and BatchNorm uses its running
    statistics as they are, also at perturbed weights. Afterwards weights, buffers and modes are what they were,
    bit for bit.

    Args:
        model: The network; called as ``model(x)``, or ``model(**x)`` where a batch is a mapping. A compiled or
            DDP-wrapped one is looked at below its wrapper.
        data: Batches, each a pair (x, y), a `steppe.Batch` or a mapping; all are kept, so give a subset.
        loss: ``loss(logits, y)``, the mean over the batch; or 'model' if the model returns its own loss.

    Raises:
        InputError: There is no batch, or no trainable parameter.
    """

    def __init__(self, model: nn.Module, data: Iterable[Any], loss: BatchLoss | str = F.cross_entropy):
        if isinstance(loss, str) and loss != "model":
            raise InputError(f"loss is {loss!r}; give a function, or 'model' if the model returns its own loss")
        self.net, _ = unwrap_model(model)
        self.params = [p for p in self.net.parameters() if p.requires_grad]
        if not self.params:
            raise InputError("the model has no trainable parameter; there is no surface to look at")
        self.owners = param_groups.owners(self.net, self.params)
        self.given = loss
        device = self.params[0].device
        parts = [part.to(device) for item in data for part in as_batch(item).parts()]
        if not parts:
            raise InputError("data has no batch; give at least one")
        self.batch = parts[0] if len(parts) == 1 else Accumulated(parts)

    def __len__(self) -> int:
        """Return how many samples the loss is a mean over."""
        return len(self.batch)

    def over(self, batch: Batch) -> LossSurface:
        """Return the surface of the same network over other samples."""
        return LossSurface(self.net, [batch], self.given)

    def groups(self, m: int | None) -> list[LossSurface]:
        """Return a surface for every ``m`` samples in order, this one alone if ``m`` is None.

        Raises InputError if ``m`` is below 1.
        """
        if m is None:
            return [self]
        if m < 1:
            raise InputError(f"m is {m}; give at least 1 sample, or None for all at once")
        return [self.over(batch) for batch in self.batch.split(m)]

    def value(self) -> SurfaceValue:
        """Return mean loss and accuracy at the present weights."""
        total, correct, counted = 0.0, 0, True
        with self._still(), torch.no_grad():
            for part in self.batch.parts():
                loss, logits = self._loss(part)
                total += float(loss.double()) * len(part)
                labels = part.y
                if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
                    correct += int((logits.argmax(1) == labels).sum()) if logits.ndim == 2 else 0
                    counted = counted and logits.ndim == 2
                else:
                    counted = False
        return SurfaceValue(total / len(self), correct / len(self) if counted else None)

    def loss(self) -> float:
        """Return the mean loss at the present weights, in the loss's unit (nats for cross-entropy)."""
        return self.value().loss

    def outputs(self) -> Tensor:
        """Return the logits of all samples, in at least float32."""
        with self._still(), torch.no_grad():
            found = [
                upcast_to_float32(extract_logits(call_model(self.net, part.x))) for part in self.batch.parts()
            ]
        return torch.cat(found)

    def gradient(self) -> tuple[float, Vec]:
        """Return the mean loss and its gradient at the present weights."""
        total, grads = 0.0, vector.map_each(torch.zeros_like, [*self.params])
        with self._still(), torch.enable_grad():
            for part in self.batch.parts():
                share = len(part) / len(self)
                loss, _ = self._loss(part)
                found = torch.autograd.grad(loss, self.params, allow_unused=True)
                total += float(loss.detach().double()) * share
                grads = vector.add(grads, list(found), by=share)
        return total, vector.map_each(torch.Tensor.detach, grads)

    def curvature(self, direction: Vec) -> Vec:
        r"""Return the Hessian-vector product :math:`\nabla^2 L(w)\, v`, by differentiating twice.

        Exact up to rounding (Pearlmutter, Neural Computation 6, 1994); two backward passes per batch.
        """
        product = vector.map_each(torch.zeros_like, [*self.params])
        with self._still(), torch.enable_grad():
            for part in self.batch.parts():
                loss, _ = self._loss(part)
                grads = torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)
                along = vector.dot(list(grads), direction)
                if along.requires_grad:
                    found = torch.autograd.grad(along, self.params, allow_unused=True)
                    product = vector.add(product, list(found), by=len(part) / len(self))
        return vector.map_each(torch.Tensor.detach, product)

    @contextmanager
    def at(self, offset: Vec) -> Iterator[None]:
        """Be at ``w + offset``; on leaving the weights return bit for bit, by copy into the same storage."""
        moved = [(p, o) for p, o in zip(self.params, offset, strict=True) if o is not None]
        with torch.no_grad():
            saved = [p.detach().clone() for p, _ in moved]
            try:
                for p, o in moved:
                    p.add_(o)
                yield
            finally:
                for (p, _), before in zip(moved, saved, strict=True):
                    p.copy_(before)

    @contextmanager
    def being(self, weights: Vec | None, buffers: dict[str, Tensor] | None = None) -> Iterator[None]:
        """Be at these weights and buffers (those not named stay); on leaving all return bit for bit."""
        own = dict(self.net.named_buffers())
        targets: list[tuple[Tensor, Tensor]] = [(own[k], b) for k, b in (buffers or {}).items()]
        held = [None] * len(self.params) if weights is None else weights
        targets += [(p, w) for p, w in zip(self.params, held, strict=True) if w is not None]
        with torch.no_grad():
            saved = [t.detach().clone() for t, _ in targets]
            try:
                for t, wanted in targets:
                    t.copy_(wanted)
                yield
            finally:
                for (t, _), before in zip(targets, saved, strict=True):
                    t.copy_(before)

    @contextmanager
    def recalibrated(self, data: Iterable[Any]) -> Iterator[None]:
        """Let BatchNorm's running statistics be those of ``data`` at the present weights, for a while.

        They are the plain mean over batches of the batches' own mean and unbiased variance, as
        `torch.optim.swa_utils.update_bn` computes them; dropout stays off.
        """
        norms = [m for m in self.net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        held = [(b, b.detach().clone()) for m in norms for b in m.buffers(recurse=False)]
        momenta = [m.momentum for m in norms]
        try:
            with self._still(), torch.no_grad():
                for m in norms:
                    m.reset_running_stats()
                    m.momentum, m.training = None, True
                for item in data if norms else ():
                    for part in as_batch(item).parts():
                        call_model(self.net, part.to(self.params[0].device).x)
            for m, momentum in zip(norms, momenta, strict=True):
                m.momentum = momentum
            yield
        finally:
            with torch.no_grad():
                for buffer, before in held:
                    buffer.copy_(before)
            for m, momentum in zip(norms, momenta, strict=True):
                m.momentum = momentum

    def _loss(self, part: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(self.given, str):
            return extract_loss(call_model(self.net, part.x, part.y))
        logits = extract_logits(call_model(self.net, part.x))
        return self.given(upcast_to_float32(logits), part.y), logits

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Be in evaluation mode; on leaving every module is in the mode it was in."""
        training = [m for m in self.net.modules() if m.training]
        try:
            for m in training:
                m.training = False
            yield
        finally:
            for m in training:
                m.training = True
