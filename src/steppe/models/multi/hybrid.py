"""Networks of one architecture, trained together with the network whose weights are their weighted mean."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steppe.core.batch import Batch
from steppe.core.method import with_weights
from steppe.core.model_call import call_for_logits, extract_logits
from steppe.core.multi_network import PeerOutputs
from steppe.core.state import rng
from steppe.core.state.param_state import TensorCopies
from steppe.errors import InputError
from steppe.models.multi.ensemble import Ensemble
from steppe.models.multi.inputs import inputs_of, views_of

Gradient = Literal["none", "chain", "full"]


class HybridWeights(nn.Module):
    """The hybrid's weights from before the update, from the beginning of a step to its fusion; else None."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.weights: dict[str, Tensor] | None = None


def mixing_shares(count: int, mixing: str, seed: int, step: int) -> Tensor:
    """Return the shares of ``count`` networks in the hybrid (N,), on the CPU: equal or drawn ('dirichlet').

    They are a function of seed and step.
    """
    if mixing == "mean":
        return torch.full((count,), 1 / count, dtype=torch.float64)
    generator = rng.generator(seed, "mixing", step, torch.device("cpu"))
    weights = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
    return weights / weights.sum()


class HybridEnsemble(Ensemble):
    r"""Networks of one architecture, and the hybrid, whose weights are their weighted mean.

    The hybrid's weights are :math:`\theta_h = \sum_m r_m \theta_m`. Its buffers (running statistics) are its
    own, ``statistics``: a mean of the networks' would not fit the mean of their weights. ``gradient`` is the
    part of the hybrid's gradient that reaches network m: 'chain' its derivative, r_m times the hybrid's
    gradient; 'full' the hybrid's gradient itself; 'none' nothing.

    Raises InputError if the networks differ in architecture.
    """

    def __init__(self, networks: Sequence[nn.Module], gradient: Gradient):
        super().__init__(networks)
        self.gradient = gradient
        self.statistics = TensorCopies(dict(networks[0].named_buffers()))
        shapes = [{k: t.shape for k, t in net.state_dict().items() if hasattr(t, "shape")} for net in networks]
        if any(s != shapes[0] for s in shapes):
            raise InputError("hybrid weights need networks of one architecture, and these differ")

    def inputs(self, batch: Batch) -> Any:
        """Return a view for each network and one for the hybrid, if the batch has several."""
        return views_of(batch, self.size + 1)

    def forward(
        self, x: Any = None, *, views: Sequence[Any] | None = None, mix: Tensor | None = None, **named: Any
    ) -> PeerOutputs:
        """Return the logits of each network, and of the hybrid with shares ``mix`` (N,), by default equal."""
        *inputs, last = inputs_of(self.size + 1, x, views, named)
        logits = tuple(call_for_logits(net, v) for net, v in zip(self.networks, inputs, strict=True))
        first: Any = self.networks[0]
        args, kwargs = ((), last) if isinstance(last, dict) else ((last,), {})
        hybrid = functional_call(first, self._hybrid(mix), args, kwargs, tie_weights=False)
        return PeerOutputs(logits, extract_logits(hybrid))

    def named(self, outputs: PeerOutputs) -> dict[str, Tensor]:
        """Return the logits of each network, their mean ('ensemble'), and those of the hybrid."""
        return {**super().named(outputs), "hybrid": outputs.ensemble}

    def extract(self, name: str, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of one of these, or of the hybrid."""
        if name != "hybrid":
            return super().extract(name, new_model)
        plain, weights = new_model(), self.hybrid()
        return with_weights(plain, {k: weights[k] for k in plain.state_dict()})

    def hybrid(self, mix: Tensor | None = None) -> dict[str, Tensor]:
        """Return the hybrid's weights and copies of its buffers by name."""
        own = set(map(id, self._own_buffers()))
        return {name: t.clone() if id(t) in own else t for name, t in self._hybrid(mix).items()}

    @torch.no_grad()
    def hybrid_weights(self, mix: Tensor) -> dict[str, Tensor]:
        """Return copies of the hybrid's weights by name, without its buffers."""
        names = {name for name, _ in self.networks[0].named_parameters(remove_duplicate=False)}
        return {name: t.clone() for name, t in self._hybrid(mix).items() if name in names}

    @torch.no_grad()
    def mix_statistics(self, mix: Tensor) -> None:
        """Set the hybrid's running statistics to the mean of the networks' with these shares."""
        each = zip(*(net.buffers() for net in self.networks), strict=True)
        for own, of_networks in zip(self._own_buffers(), each, strict=True):
            first = of_networks[0]
            own.copy_(weighted_sum(of_networks, list(mix.unbind())) if _has_mean(first) else first)

    def _own_buffers(self) -> list[Tensor]:
        """Return the hybrid's buffers in the order of the networks', also of layers that were added."""
        return self.statistics.match(dict(self.networks[0].named_buffers()))

    def _hybrid(self, mix: Tensor | None) -> dict[str, Tensor]:
        """Return the hybrid's weights and its own buffers, which a training pass changes."""
        shares = [1 / self.size] * self.size if mix is None else list(mix.unbind())
        mixed: dict[str, Tensor] = {}
        buffers = zip(self.networks[0].buffers(), self._own_buffers(), strict=True)
        by_id = {id(b): own for b, own in buffers}  # a tied tensor is mixed once
        for (name, first), *others in zip(*map(_named_tensors, self.networks), strict=True):
            if id(first) not in by_id:
                tensors = [first, *(t for _, t in others)]
                by_id[id(first)] = self._mixed(tensors, shares)
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

        The hybrid's weights are ``centre``, by default the present ones of shares ``mix``. Entries that equal the
        hybrid's stay: of two infinite ones, in a mask, there is no mean.
        """
        centre = self.hybrid(mix) | (centre or {})
        for net in self.networks:
            for name, t in {id(t): (name, t) for name, t in _named_tensors(net)}.values():
                if _has_mean(t):
                    to = centre[name]
                    t.copy_(to if gamma == 1 else torch.where(t == to, t, torch.lerp(t, to, gamma)))


def _has_mean(t: Tensor) -> bool:
    return (t.is_floating_point() or t.is_complex()) and t.layout is torch.strided


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
