"""Deep mutual learning as in its algorithm 1: the networks are updated one after another.

    for m = 1 .. N:
        w_m <- U(w_m, grad [L(w_m) + lam / (N - 1) sum_(l != m) T^2 KL(softmax(z_l / T) || softmax(z_m / T))])

z_l are the logits of network l with the weights that it has by then, a constant in the gradient of network m.

Paper    Zhang et al., CVPR 2018, arXiv:1706.00384, algorithm 1
Code     YingZhangDUT/Deep-Mutual-Learning @ 34a2058 (TensorFlow, re-identification only)
Cost     4 forward, 2 backward, 2 updates (``networks`` squared forward, one of each backward)
Limits   networks = 1 is Plain; lam = 0 is Plain for each network
Outputs  classes, labels or numbers, of samples or positions
Differs  1. the authors' code gives each network another batch; here, as in algorithm 1, all see one.
         2. running statistics and dropout masks are those of the networks' first pass over the batch.
         3. all networks make a new pass before each update, though only one has changed.
         4. the rest as in dml.
Start    networks 2, T 1, lam 1 (paper)
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from steppe.core.method import Batch, Cost, Runtime, StepOutput
from steppe.methods.online_distillation.dml import DML


@dataclass(frozen=True)
class AlternatingDML(DML):
    """Train ``networks`` in turn on the labels and, times ``lam``, towards the others' updated outputs."""

    @property
    def cost(self) -> Cost:
        return Cost(self.networks**2, self.networks, self.networks)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """For each network: all networks' outputs, the gradient of its loss, its update."""
        outs = []
        for m in range(self.networks):
            own = [member == m + 1 for member in rt.member]
            with rt.preserve_state() if m else nullcontext():
                out, g = rt.grad(batch, partial(self._loss_of, m, rt), work=1 / self.networks, where=own)
            rt.count(forward=len(batch) * (1 - 1 / self.networks))
            rt.apply(g, more=m + 1 < self.networks)
            outs.append(out)
        return outs[0]

    def _loss_of(self, m: int, rt: Runtime, batch: Batch) -> StepOutput:
        z = self.peers(batch, rt).logits
        return StepOutput(self.network_loss(m, z, batch, rt), z[m])
