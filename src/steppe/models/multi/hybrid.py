"""Networks of one architecture, trained together with the network whose weights are their weighted mean."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steppe.core.model_call import call_model, extract_logits
from steppe.errors import InputError
from steppe.models.multi.ensemble import NetworkList
from steppe.models.multi.inputs import inputs_of

Gradient = Literal["none", "chain", "full"]


class HybridEnsemble(NetworkList):
    r"""Networks of one architecture, and the hybrid, whose weights are their weighted mean.

    The hybrid's weights are :math:`\theta_h = \sum_m r_m \theta_m`, those of the float buffers (running
    statistics) likewise; other buffers are the first network's. ``gradient`` is the part of the hybrid's gradient
    that reaches network m: 'chain' its derivative, r_m times the hybrid's gradient; 'full' the hybrid's gradient
    itself; 'none' nothing.

    Raises InputError if the networks differ in architecture.
    """

    def __init__(self, networks: Sequence[nn.Module], gradient: Gradient):
        super().__init__(networks)
        self.gradient = gradient
        self.earlier: dict[str, Tensor] | None = None  # the hybrid that is to be fused, if not the present one
        self.earlier_step = -1
        shapes = [{k: t.shape for k, t in net.state_dict().items() if hasattr(t, "shape")} for net in networks]
        if any(s != shapes[0] for s in shapes):
            raise InputError("hybrid weights need networks of one architecture, and these differ")

    def forward(
        self, x: Any = None, *, views: Sequence[Any] | None = None, mix: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, ...]:
        """Return the logits of each network, and last of the hybrid with shares ``mix`` (N,), by default equal."""
        *inputs, last = inputs_of(self.size + 1, x, views, named)
        logits = [extract_logits(call_model(net, v)) for net, v in zip(self.networks, inputs, strict=True)]
        first: Any = self.networks[0]
        args, kwargs = ((), last) if isinstance(last, dict) else ((last,), {})
        hybrid = functional_call(first, self.hybrid(mix), args, kwargs, tie_weights=False)
        return (*logits, extract_logits(hybrid))

    def hybrid(self, mix: Tensor | None = None) -> dict[str, Tensor]:
        """Return the hybrid's weights and buffers by name; buffers are copies, because a pass may change them."""
        shares = [1 / self.size] * self.size if mix is None else list(mix.unbind())
        mixed: dict[str, Tensor] = {}
        by_id: dict[int, Tensor] = {}  # a tied tensor is mixed once
        for (name, first), *others in zip(*map(_named_tensors, self.networks), strict=True):
            if id(first) not in by_id:
                tensors = [first, *(t for _, t in others)]
                if isinstance(first, nn.Parameter):
                    by_id[id(first)] = self._mixed(tensors, shares)
                elif first.is_floating_point():
                    by_id[id(first)] = weighted_sum([t.detach() for t in tensors], shares)
                else:
                    by_id[id(first)] = first.clone()
            mixed[name] = by_id[id(first)]
        return mixed

    def _mixed(self, weights: list[Tensor], shares: Sequence[float | Tensor]) -> Tensor:
        """Return the hybrid's weight, connected to the networks' as ``gradient`` says."""
        if self.gradient == "chain":
            return weighted_sum(weights, shares)
        constant = weighted_sum([w.detach() for w in weights], shares)
        if self.gradient == "none":
            return constant
        # each term is 0, and its derivative is 1
        return constant + torch.stack([w - w.detach() for w in weights]).sum(0)

    @torch.no_grad()
    def fuse(self, gamma: float, mix: Tensor | None = None, centre: dict[str, Tensor] | None = None) -> None:
        """Set each network, and its float buffers, to gamma times the hybrid plus 1 - gamma times itself.

        The hybrid is ``centre``, by default the present one of shares ``mix``.
        """
        centre = self.hybrid(mix) if centre is None else centre
        for net in self.networks:
            for name, t in {id(t): (name, t) for name, t in _named_tensors(net)}.values():
                if t.is_floating_point():
                    t.copy_(centre[name] if gamma == 1 else torch.lerp(t, centre[name], gamma))


def _named_tensors(net: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every weight and buffer by name; tied ones under each of their names, a repeated module once."""
    return [
        (f"{path}.{name}" if path else name, t)
        for path, module in net.named_modules()
        for name, t in (*module._parameters.items(), *module._buffers.items())
        if t is not None
    ]


def weighted_sum(tensors: Sequence[Tensor], shares: Sequence[float | Tensor]) -> Tensor:
    """Return the sum of tensors times their shares, in the tensors' own precision."""
    total = tensors[0] * shares[0]
    for t, share in zip(tensors[1:], shares[1:], strict=True):
        total = total + t * share
    return total.to(tensors[0].dtype)
