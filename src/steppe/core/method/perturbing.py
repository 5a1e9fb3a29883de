"""Methods that perturb the weights, all of them or some."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from steppe.core.method.contract import Method, State
from steppe.core.method.hyperparameters import hyper
from steppe.core.numerics import selection
from steppe.core.numerics.vector import nonzero
from steppe.core.param_groups import owners
from steppe.core.runtime import Runtime
from steppe.errors import InputError


@dataclass(frozen=True)
class Perturbing(Method[State]):
    """Base of the methods that perturb the weights: ``where`` says which of them (`SELECTIONS`).

    The perturbation is that of the subspace: norms are over the chosen parameters, and the others do not move. A
    radius of 0 in a parameter group does the same for its parameters.
    """

    where: str = hyper(
        "all",
        "the parameters that are perturbed",
        kw_only=True,
        added=True,
        valid=selection.is_selection,
        remedy="'all', 'norm', 'kernels', 'bias', 'last:N', or part of a parameter's name, as layer4 or *.attn.*",
    )

    def init(self, net: nn.Module) -> State:
        """Return the method's state; raises InputError if ``where`` chooses none of the trainable parameters."""
        if self.where != "all":
            params = [p for p in net.parameters() if p.requires_grad]
            self._choose(net, params, owners(net, params))
        return super().init(net)

    def perturbed(self, rt: Runtime, size: Any = 1.0) -> list[bool] | None:
        """Return for each parameter whether it is perturbed, None if all are, or none by a ``size`` of 0."""
        if self.where == "all" or not nonzero(size):
            return None
        mask = rt.once(("where", self.where), lambda: self._choose(rt.net, rt.params, rt.owners))
        return None if all(mask) else mask

    def _choose(self, net: nn.Module, params: Sequence[nn.Parameter], own: Sequence[nn.Module]) -> list[bool]:
        mask = selection.select(net, params, own, self.where)
        if not any(mask):
            raise InputError(f"where is {self.where!r} and no trainable parameter is that; {selection.names(net)}")
        return mask

    def radius(self, rt: Runtime, name: str = "rho") -> float | list[float]:
        """Return the value in this step of the radius, or of another size of the perturbation.

        It is one number, or one per parameter, 0 for those that are not perturbed.
        """
        return self.only_perturbed(rt, rt.setting(name, getattr(self, name)))

    def only_perturbed(self, rt: Runtime, value: float | list[float]) -> float | list[float]:
        """Return a size of the perturbation, 0 for the parameters that are not perturbed."""
        mask = self.perturbed(rt)
        if mask is None or not (isinstance(value, list) or nonzero(value)):
            return value
        each = value if isinstance(value, list) else [value] * len(mask)
        return [v if m else 0.0 for v, m in zip(each, mask, strict=True)]
