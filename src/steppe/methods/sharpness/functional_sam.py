"""Functional SAM: perturb the network's function, and keep the derivative of the loss at the weights.

    w <- U(w, J(w + e)^T c),   c = dL/dF at F(w),   e = rho g / |g|,   g = grad L(w) = J(w)^T c
    J the Jacobian of the logits F;   ascent = preconditioned:  e = rho u / |u|,   u = g / (sqrt(v) + eps)

SAM's own gradient is J(w + e)^T c_e, with c_e the derivative at F(w + e). The paper finds that in language models
SAM flattens that part, the statistics of the logits, and gains nothing.

Paper    Singh, Mobahi, Agarwala and Dauphin, ICML 2025, arXiv:2502.02407
Code     none (the paper's is JAX)
Cost     2 forward, 2 backward, 1 update
Limits   rho = 0 is Plain; a loss that is linear in the logits makes it SAM
Differs  1. preconditioned: v is Adam's second moment as its last update left it, with bias correction, and |e| is
            rho. We could not open the paper's equation for it. SGD, and the first step, have u = g.
         2. a model that returns its own loss (loss = 'model') must return the logits that the loss follows from; a
            loss with other terms, of weights or features, is refused in the first step.
         3. terms of a combined objective that follow from the logits (those of SAF and MESA) are kept in c.
Start    preconditioned, with AdamW: the paper's best for language models of 24M to 1.2B parameters (5e-3 to 1e-2
         less loss at equal steps, with twice AdamW's compute). We know no rho of theirs: tune it.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from steppe.core.method import (
    Batch,
    Cost,
    InputError,
    Perturbing,
    Runtime,
    ScheduleValue,
    StepOutput,
    hyper,
    join_logits,
    preconditioned,
    upcast_to_float32,
)
from steppe.core.method.numerics import scaled_perturbation

ASCENTS = ("gradient", "preconditioned")


@dataclass(frozen=True)
class FunctionalSAM(Perturbing):
    """SAM at distance ``rho`` with the loss's derivative by the logits kept at the weights."""

    controls = ("sam", "two-step")
    cost = Cost(2, 2, 1)
    single = "it takes the derivative of the loss by one network's logits"

    rho: ScheduleValue = hyper(0.05, "radius of the ball", minimum=0, plain_at=0)
    ascent: str = hyper("gradient", "direction, or that divided by Adam's denominators", choices=ASCENTS)

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Gradient and derivative c at w, perturb, gradient of <c, F> there, restore w, update."""
        parts: list[Tensor] = []
        out, g = rt.grad(batch, partial(_recorded, rt, parts))
        if not parts:
            raise InputError("FunctionalSAM needs the logits from which the loss follows; return them with it")
        g = rt.shared(g)
        u = preconditioned(rt, g) if self.ascent == "preconditioned" else g
        with rt.at(scaled_perturbation(u, self.radius(rt))):
            _, g = rt.grad(batch.with_extra(c=join_logits(parts)), partial(_product, rt))
        rt.apply(g)
        return out


def _recorded(rt: Runtime, parts: list[Tensor], batch: Batch) -> StepOutput:
    """Return the objective, whose backward pass will append its derivative by the logits."""
    out, scale = rt.objective(batch), list[Tensor]()

    def append(c: Tensor) -> None:
        # the loss is multiplied by a loss scale and by its weight in the mean
        parts.append(upcast_to_float32(c) / scale[0] if scale else upcast_to_float32(c))

    if out.logits.requires_grad and out.loss.requires_grad:
        rt.once("terms of the logits", lambda: _require_terms_of_logits(out))
        for tensor, hook in ((out.loss, scale.append), (out.logits, append)):
            tensor.register_hook(hook)
    return out


def _require_terms_of_logits(out: StepOutput) -> None:
    """Raise InputError if the loss depends on a weight in another way than by the logits."""
    visited, stack = {out.logits.grad_fn}, [out.loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if isinstance(getattr(node, "variable", None), Tensor):
            raise InputError(
                "functional-sam keeps the derivative of the loss by the logits, and the loss has a term that does "
                "not follow from them; leave it out (weight decay is the optimizer's), or use sam"
            )
        stack += [before for before, _ in node.next_functions]


def _product(rt: Runtime, batch: Batch) -> StepOutput:
    """Return the inner product of the logits with the derivative."""
    logits = rt.forward(batch)
    return StepOutput((upcast_to_float32(logits) * batch.extra["c"]).sum(), logits)
