"""Plain training that takes two fresh gradients and two updates on each batch: the compute of SADT and SAM.

    w' = U(w, grad L(w)),   w <- U(w', grad L(w'))

Paper    none: a control. SADT's passes and updates without its teacher
Code     none
Cost     2 forward, 2 backward, 2 updates
Limits   without dropout it is two steps of Plain on the same batch
Differs  none known; running statistics come from the first pass only and dropout masks are drawn afresh for
         the second, as in SADT, so that the teacher is all that differs
Start    nothing to set
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, Method, Runtime, StepOutput


@dataclass(frozen=True)
class TwoStep(Method):
    """Take two gradients and two updates on the same batch."""

    cost = Cost(2, 2, 2)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient, update, gradient with fresh dropout masks, update."""
        out, g = rt.grad(batch, last=True)
        rt.apply(g, more=True)
        with rt.preserve_state(rt.draw_mask_seed()):
            _, g = rt.grad(batch, last=True)
        rt.apply(g)
        return out
