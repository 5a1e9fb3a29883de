"""Heads on the branches of one network: a gate, a fusion of feature maps, attention, a joint classifier.

Each is called like a network and returns `PeerOutputs`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.amp import autocast_disabled, upcast_to_float32
from steppe.core.batch import Batch
from steppe.core.multi_network import MultiNetwork, PeerOutputs
from steppe.core.numerics.complex_params import real_view
from steppe.core.numerics.losses import mean_of
from steppe.errors import InputError
from steppe.models.multi.branched import BranchedNetwork, SeparateNetworks
from steppe.models.multi.inputs import views_of
from steppe.models.multi.shared_trunk import count_flops


class MultiHeadNetwork(MultiNetwork):
    """``body`` and what a method puts on top of it, whose logits are called ``head``.

    ``views`` tells whether each branch gets a view of its own, if the loader gives them.
    """

    views = False
    head = "ensemble"

    def __init__(self, body: BranchedNetwork | SeparateNetworks):
        super().__init__()
        self.body = body

    @property
    def size(self) -> int:
        """The number of branches or networks."""
        return self.body.size

    @property
    def members(self) -> nn.ModuleList:
        """The branches, or the networks."""
        return self.body.networks if isinstance(self.body, SeparateNetworks) else self.body.branches

    @property
    def names(self) -> list[str]:
        """'branch 1', 'branch 2', ..., or 'network 1', ..."""
        kind = "network" if isinstance(self.body, SeparateNetworks) else "branch"
        return [f"{kind} {i}" for i in range(1, self.size + 1)]

    def named(self, outputs: PeerOutputs) -> dict[str, Tensor]:
        """Return the logits of each branch, their mean, and those of the head."""
        named = dict(zip(self.names, outputs.logits, strict=True)) | {"mean": mean_of(outputs.logits)}
        return named if outputs.ensemble is None else named | {self.head: outputs.ensemble}

    def inputs(self, batch: Batch) -> Any:
        """Return a view for each branch if it gets one of its own, else the batch's inputs."""
        return views_of(batch, self.size) if self.views else batch.x

    def relative_cost(self, batch: Batch) -> float:
        """Return the multiply-adds of a forward pass of all, over those of trunk and first branch alone."""
        if isinstance(self.body, SeparateNetworks) or any(
            m._compiled_call_impl is not None for m in self.modules()
        ):
            return float(self.size)
        inputs = self.inputs(batch)
        single = count_flops(self, batch.x, [self.body.trunk, self.body.branches[0]])[1]
        return count_flops(self, inputs)[0] / single if single else float(self.size)

    def extract(self, name: str, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of one branch and of the trunk."""
        return self.body.plain(self.names.index(name), new_model)


class GatedBranches(MultiHeadNetwork):
    """Branches and a gate that weighs their logits (ONE); the ensemble is their weighted sum."""

    def __init__(self, body: BranchedNetwork):
        super().__init__(body)
        if not body.entry:
            raise InputError(
                f"split_at is {body.split_at!r}, whose module does not say how many channels it takes; name one "
                "that begins with a convolution, a dense layer or a norm"
            )
        gate = nn.Sequential(nn.Linear(body.entry, body.size), nn.BatchNorm1d(body.size), nn.ReLU())
        self.gate = gate.to(real_view(next(body.parameters())))

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> PeerOutputs:
        """Return the logits of each branch, and of the gated ensemble."""
        out = self.body(x, views=views, **named)
        expected, shape = (len(out.logits[0]), self.body.entry), tuple(out.entered.shape)
        if shape != expected:
            raise InputError(
                f"split_at is {self.body.split_at!r}, and the mean over positions of what it is called with is "
                f"{shape}, not {expected}; name another module, or use okddip, ffl or pcl, which have no gate"
            )
        g = torch.softmax(upcast_to_float32(self.gate(out.entered.to(self.gate[0].weight.dtype))), 1)
        z = torch.stack([upcast_to_float32(z) for z in out.logits], 1)
        weights = g.reshape(*g.shape, *[1] * (z.ndim - 2))
        return PeerOutputs(tuple(out.logits), (weights * z).sum(1))


class FusedBranches(MultiHeadNetwork):
    """Branches and a classifier of their fused feature maps (FFL)."""

    head = "fused"

    def __init__(self, body: BranchedNetwork):
        super().__init__(body)
        wide, width = body.size * body.width, body.width
        fusion = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, body.classes),
        )
        self.fusion = fusion.to(real_view(next(body.parameters())))

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> PeerOutputs:
        """Return the logits of each branch, and of the fused classifier."""
        out = self.body(x, views=views, **named)
        maps = torch.cat(out.maps, 1)
        with autocast_disabled(maps):  # BatchNorm of few values makes gradients that fp16 cannot represent
            fused = self.fusion(maps.to(next(self.fusion.parameters()).dtype))
        return PeerOutputs(tuple(out.logits), _like_members(fused, out.logits[0]))


class AttentiveBranches(MultiHeadNetwork):
    """Peers, a leader, and attention between the peers (OKDDip); ``body`` has the branches, or whole networks.

    The last member is the leader. The peers' targets are attention-weighted logits of the peers, which ``detach``
    makes constants.
    """

    def __init__(self, body: BranchedNetwork | SeparateNetworks, factor: int, detach: bool):
        super().__init__(body)
        self.detach = detach
        if body.width < factor:
            raise InputError(
                f"factor is {factor} and the classifier takes {body.width} features; give a smaller one"
            )
        like = real_view(next(body.parameters()))
        self.query = nn.Linear(body.width, body.width // factor, bias=False).to(like)
        self.key = nn.Linear(body.width, body.width // factor, bias=False).to(like)

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> PeerOutputs:
        """Return the logits of peers and leader, and the peers' targets."""
        out = self.body(x, views=views, **named)
        h = torch.stack(out.features[:-1], 1).to(self.query.weight.dtype)
        z = torch.stack([upcast_to_float32(z) for z in out.logits[:-1]], 1)
        with autocast_disabled(h):
            attention = torch.softmax(self.query(h) @ self.key(h).transpose(1, 2), 2)
            rows = (z.detach() if self.detach else z).reshape(*z.shape[:2], -1)
            mixed = (attention.to(z.dtype) @ rows).reshape(z.shape)
        return PeerOutputs(tuple(out.logits), targets=mixed.unbind(1))

    @property
    def names(self) -> list[str]:
        """The peers' names."""
        return super().names[:-1]

    def named(self, outputs: PeerOutputs) -> dict[str, Tensor]:
        """Return the logits of the leader, of each peer, and the peers' mean."""
        *peers, leader = outputs.logits
        return {"leader": leader, **dict(zip(self.names, peers, strict=True)), "mean": mean_of(peers)}

    def extract(self, name: str, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of a peer or the leader."""
        return self.body.plain([*self.names, "leader"].index(name), new_model)


class JointBranches(MultiHeadNetwork):
    """Branches, each with its own view, and a classifier of all their features (PCL)."""

    views = True

    def __init__(self, body: BranchedNetwork):
        super().__init__(body)
        self.classifier = nn.Linear(body.size * body.width, body.classes).to(real_view(next(body.parameters())))

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> PeerOutputs:
        """Return the logits of each branch, and of the joint classifier."""
        out = self.body(x, views=views, **named)
        features = torch.cat(out.features, 1)
        joint = self.classifier(features.to(self.classifier.weight.dtype))
        return PeerOutputs(tuple(out.logits), _like_members(joint, out.logits[0]))


def _like_members(joint: Tensor, logits: Tensor) -> Tensor:
    """Return the outputs (B, K) of a joint classifier in the shape of the members' logits.

    Raises InputError if the members have another number of outputs per sample, such as one for each position.
    """
    if joint.numel() == logits.numel():
        return joint.reshape(logits.shape)
    raise InputError(
        f"the joint classifier of all branches gives {joint.shape[1]} numbers per sample, and the network returns "
        f"{tuple(logits.shape[1:])} for each; use one, okddip, dml or kdcl, which have no such classifier"
    )
