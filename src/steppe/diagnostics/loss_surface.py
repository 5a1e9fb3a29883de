"""The loss as a function of the weights, which all measures of this package evaluate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from steppe.core import param_groups
from steppe.core.amp import upcast_to_float32
from steppe.core.batch import Batch, MicroBatches, as_batch
from steppe.core.model_call import call_model, extract_logits, extract_loss, unwrap_model
from steppe.core.numerics import vector
from steppe.core.numerics.complex_params import real_view, real_views
from steppe.core.numerics.vector import Vec
from steppe.core.state.snapshot import Elsewhere, evaluation_mode
from steppe.core.user_loss import (
    ModelLoss,
    calls_model,
    loss_value,
    modules_of,
    own_loss,
    require_loss,
    require_mean,
    require_weights,
)
from steppe.errors import InputError

_log = logging.getLogger(__name__)

_CHECKED = 2**24  # logits of which the check of a mean keeps no more than two batches

BatchLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SurfaceValue:
    """Mean loss, and accuracy as a fraction if the targets are class indices."""

    loss: float
    accuracy: float | None


class LossSurface:
    """The mean loss of a network over fixed data, as a function of its trainable weights.

    The network is evaluated in evaluation mode: dropout is off and BatchNorm uses its running statistics, also at
    perturbed weights. Afterwards weights, buffers and modes are restored bit for bit.

    Args:
        model: The network; called as ``model(x)``, or ``model(**x)`` if a batch is a mapping. A torch.compile or
            DDP wrapper is removed.
        data: A DataLoader or other batches, each a pair (x, y), a `steppe.Batch` or a mapping; all are kept in
            memory.
        loss: ``loss(logits, y)``, the mean over the batch; or 'model' if the model returns its own loss,
            or a `steppe.ModelLoss`.
        weigh: What a batch counts in the mean over batches: its samples, or for a loss that averages over tokens
            the number of those that are not ignored, as in `Method.bind`.

    Raises:
        InputError: There is no batch or no trainable parameter, or (at the first evaluation) the loss of several
            batches is not the mean of theirs by ``weigh``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        loss: BatchLoss | ModelLoss | str = F.cross_entropy,
        weigh: Callable[[Batch], float] = len,
    ):
        require_loss(loss)
        self.net, _ = unwrap_model(model)
        self._leaves = [p for p in self.net.parameters() if p.requires_grad]
        if not self._leaves:
            raise InputError(
                "the model has no trainable parameter; give one with parameters that require gradients"
            )
        self.params = real_views(self._leaves)  # complex ones as pairs of real numbers
        self.owners = param_groups.owners(self.net, self.params)
        self.loss_fn, self.weigh = loss, weigh
        device = self.params[0].device
        parts = [part.to(device) for item in data for part in as_batch(item).parts()]
        if not parts:
            raise InputError("data has no batch; give at least one")
        self.batch = parts[0] if len(parts) == 1 else MicroBatches(parts)
        self._weights = [float(weigh(part)) for part in parts]
        self.weight = sum(self._weights)
        require_weights(weigh, parts, self.weight, 1)
        self._unchecked = len(parts) > 1
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in self._leaves):
            _log.warning(
                "the network's weights are of half precision, which rounds small perturbations of them away: "
                "sharpness comes out too small; measure model.float() on float32 inputs"
            )

    def __len__(self) -> int:
        """Return how many samples the loss is a mean over."""
        return len(self.batch)

    def split(self, m: int | None) -> list[LossSurface]:
        """Return a surface for every ``m`` samples in order that count, or only this one if ``m`` is None.

        Raises InputError if ``m`` is below 1.
        """
        if m is None:
            return [self]
        if m < 1:
            raise InputError(f"m is {m}; give at least 1 sample, or None for all at once")
        groups = [group for group in self.batch.split(m) if any(map(self.weigh, group.parts()))]
        self._require_mean([part for group in groups for part in group.parts()])
        surfaces = [LossSurface(self.net, [group], self.loss_fn, self.weigh) for group in groups]
        for surface in surfaces:
            surface._unchecked = False
        return surfaces

    def value(self) -> SurfaceValue:
        """Return mean loss and accuracy at the present weights."""
        total, correct, counted, classified = 0.0, 0, 0, True
        with self.evaluation_mode(), torch.no_grad():
            for part, share in self._shares():
                loss, logits = self._loss(part)
                total += float(loss.double()) * share
                classified = classified and logits.ndim == 2 and logits.shape[1] > 1 and _are_classes(part.y)
                if classified:
                    correct += int((logits.argmax(1) == part.y).sum())
                    counted += int((part.y >= 0).sum())  # -100 is ignored
        return SurfaceValue(total, correct / counted if classified and counted else None)

    def loss(self) -> float:
        """Return the mean loss at the present weights, in the loss's unit (nats for cross-entropy)."""
        return self.value().loss

    def outputs(self) -> Tensor:
        """Return the logits of all samples, in at least float32."""
        with self.evaluation_mode(), torch.no_grad():
            logits = [extract_logits(call_model(self.net, part.x)) for part in self.batch.parts()]
        return torch.cat([upcast_to_float32(z) for z in logits])

    def gradient(self) -> tuple[float, Vec]:
        """Return the mean loss and its gradient at the present weights."""
        total, grads = 0.0, vector.map_each(torch.zeros_like, [*self.params])
        with self.evaluation_mode(), torch.enable_grad():
            for part, share in self._shares():
                loss, _ = self._loss(part)
                part_grads = self._derivatives(loss)
                total += float(loss.detach().double()) * share
                grads = vector.add(grads, part_grads, by=share)
        return total, vector.map_each(torch.Tensor.detach, grads)

    def hvp(self, v: Vec) -> Vec:
        r"""Return the Hessian-vector product :math:`\nabla^2 L(w)\, v`, by differentiating twice.

        Exact up to rounding (Pearlmutter, Neural Computation 6, 1994); two backward passes per batch. Attention
        runs in PyTorch's mathematical kernel, the only one that can be differentiated twice.

        Raises InputError for a layer whose second derivative PyTorch does not have (EmbeddingBag, cdist).
        """
        product = vector.map_each(torch.zeros_like, [*self.params])
        # fused attention has no second derivative
        with self.evaluation_mode(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _second_derivatives():
            for part, share in self._shares():
                loss, _ = self._loss(part)
                slope = vector.dot(self._derivatives(loss, create_graph=True), v)
                if slope.requires_grad:
                    product = vector.add(product, self._derivatives(slope), by=share)
        return vector.map_each(torch.Tensor.detach, product)

    @contextmanager
    def at(self, offset: Vec) -> Iterator[None]:
        """Evaluate at ``w + offset`` within the context; then restore the weights bit for bit, in place."""
        moved = [(p, o) for p, o in zip(self.params, offset, strict=True) if o is not None]
        with torch.no_grad(), Elsewhere([p for p, _ in moved]):
            for p, o in moved:
                p.add_(o)
            yield

    @contextmanager
    def with_values(self, weights: Vec | None, buffers: dict[str, Tensor] | None = None) -> Iterator[None]:
        """Evaluate at these weights and buffers within the context; then restore all, bit for bit, in place."""
        named = dict(self.net.named_buffers())
        targets: list[tuple[Tensor, Tensor]] = [(named[k], b) for k, b in (buffers or {}).items()]
        if weights is not None:
            targets += [(p, w) for p, w in zip(self.params, weights, strict=True) if w is not None]
        with torch.no_grad(), Elsewhere([t for t, _ in targets]):
            for t, value in targets:
                t.copy_(value)
            yield

    @contextmanager
    def recalibrated(self, data: Iterable[Any]) -> Iterator[None]:
        """Recompute BatchNorm's running statistics on ``data`` at the present weights, within the context.

        They are the plain mean over batches of the batches' own mean and unbiased variance, as
        `torch.optim.swa_utils.update_bn` computes them; dropout stays off.
        """
        norms = [m for m in self.net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        momenta = [m.momentum for m in norms]
        buffers = [b for m in norms for b in m.buffers(recurse=False)]
        with torch.no_grad(), Elsewhere(buffers):
            try:
                with self.evaluation_mode():
                    for m in norms:
                        m.reset_running_stats()
                        m.momentum, m.training = None, True
                    for item in data if norms else ():
                        for part in as_batch(item).parts():
                            call_model(self.net, part.to(self.params[0].device).x)
                    statistics = [b.clone() for b in buffers]
                for b, value in zip(buffers, statistics, strict=True):
                    b.copy_(value)
            finally:
                for m, momentum in zip(norms, momenta, strict=True):
                    m.momentum = momentum
            yield

    def _derivatives(self, value: Tensor, *, create_graph: bool = False) -> Vec:
        grads = torch.autograd.grad(value, self._leaves, create_graph=create_graph, allow_unused=True)
        return [real_view(g) for g in grads]

    def _shares(self) -> Iterator[tuple[Batch, float]]:
        """Yield each batch with its share of the mean, in the first evaluation after a check that it is one."""
        if self._unchecked:
            self._unchecked = False
            self._require_mean(self.batch.parts())
        for part, weight in zip(self.batch.parts(), self._weights, strict=True):
            if weight:  # a batch whose targets are all ignored has no mean
                yield part, weight / self.weight

    def _loss(self, part: Batch) -> tuple[Tensor, Tensor]:
        if not callable(self.loss_fn):
            return extract_loss(own_loss(self.loss_fn, self.net, part.x, part.y))
        logits = extract_logits(call_model(self.net, part.x))
        return loss_value(self.loss_fn, upcast_to_float32(logits), part.y), logits

    def _require_mean(self, parts: Sequence[Batch]) -> None:
        """Raise InputError if the loss is not the mean of that of the parts, of which a few are compared."""
        if len(parts) < 2:
            return
        own = calls_model(self.loss_fn)
        chosen: list[Batch] = []
        logits: list[Tensor] = []
        size = 0
        with self.evaluation_mode(), torch.no_grad():
            for part in _spread(parts):
                z = self._loss(part)[1] if own else upcast_to_float32(extract_logits(call_model(self.net, part.x)))
                if not own and len(z) != len(part):
                    return  # the rows of two views, say, cannot be cut and joined by sample
                chosen, logits, size = [*chosen, part], [*logits, z], size + z.numel()
                if len(chosen) > 1 and size > _CHECKED:
                    break

            def loss(z: Tensor, batch: Batch) -> Tensor:
                return self._loss(batch)[0] if own else loss_value(self.loss_fn, z, batch.y)

            # parts of several lengths cannot be joined, and are compared with their halves
            joined = len({(z.shape[1:], _shape(part.x)) for z, part in zip(logits, chosen, strict=True)}) == 1
            pairs = [([c], [z]) for c, z in zip(chosen, logits, strict=True)]
            # the first two differ most; among many their difference would be small
            pieces = [(chosen[:2], logits[:2]), (chosen, logits)] if joined else pairs
            for together, outputs in pieces:
                require_mean(loss, together, outputs, self.weigh, tolerance=1e-2 if own else 1e-4)

    def evaluation_mode(self) -> AbstractContextManager[None]:
        """Return the context of evaluation mode, after which modes and buffers are restored."""
        return evaluation_mode(self.net, *modules_of(self.loss_fn))


def _spread(parts: Sequence[Batch]) -> Iterator[Batch]:
    """Yield up to eight parts: those with the most and the fewest targets that count, and others between."""
    counts = [int((p.y != -100).sum()) if isinstance(p.y, Tensor) else len(p) for p in parts]
    between = torch.linspace(0, len(parts) - 1, min(6, len(parts))).long().tolist()
    for i in dict.fromkeys([counts.index(max(counts)), counts.index(min(counts)), *between]):
        yield parts[i]


def _shape(x: Any) -> Any:
    """Return what the inputs of parts that can be joined have in common."""
    if isinstance(x, Mapping):
        return tuple((key, _shape(value)) for key, value in x.items())
    return x.shape[1:] if isinstance(x, Tensor) else None


@contextmanager
def _second_derivatives() -> Iterator[None]:
    """Raise InputError where PyTorch has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        message = str(error).partition("\n")[0]
        raise InputError(
            f"the network has no Hessian ({message}); replace that layer, or use measures without Hessian"
        ) from error


def _are_classes(y: Any) -> bool:
    return isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point()
