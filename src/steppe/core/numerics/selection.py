"""Parameters by what they are: norms, kernels, biases, the last layers, a name."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from steppe.core.multi_network import MultiNetwork
from steppe.core.numerics.complex_params import leaf

SELECTIONS = {
    "all": "all trainable parameters",
    "norm": "weights and biases of normalisation layers",
    "kernels": "tensors of two or more dimensions",
    "bias": "what is named bias, of any layer",
    "last:N": "the last N layers, in order of registration",
    "NAME": "parameters with this name or below it, as layer4.0, or whose name fits a pattern, as *.attn.*",
}
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LAST = re.compile(r"last:([1-9]\d*)")


def is_selection(text: str) -> bool:
    """Return whether a text may choose parameters; 'base' is for `steppe.FlatLoRA`."""
    return bool(text.strip()) and text != "base" and (":" not in text or bool(_LAST.fullmatch(text)))


def select(net: nn.Module, params: Sequence[Tensor], owners: Sequence[nn.Module], where: str) -> list[bool]:
    """Return for each parameter whether it is chosen (`SELECTIONS`); each of several networks has last layers."""
    leaves = list(map(leaf, params))
    if where == "all":
        return [True] * len(leaves)
    if where == "norm":
        return [_is_norm(owner, p) for p, owner in zip(leaves, owners, strict=True)]
    if where == "kernels":
        return [p.ndim > 1 for p in leaves]
    if match := _LAST.fullmatch(where):
        last = _last_layers(net, leaves, int(match[1]))
        return [id(owner) in last for owner in owners]
    named: dict[int, list[str]] = {}
    for name, p in net.named_parameters(remove_duplicate=False):
        named.setdefault(id(p), []).append(name)
    if where == "bias":
        return [any("bias" in name.rpartition(".")[2] for name in named.get(id(p), [])) for p in leaves]
    return [any(_fits(name, where) for name in named.get(id(p), [])) for p in leaves]


def _is_norm(owner: nn.Module, p: Tensor) -> bool:
    # those of other packages, as LlamaRMSNorm, by the name of their class
    return isinstance(owner, _NORMS) or (p.ndim <= 1 and "norm" in type(owner).__name__.lower())


def _last_layers(net: nn.Module, params: Sequence[Tensor], count: int) -> set[int]:
    """Return the ids of the last modules that have parameters of their own among these."""
    own = {id(p) for p in params}
    last: set[int] = set()
    for one in net.members if isinstance(net, MultiNetwork) else (net,):
        layers = [m for m in one.modules() if any(id(p) in own for p in m.parameters(recurse=False))]
        last |= {id(m) for m in layers[-count:]}
    return last


def _fits(name: str, where: str) -> bool:
    if any(c in where for c in "*?["):
        return fnmatchcase(name, where)
    return f".{where}." in f".{name}."


def names(net: nn.Module, most: int = 4) -> str:
    """Return the first names of trainable parameters, for a message."""
    own = [name for name, p in net.named_parameters() if p.requires_grad]
    return f"its parameters are {', '.join(own[:most])}{', ...' if len(own) > most else ''}"
