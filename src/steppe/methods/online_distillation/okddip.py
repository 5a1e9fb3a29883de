"""Online distillation with diverse peers: peers teach each other by attention, a leader learns from them all.

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
         3. r rises with every step; the code holds it for each epoch.
         4. features are what reaches the last dense layer; the code takes VGG16's before its first dense layer.
         5. with branches = 2 there is one peer, which has nobody to attend to: refused, though OKDPH's table 3
            has it.
Start    branches 4 (3 peers and the leader), T 3, alpha 1, factor 8, ramp 80 of 300 epochs (code)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.core.amp import autocast_disabled, upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.method import Method, name_of, require, with_presets
from steppe.core.model_call import call_model, extract_logits
from steppe.core.numerics.losses import distillation_loss, mean_of, sigmoid_rampup
from steppe.core.runtime import Runtime, StepOutput
from steppe.errors import InputError
from steppe.models.multi.base import MultiHeadNetwork
from steppe.models.multi.branched import BranchedNetwork, SeparateNetworks, build_branched
from steppe.models.multi.inputs import expect_views, fresh_networks


class Led(MultiHeadNetwork):
    """Peers, a leader, and the attention between peers.

    Called, it returns the logits of the peers and the leader, and then, without gradient into those if they are to
    be constants, the targets of the peers.
    """

    def __init__(self, body: BranchedNetwork | SeparateNetworks, factor: int, detach: bool):
        super().__init__(body)
        self.detach = detach
        if body.width < factor:
            raise InputError(
                f"factor is {factor} and the classifier takes {body.width} features; give a smaller one"
            )
        like = next(body.parameters())
        self.query = nn.Linear(body.width, body.width // factor, bias=False).to(like)
        self.key = nn.Linear(body.width, body.width // factor, bias=False).to(like)

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> tuple[Tensor, ...]:
        """Return logits (B, classes) of peers and leader, and the peers' targets."""
        said = self.body(x, views=views, **named)
        h = torch.stack(said.features[:-1], 1).to(self.query.weight.dtype)
        z = torch.stack([upcast_to_float32(z) for z in said.logits[:-1]], 1)
        with autocast_disabled(h):
            attention = torch.softmax(self.query(h) @ self.key(h).transpose(1, 2), 2)
            mixed = attention.to(z.dtype) @ (z.detach() if self.detach else z)
        return (*said.logits, *mixed.unbind(1))


@dataclass(frozen=True)
class OKDDip(Method):
    """Train ``branches`` - 1 peers and a leader, the branches of one network or whole networks (``form``)."""

    limit: ClassVar = {"branches": 1}
    cost: ClassVar = (4, 4, 1)
    whole: ClassVar = "its trunk ends in the middle of a pass, which sharding does not know"

    branches: int = 4
    T: float = 3.0
    alpha: float = 1.0
    ramp: float = 0.27
    form: str = "branch"
    split_at: str | int = ""
    factor: int = 8
    detach: bool = True

    def check(self) -> None:
        """Branches and factor are numbers, T a temperature, alpha a weight, ramp a part of training."""
        several = self.branches == 1 or self.branches >= 3
        require(self, "branches", several, "at least 3: two peers and the leader (4 is usual)")
        object.__setattr__(self, "cost", (self.branches, self.branches, 1))
        require(self, "T", self.T > 0, "a number above 0 (3 is usual)")
        require(self, "alpha", self.alpha >= 0, "a number of at least 0 (1 is usual)")
        require(self, "ramp", self.ramp >= 0, "a number of steps, or a share of the training below 1")
        require(self, "form", self.form in ("branch", "network"), "'branch' or 'network'")
        require(self, "factor", self.factor >= 1, "at least 1 (8 is usual)")
        if self.form == "network":
            object.__setattr__(self, "whole", "")

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return peers and leader with their attention, the network itself if one branch is wanted."""
        if self.branches == 1:
            return new_model()
        if self.form == "network":
            return Led(SeparateNetworks(fresh_networks(new_model, self.branches)), self.factor, self.detach)
        return Led(build_branched(new_model, self.branches, self.split_at), self.factor, self.detach)

    def init(self, net: nn.Module) -> nn.Module:
        """Remember nothing; refuse a model that was not built for this."""
        if self.branches > 1:
            expect_views(net, Led, self.branches, name_of(self), "branches")
        return nn.Module()

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The losses of all, the peers' pulls towards their targets and the leader's towards the peers' mean."""
        if self.branches == 1:
            return rt.supervised(batch)
        said = call_model(rt.model, batch.x)
        peers, leader, targets = said[: self.branches - 1], said[self.branches - 1], said[self.branches :]
        losses = [rt.loss(z, batch.y) for z in (*peers, leader)]
        if self.alpha:
            weight = self.alpha * sigmoid_rampup(rt.now, self.ramp)
            losses += [weight * distillation_loss(t, z, self.T) for t, z in zip(targets, peers, strict=True)]
            group = mean_of(peers)
            losses.append(weight * distillation_loss(group.detach() if self.detach else group, leader, self.T))
        return StepOutput(torch.stack(losses).sum(), leader)

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy the leader."""
        return self.outputs(net, state, x)["deployed"]

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Deploy the leader alone."""
        if isinstance(net, Led):
            return net.plain(self.branches - 1, new_model)
        return with_presets(new_model(), net.state_dict())

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Report the leader, each peer, and the peers' mean."""
        said = call_model(net, x)
        if self.branches == 1:
            return {"deployed": extract_logits(said)}
        peers, leader = said[: self.branches - 1], said[self.branches - 1]
        kind = "branch" if self.form == "branch" else "network"
        found = {"deployed": leader, "leader": leader} | {f"{kind} {i}": z for i, z in enumerate(peers, 1)}
        return found | {"mean": mean_of(peers)}
