"""Online distillation with diverse peers: peers learn from each other by attention, a leader from their mean.

    a_jk = softmax_k(<Q h_j, K h_k>),   t_j = sum_k a_jk z_k,   h_j the features that peer j's classifier takes
    w <- U(w, grad [sum_j L(z_j) + L(z_l) + alpha r (sum_j T^2 KL(t_j, z_j) + T^2 KL(mean_j z_j, z_l))])

j and k run over the n - 1 peers, l is the leader. KL(a, b) stands for KL(softmax(a / T) || softmax(b / T));
r = exp(-5 (1 - t / ramp)^2) rises to 1. Q and K learn through the t_j alone, whose logits are constants.

Paper    Chen et al., AAAI 2020, arXiv:1912.00350, equations 3 to 8
Code     DefangChen/OKDDip-AAAI2020 @ c6a05de; tianlizhang/OKDPH @ a562089
Cost     4 forward, 4 backward, 1 update at most (``branches`` over one trunk, or whole networks)
Limits   branches = 1 is Plain
Outputs  classes, labels or numbers, of samples or positions; not of fully convolutional networks
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

from torch import nn

from steppe.core.method import Batch, Runtime, StepOutput, hyper
from steppe.core.method.numerics import losses
from steppe.methods.online_distillation._base import BranchDistillation
from steppe.models.multi.branched import SeparateNetworks, build_branched
from steppe.models.multi.heads import AttentiveBranches
from steppe.models.multi.inputs import fresh_networks


@dataclass(frozen=True)
class OKDDip(BranchDistillation):
    """Train ``branches`` - 1 peers and a leader, the branches of one network or whole networks (``form``)."""

    module = AttentiveBranches
    deployed = "leader"

    branches: int = hyper(
        4,
        "the peers and the leader",
        valid=lambda n: n == 1 or n >= 3,
        remedy="at least 3: two peers and the leader (4 is usual)",
        plain_at=1,
    )
    alpha: float = hyper(1.0, "weight of the distillation", minimum=0)
    form: str = hyper("branch", "what peers are", choices=("branch", "network"))
    factor: int = hyper(8, "features per dimension of attention", minimum=1)
    detach: bool = hyper(True, "the teachers' logits are constants")

    @property
    def whole(self) -> str:
        return "" if self.form == "network" else super().whole

    def build_members(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        body = (
            SeparateNetworks(fresh_networks(new_model, self.branches))
            if self.form == "network"
            else build_branched(new_model, self.branches, self.split_at)
        )
        return AttentiveBranches(body, self.factor, self.detach)

    def objective(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """The losses of all, the peers' divergences from their targets and the leader's from the peers' mean."""
        out = self.peers(batch, rt)
        *peers, leader = out.logits
        terms = [rt.loss(z, batch.y) for z in out.logits]
        if self.alpha:
            weight = self.alpha * self.ramp_up(rt)
            pairs = zip(out.targets, peers, strict=True)
            terms += [weight * self.distillation_loss(t, z, batch, rt) for t, z in pairs]
            mean = losses.mean_of(peers)
            mean = mean.detach() if self.detach else mean
            terms.append(weight * self.distillation_loss(mean, leader, batch, rt))
        return StepOutput(losses.total(terms), leader)
