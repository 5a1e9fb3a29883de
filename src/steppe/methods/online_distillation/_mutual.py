"""What methods share whose networks learn from the labels and from each other's predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe.core.method import Method, name_of, require, with_presets
from steppe.core.numerics.losses import distillation_loss
from steppe.core.runtime import Runtime
from steppe.models.multi.ensemble import Ensemble, network_outputs
from steppe.models.multi.inputs import expect_views, fresh_networks


@dataclass(frozen=True)
class Mutual(Method):
    """``networks`` learn from the labels and, times ``lam``, from each other at temperature ``T``."""

    limit: ClassVar = {"networks": 1}

    networks: int = 2
    lam: float = 1.0
    T: float = 1.0

    def check(self) -> None:
        """Networks is a number, lam a weight, T a temperature."""
        require(self, "networks", self.networks >= 1, "at least 1 (2 is usual)")
        require(self, "lam", self.lam >= 0, "a number of at least 0 (1 is usual)")
        require(self, "T", self.T > 0, "a number above 0 (1 is usual)")

    @property
    def views(self) -> int:
        """One for each network."""
        return self.networks

    def build(self, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a `Cohort` of freshly initialised networks, the network itself if one is wanted."""
        return Ensemble(fresh_networks(new_model, self.networks)) if self.networks > 1 else new_model()

    def init(self, net: nn.Module) -> nn.Module:
        """Remember nothing; refuse a model that was not built for this."""
        if self.networks > 1:
            expect_views(net, Ensemble, self.networks, name_of(self), "networks")
        return nn.Module()

    def lesson(self, m: int, said: Sequence[Tensor], y: Tensor, rt: Runtime) -> Tensor:
        """Return the loss of network ``m`` (from 0) and the others' pulls on it, from all their logits."""
        loss = rt.loss(said[m], y)
        if not self.lam:
            return loss
        pulls = [distillation_loss(t.detach(), said[m], self.T) for k, t in enumerate(said) if k != m]
        return loss + self.lam * torch.stack(pulls).mean()

    def predict(self, net: nn.Module, state: nn.Module, x: Any) -> Tensor:
        """Deploy the first network."""
        return self.outputs(net, state, x)["deployed"]

    def deployed_model(self, net: nn.Module, state: nn.Module, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Deploy the first network alone."""
        first = net.networks[0] if isinstance(net, Ensemble) else net
        return with_presets(new_model(), first.state_dict())

    def outputs(self, net: nn.Module, state: nn.Module, x: Any) -> dict[str, Tensor]:
        """Report each network."""
        return network_outputs(net, x)
