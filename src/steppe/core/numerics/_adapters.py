"""The full weights of a network: those that low-rank adapters add to, or its trainable kernels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.numerics.complex_params import leaf
from steppe.errors import InputError


@dataclass(frozen=True)
class FullWeight:
    """A weight as the network uses it.

    ``tensor`` is what can be moved: the frozen weight below adapters, or a trainable kernel of ``owner``.
    ``index`` is the position of a trainable parameter in it. ``adapters`` are layers and names of adapters.
    """

    tensor: Tensor
    owner: nn.Module
    index: int
    adapters: tuple[tuple[Any, str], ...] = ()

    def value(self) -> Tensor:
        """Return W + s B A of all its adapters, without a graph."""
        with torch.no_grad():
            whole = self.tensor.detach()
            for layer, name in self.adapters:
                whole = whole + _delta(layer, name).to(whole.dtype)
            return whole

    def own(self, setting: Any) -> Any:
        """Return its value of a setting: one number, or one per trainable parameter."""
        return setting[self.index] if isinstance(setting, list) else setting


def full_weights(net: nn.Module, params: Sequence[Tensor], owners: Sequence[nn.Module]) -> list[FullWeight]:
    """Return the full weights below trainable adapters (of PEFT or loralib), each once.

    Of a network without adapters they are its trainable tensors of two or more dimensions. Quantized weights are
    left out.

    Raises InputError if the weights below all adapters are quantized.
    """
    positions = {id(leaf(p)): i for i, p in enumerate(params)}
    below: dict[int, FullWeight] = {}
    for layer in net.modules():
        for weight in _adapted(layer, positions):
            below.setdefault(id(weight.tensor), weight)
    if below:
        # a quantized weight is of whole numbers, which cannot be moved a little
        whole = [weight for weight in below.values() if weight.tensor.is_floating_point()]
        if not whole:
            raise InputError(
                "the weights below all adapters are quantized and cannot be perturbed; load them as bfloat16, or "
                "use a method that perturbs the adapters, as sam"
            )
        return whole
    return [FullWeight(p, o, i) for i, (p, o) in enumerate(zip(params, owners, strict=True)) if leaf(p).ndim > 1]


def _adapted(layer: Any, positions: dict[int, int]) -> Iterator[FullWeight]:
    a, b = getattr(layer, "lora_A", None), getattr(layer, "lora_B", None)
    if isinstance(a, nn.ModuleDict) and isinstance(b, nn.ModuleDict) and hasattr(layer, "base_layer"):
        names = [
            k for k in layer.active_adapters if k in a and k in b and not getattr(layer, "disable_adapters", False)
        ]
        own = [
            positions[id(p)] for k in names for p in (*a[k].parameters(), *b[k].parameters()) if id(p) in positions
        ]
        weight = getattr(layer.base_layer, "weight", None)
    elif isinstance(a, nn.Parameter) and isinstance(b, nn.Parameter):
        names, weight = [""], getattr(layer, "weight", None)
        own = [positions[id(p)] for p in (a, b) if id(p) in positions]
    else:
        return
    if own and isinstance(weight, Tensor):
        merged = bool(getattr(layer, "merged", False))
        adapters = () if merged else tuple((layer, name) for name in names)
        yield FullWeight(weight, getattr(layer, "base_layer", layer), own[0], adapters)


def _delta(layer: Any, name: str) -> Tensor:
    if name:
        delta: Tensor = layer.get_delta_weight(name)
        return delta
    product: Tensor = (layer.lora_B @ layer.lora_A) * layer.scaling
    return (product.T if getattr(layer, "fan_in_fan_out", False) else product).reshape(layer.weight.shape)
