"""Deep mutual learning as in its algorithm 1: the networks are updated one after another.

    for m = 1 .. N:
        w_m <- U(w_m, grad [L(w_m) + lam / (N - 1) sum_(l != m) T^2 KL(softmax(z_l / T) || softmax(z_m / T))])

z_l are the logits of network l with the weights that it has by then, a constant in the gradient of network m.

Paper    Zhang et al., CVPR 2018, arXiv:1706.00384, algorithm 1
Code     YingZhangDUT/Deep-Mutual-Learning @ 34a2058 (TensorFlow, re-identification only)
Cost     4 forward, 2 backward, 2 updates (``networks`` squared forward, one of each backward)
Limits   networks = 1 is Plain; lam = 0 is Plain for each network
Differs  1. the authors' code gives each network another batch; here, as in algorithm 1, all see one.
         2. running statistics and dropout masks are those of the networks' first pass over the batch.
         3. all networks make a new pass before each update, though only one has changed.
         4. the rest as in dml.
Start    networks 2, T 1, lam 1 (paper)
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from steppe.core.method import Batch, Runtime, StepOutput, plain_step
from steppe.core.model_call import call_model
from steppe.methods.online_distillation._mutual import MutualDistillation
from steppe.models.multi.inputs import views_of


@dataclass(frozen=True)
class AlternatingDML(MutualDistillation):
    """Train ``networks`` in turn on the labels and, times ``lam``, towards the others' updated outputs."""

    cost: ClassVar = (4, 2, 2)

    def check(self) -> None:
        """As for all mutual learning; every network makes a forward pass before each update."""
        super().check()
        object.__setattr__(self, "cost", (self.networks**2, self.networks, self.networks))

    def step(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        if self.networks == 1:
            return plain_step(batch, rt)
        first: StepOutput | None = None
        for m in range(self.networks):
            own = [member == m + 1 for member in rt.member]
            with rt.preserve_state() if m else nullcontext():
                out, g = rt.grad(batch, partial(self._loss_of, m, rt), work=1 / self.networks, where=own)
            rt.count(forward=len(batch) * (1 - 1 / self.networks))
            rt.apply(g, more=m + 1 < self.networks)
            first = first or out
        assert first is not None
        return first

    def _loss_of(self, m: int, rt: Runtime, batch: Batch) -> StepOutput:
        logits = call_model(rt.model, views_of(batch, self.networks))
        return StepOutput(self.network_loss(m, logits, batch.y, rt), logits[m])
