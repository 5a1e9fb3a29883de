"""Plain training that applies each gradient twice: a control for methods with two updates per batch.

    g = grad L(w),   w <- U(U(w, g), g)

Paper    none: a control. SADT's step count without its teacher
Code     none
Cost     1 forward, 1 backward, 2 updates
Limits   with plain SGD (no momentum, no weight decay) it is Plain at twice the learning rate
Differs  none known
Start    nothing to set
"""

from dataclasses import dataclass

from steppe.core.method import Batch, Cost, Method, Runtime, StepOutput


@dataclass(frozen=True)
class RepeatStep(Method):
    """Apply the batch's own gradient twice."""

    cost = Cost(1, 1, 2)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        out, g = rt.grad(batch, last=True)
        rt.apply(g, times=2)
        return out
