"""SAM on a part of the loss that is weighed by class."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steppe.core.method import (
    Batch,
    ClassCounts,
    Cost,
    InputError,
    Perturbing,
    Runtime,
    ScheduleValue,
    StepOutput,
    hyper,
    name_of,
    upcast_to_float32,
)
from steppe.core.method.numerics import losses, scaled_perturbation, vector


@dataclass(frozen=True)
class ClassWeightedSAM(Perturbing[ClassCounts]):
    """Update with g - g_a + g_a(w + e), e = rho g_a / |g_a|, where g_a is the gradient of sum_c a_c L_c."""

    controls = ("sam", "two-step")
    cost = Cost(3, 3, 1)
    single = "it weighs the losses of single samples at one network's outputs"

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)

    @abstractmethod
    def class_weights(self, counts: Tensor) -> Tensor:
        """Return a (classes,) from the number of samples of each class; they may be all zero at first."""

    def observe_targets(self, state: ClassCounts, y: Any) -> None:
        """Count the classes (N,) of all training samples; targets of another form are counted as they come."""
        if isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point() and len(y):
            state.counts = torch.bincount(y[y >= 0]).to(state.counts)
            state.exact = True

    def step(self, batch: Batch, state: ClassCounts, rt: Runtime) -> StepOutput:
        """Gradients of the loss and of its weighted part at w, that of the part at w + e, restore w, update."""
        out, g = rt.grad(batch)
        state.require_classes(batch.y, out.logits)
        form = rt.form_of(out.logits, batch).form
        if form != "classes" or out.logits.shape[1] < 2:
            raise InputError(
                f"{name_of(self)} perturbs for some of several classes, and the outputs are {out.logits.shape[1]} "
                f"{form}; use sam"
            )
        a = self.class_weights(state.of(out.logits.shape[1], out.logits))
        part = partial(self._weighted, upcast_to_float32(a), rt)
        with rt.preserve_state():
            _, g_a = rt.grad(batch, part)
        with rt.at(scaled_perturbation(rt.shared(g_a), self.radius(rt))):
            _, g_p = rt.grad(batch, part)
        rt.apply(vector.add(vector.add(g, g_a, by=-1.0), g_p))
        return out

    def _weighted(self, a: Tensor, rt: Runtime, batch: Batch) -> StepOutput:
        """Return the loss with each sample's term times a of its class."""
        logits, y = rt.forward(batch.x), batch.y
        z = upcast_to_float32(logits)
        whole = rt.loss(z, y).detach()
        each = losses.per_sample(rt.options.loss, z, y)  # type: ignore[arg-type] # 'model' is refused above
        weights = y.to(a) @ a if y.is_floating_point() else a[y.clamp(min=0).long()]
        total = each.detach().sum()
        # a mean that is weighed, or that leaves samples out, divides by other than their number
        return StepOutput((each * weights).sum() * torch.where(total == 0, 0.0, whole / total), logits)

    def after(self, batch: Batch, out: StepOutput, state: ClassCounts, rt: Runtime) -> None:
        """Count the classes of the batch over all processes, if those of the data are unknown."""
        if not state.exact and state.has_classes(batch.y, out.logits):
            (y,) = rt.parallel.gather(batch.y)
            state.add(y, out.logits.shape[1], out.skip_flag)
