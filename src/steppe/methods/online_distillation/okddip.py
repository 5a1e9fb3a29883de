"""Online distillation with diverse peers: peers learn from each other by attention, a leader from their mean.

    a_jk = softmax_k(<Q h_j, K h_k>),   t_j = sum_k a_jk z_k,   h_j the features that peer j's classifier takes
    w <- U(w, grad [sum_j L(z_j) + L(z_l) + alpha r (sum_j T^2 KL(t_j, z_j) + T^2 KL(mean_j z_j, z_l))])

j and k run over the n - 1 peers, l is the leader. KL(a, b) stands for KL(softmax(a / T) || softmax(b / T));
r = exp(-5 (1 - t / ramp)^2) rises to 1. Q and K learn through the t_j alone, whose logits are constants.

Paper    Chen et al., AAAI 2020, arXiv:1912.00350, equations 3 to 8
Code     DefangChen/OKDDip-AAAI2020 @ c6a05de; tianlizhang/OKDPH @ a562089
Cost     4 forward, 4 backward, 1 update at most (``branches`` over one trunk, or whole networks)
Limits   branches = 1 is Plain
Differs  1. as in the code, attention mixes logits, with no factor 1 / sqrt(d), and a peer attends to itself too;
            the paper mixes softened predictions.
         2. detach = False lets the KLs' gradient into the logits of the teachers too, as the code does.
         3. r rises with every step; the code keeps it constant within an epoch.
         4. features are the inputs of the last dense layer; the code takes VGG16's before its first dense layer.
         5. with branches = 2 there is one peer, which has no other to attend to: refused, though OKDPH's table 3
            has it.
Start    branches 4 (3 peers and the leader), T 3, alpha 1, factor 8, ramp 80 of 300 epochs (code)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.core.method import Batch, Runtime, StepOutput, require
from steppe.core.model_call import call_model, extract_logits
from steppe.core.numerics.losses import distillation_loss, mean_of, sigmoid_rampup
from steppe.methods.online_distillation._base import BranchDistillation
from steppe.methods.online_distillation._heads import AttentiveBranches
from steppe.models.multi.branched import SeparateNetworks, build_branched
from steppe.models.multi.inputs import fresh_networks


@dataclass(frozen=True)
class OKDDip(BranchDistillation):
    """Train ``branches`` - 1 peers and a leader, the branches of one network or whole networks (``form``)."""

    cost: ClassVar = (4, 4, 1)
    module: ClassVar = AttentiveBranches
    amounts: ClassVar = ("ramp",)

    branches: int = 4
    alpha: float = 1.0
    ramp: float = 0.27
    form: str = "branch"
    split_at: str | int = ""
    factor: int = 8
    detach: bool = True

    def check(self) -> None:
        enough = self.branches == 1 or self.branches >= 3
        require(self, "branches", enough, "at least 3: two peers and the leader (4 is usual)")
        super().check()
        require(self, "alpha", self.alpha >= 0, "a number of at least 0 (1 is usual)")
        require(self, "ramp", self.ramp >= 0, "a number of steps, or a share of the training below 1")
        require(self, "form", self.form in ("branch", "network"), "'branch' or 'network'")
        require(self, "factor", self.factor >= 1, "at least 1 (8 is usual)")
        if self.form == "network":
            object.__setattr__(self, "whole", "")

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        body = (
            SeparateNetworks(fresh_networks(new_model, self.branches))
            if self.form == "network"
            else build_branched(new_model, self.branches, self.split_at)
        )
        return AttentiveBranches(body, self.factor, self.detach)

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The losses of all, the peers' divergences from their targets and the leader's from the peers' mean."""
        if self.branches == 1:
            return rt.supervised(batch)
        logits = call_model(rt.model, batch.x)
        peers, leader, targets = logits[: self.branches - 1], logits[self.branches - 1], logits[self.branches :]
        losses = [rt.loss(z, batch.y) for z in (*peers, leader)]
        if self.alpha:
            weight = self.alpha * sigmoid_rampup(rt.now, self.ramp)
            losses += [weight * distillation_loss(t, z, self.T) for t, z in zip(targets, peers, strict=True)]
            mean = mean_of(peers)
            losses.append(weight * distillation_loss(mean.detach() if self.detach else mean, leader, self.T))
        return StepOutput(torch.stack(losses).sum(), leader)

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        if isinstance(net, AttentiveBranches):
            return net.plain(self.branches - 1, new_model)
        return super().deployed_model(net, state, new_model)

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Return the logits of the leader, of each peer, and the peers' mean."""
        logits = call_model(net, x)
        if self.branches == 1:
            return {"deployed": extract_logits(logits)}
        peers, leader = logits[: self.branches - 1], logits[self.branches - 1]
        named = {"deployed": leader, "leader": leader}
        named |= {f"{self.form} {i}": z for i, z in enumerate(peers, 1)}
        return named | {"mean": mean_of(peers)}
