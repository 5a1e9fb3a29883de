"""Bi-LoRA: train low-rank adapters at the perturbation of further adapters, which ascend in the same pass.

    w <- U(w, grad L(W' + E)),   E_i = B_i A_i,   B_i <- B_i + eta G_i A_i^T,   A_i <- A_i + eta B_i^T G_i
    then B_i and A_i are divided by sqrt(max(1, |E| / rho)),   |E|^2 = sum_i |E_i|^2,   eta the learning rate
    W' = W + s B A,   W the frozen weights below adapters, w the trainable weights,   G_i = dL / dW_i at W' + E

Paper    Liu et al., ICLR 2026, arXiv:2508.19564v2, equations 7 to 10, algorithm 1
Code     CrazyElements/Bi-LoRA (not seen)
Cost     1 forward, 1 backward, 1 update; memory: the gradient of each adapted weight, for the pass
Limits   rho = 0 is Plain
Differs  1. the factors ascend by the optimizer's rule without its memory: eta g for SGD, the paper's equation 9,
            and eta sign(g) for Adam, its first step. The authors train both adapters with AdamW.
         2. A_i ~ N(0, 1/n) for n inputs, B_i = 0 at first; the paper says no more than that they are initialised.
         3. E moves the frozen weights, and the factors' gradients come from G; the authors add layers.
         4. a network without adapters has its trainable kernels in the place of W'.
         5. with groups that have a rho of their own, sum_i (|E_i| / rho_i)^2 is at most 1.
Start    rho 0.05 (paper: GLUE; 0.01 to 0.1), rank 8
"""

from dataclasses import dataclass

from torch import nn

from steppe.core.method import AuxiliaryAdapters, Batch, Cost, Method, Runtime, ScheduleValue, StepOutput, hyper
from steppe.core.method.numerics import full_gradients, full_weights


@dataclass(frozen=True)
class BiLoRA(Method[AuxiliaryAdapters]):
    """Minimise the loss at adversarial adapters of length ``rho`` on the full weights below low-rank adapters."""

    controls = ("plain", "flat-lora")
    cost = Cost(1, 1, 1)
    whole = "its auxiliary adapters are of whole weights"
    on_host = "its passes alone compute the gradients of frozen weights"

    rho: ScheduleValue = hyper(0.05, "largest length of the perturbation", minimum=0, plain_at=0)
    rank: int = hyper(8, "rank of the auxiliary adapters", minimum=1)

    def init(self, net: nn.Module) -> AuxiliaryAdapters:
        return AuxiliaryAdapters(self.rank)

    def step(self, batch: Batch, state: AuxiliaryAdapters, rt: Runtime) -> StepOutput:
        """Gradients at E of the trainable and the full weights, restore these, update, ascend and clip."""
        rho = rt.setting("rho", self.rho)
        weights = rt.once("full weights", lambda: full_weights(rt.net, rt.params, rt.owners))
        weights = [w for w in weights if not isinstance(rho, list) or w.own(rho)]
        e, tensors = state.perturbation(weights, rt), [w.tensor for w in weights]
        with rt.at(e, clean=True, of=tensors), full_gradients(weights, rt) as gradients:
            out, g = rt.grad(batch)
            grads = gradients(g)
        rt.apply(g)
        state.ascend(weights, grads, [w.own(rho) for w in weights], rt)
        return out
