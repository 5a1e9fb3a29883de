"""Deep mutual learning: networks that learn from the labels and from each other.

    w_m <- U(w_m, grad [L(w_m) + lam / (N - 1) sum_(l != m) T^2 KL(softmax(z_l / T) || softmax(z_m / T))])

z_l is what network l says about the batch, a constant in the gradient of network m.

Paper    Zhang et al., CVPR 2018, arXiv:1706.00384, equations 5 to 9
Code     YingZhangDUT/Deep-Mutual-Learning @ 34a2058 (TensorFlow, re-identification only)
Cost     2 forward, 2 backward, 1 update (one of each of ``networks``)
Limits   networks = 1 is Plain; lam = 0 is Plain for each network
Differs  1. all networks are updated at once from one forward pass each, as in OKDPH's code; in algorithm 1 of the
            paper each is updated before the next one looks (dml-alternating), and the authors' code gives each
            another batch.
         2. the mean over peers is that of the paper's equation 8; the authors' code sums.
         3. networks see the same image unless the loader gives views; OKDPH's code gives each its own crop.
         4. deployed is the first network, the others are reported beside it; the papers report the best.
Start    networks 2, T 1, lam 1 (paper)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.batch import Batch
from steppe.calling import call
from steppe.cohort import Cohort, named
from steppe.method import Method, filled, name_of, require
from steppe.peers import expect, fresh_networks, towards, views_of
from steppe.runtime import Out, Runtime


@dataclass(frozen=True)
class DML(Method):
    """Train ``networks`` on the labels and, times ``lam``, towards each other at temperature ``T``."""

    limit: ClassVar = {"networks": 1}
    cost: ClassVar = (2, 2, 1)

    networks: int = 2
    lam: float = 1.0
    T: float = 1.0

    def check(self) -> None:
        """Networks is a number, lam a weight, T a temperature."""
        require(self, "networks", self.networks >= 1, "at least 1 (2 is usual)")
        object.__setattr__(self, "cost", (self.networks, self.networks, 1))
        require(self, "lam", self.lam >= 0, "a number of at least 0 (1 is usual)")
        require(self, "T", self.T > 0, "a number above 0 (1 is usual)")

    @property
    def views(self) -> int:
        """One for each network."""
        return self.networks

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a `Cohort` of freshly initialised networks, the network itself if one is wanted."""
        return Cohort(fresh_networks(new_model, self.networks)) if self.networks > 1 else new_model()

    def init(self, net: nn.Module) -> nn.Module:
        """Remember nothing; refuse a model that was not built for this."""
        if self.networks > 1:
            expect(net, Cohort, self.networks, name_of(self), "networks")
        return nn.Module()

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> Out:
        """The sum of all networks' losses and pulls; no gradient crosses from one to another."""
        if self.networks == 1:
            return rt.supervised(batch)
        said = call(rt.model, views_of(batch, self.networks))
        losses = [self.lesson(m, said, batch.y, rt) for m in range(self.networks)]
        return Out(torch.stack(losses).sum(), said[0])

    def lesson(self, m: int, said: Sequence[Tensor], y: Tensor, rt: Runtime) -> Tensor:
        """Return the loss of network ``m`` (from 0) and the others' pulls on it, from all their logits."""
        loss = rt.loss(said[m], y)
        if not self.lam:
            return loss
        pulls = [towards(t.detach(), said[m], self.T) for k, t in enumerate(said) if k != m]
        return loss + self.lam * torch.stack(pulls).mean()

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy the first network."""
        return self.outputs(net, state, x)["deployed"]

    def single(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Deploy the first network alone."""
        first = net.networks[0] if isinstance(net, Cohort) else net
        return filled(new_model(), first.state_dict())

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Report each network."""
        return named(net, x)
