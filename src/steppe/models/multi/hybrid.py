"""Several whole networks that are trained together as one module, whose forward pass gives all their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steppe.core.model_call import call_model, extract_logits
from steppe.core.multi_network import MultiNetwork
from steppe.errors import InputError
from steppe.models.multi.inputs import inputs_of, mean_of

Gradient = Literal["none", "chain", "full"]


class Ensemble(MultiNetwork):
    """Networks side by side; called with one input for all, or with ``views``, one for each.

    The result is a tuple of logits (B, classes), in the order of ``networks``.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    @property
    def size(self) -> int:
        """How many networks there are."""
        return len(self.networks)

    @property
    def members(self) -> nn.ModuleList:
        """The networks."""
        return self.networks

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> tuple[Tensor, ...]:
        """Return what each network says."""
        given = inputs_of(self.size, x, views, named)
        return tuple(extract_logits(call_model(net, v)) for net, v in zip(self.networks, given, strict=True))


class HybridEnsemble(MultiNetwork):
    r"""Networks of one architecture, and the network whose weights are their mixture.

    The hybrid's weights are :math:`\theta_h = \sum_m r_m \theta_m`, those of the float buffers (running
    statistics) likewise; other buffers are the first network's. ``gradient`` says what the students feel of the
    hybrid's: 'chain' its derivative, r_m times the hybrid's gradient; 'full' the hybrid's gradient itself;
    'none' nothing.

    Raises InputError if the networks differ in architecture.
    """

    def __init__(self, networks: Sequence[nn.Module], gradient: Gradient):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.gradient = gradient
        self.earlier: dict[str, Tensor] | None = None  # the hybrid that is to be fused, if not the present one
        self.earlier_step = -1
        shapes = [{k: t.shape for k, t in net.state_dict().items() if hasattr(t, "shape")} for net in networks]
        if any(s != shapes[0] for s in shapes):
            raise InputError("hybrid weights need networks of one architecture, and these differ")

    @property
    def size(self) -> int:
        """How many networks there are, the hybrid not counted."""
        return len(self.networks)

    @property
    def members(self) -> nn.ModuleList:
        """The networks."""
        return self.networks

    def forward(
        self, x: Any = None, *, views: Sequence[Any] | None = None, mix: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, ...]:
        """Return what each network says, and last the hybrid with shares ``mix`` (N,), equal ones if not given."""
        *given, last = inputs_of(self.size + 1, x, views, named)
        said = [extract_logits(call_model(net, v)) for net, v in zip(self.networks, given, strict=True)]
        first: Any = self.networks[0]
        args, kwargs = ((), last) if isinstance(last, dict) else ((last,), {})
        hybrid = functional_call(first, self.hybrid(mix), args, kwargs, tie_weights=False)
        return (*said, extract_logits(hybrid))

    def hybrid(self, mix: Tensor | None = None) -> dict[str, Tensor]:
        """Return the hybrid's weights and buffers by name; the buffers are copies, for a pass may change them."""
        shares = [1 / self.size] * self.size if mix is None else list(mix.unbind())
        found: dict[str, Tensor] = {}
        once: dict[int, Tensor] = {}
        for (name, first), *others in zip(*map(_slots, self.networks), strict=True):
            if id(first) not in once:
                tensors = [first, *(t for _, t in others)]
                if isinstance(first, nn.Parameter):
                    once[id(first)] = self._mixed(tensors, shares)
                else:
                    held = [t.detach() for t in tensors]
                    once[id(first)] = combined(held, shares) if first.is_floating_point() else first.clone()
            found[name] = once[id(first)]
        return found

    def _mixed(self, weights: list[Tensor], shares: Sequence[float | Tensor]) -> Tensor:
        if self.gradient == "chain":
            return combined(weights, shares)
        fixed = combined([w.detach() for w in weights], shares)
        if self.gradient == "none":
            return fixed
        # zero in value, one in derivative
        return fixed + torch.stack([w - w.detach() for w in weights]).sum(0)

    @torch.no_grad()
    def fuse(self, gamma: float, mix: Tensor | None = None, centre: dict[str, Tensor] | None = None) -> None:
        """Move each network, and its float buffers, to gamma times the hybrid plus 1 - gamma times itself.

        The hybrid is the present one of shares ``mix``, unless another ``centre`` is given.
        """
        centre = self.hybrid(mix) if centre is None else centre
        for net in self.networks:
            for name, t in {id(t): (name, t) for name, t in _slots(net)}.values():
                if t.is_floating_point():
                    t.copy_(centre[name] if gamma == 1 else torch.lerp(t, centre[name], gamma))


def _slots(net: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every place of a weight or buffer with its name; tied ones have several, a module met twice one."""
    return [
        (f"{path}.{name}" if path else name, t)
        for path, module in net.named_modules()
        for name, t in (*module._parameters.items(), *module._buffers.items())
        if t is not None
    ]


def combined(tensors: Sequence[Tensor], shares: Sequence[float | Tensor]) -> Tensor:
    """Return the sum of tensors times their shares, in the tensors' own precision."""
    total = tensors[0] * shares[0]
    for t, share in zip(tensors[1:], shares[1:], strict=True):
        total = total + t * share
    return total.to(tensors[0].dtype)


def named(net: nn.Module, x: Any, last: str = "") -> dict[str, Tensor]:
    """Return what each network of a built module says, by name; the first is what is deployed.

    ``last`` names the last output, if that is no network of its own. A single network is only deployed.
    """
    said = call_model(net, x)
    if not isinstance(net, Ensemble | HybridEnsemble):
        return {"deployed": extract_logits(said)}
    found = {"deployed": said[0]}
    found |= {f"network {m}": z for m, z in enumerate(said[: net.size], 1)}
    found["ensemble"] = mean_of(said[: net.size])
    return found | ({last: said[-1]} if last else {})
