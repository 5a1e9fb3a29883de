"""How the parameters of a network divide among optimizers and groups: hidden matrices, weight decay, layers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from steppe.core import param_groups
from steppe.core.multi_network import MultiNetwork
from steppe.core.numerics import selection
from steppe.core.numerics.filters import EMBEDDINGS, output_layers
from steppe.errors import InputError

# parts of names of embeddings and output layers, as timm, Hugging Face and others write them
_OUTER = re.compile(r"(^|[._])(w[tp]e|embed\w*|(\w+_)?embeddings?|pos_emb\w*|tok_emb\w*)([._]|$)")
_HEAD = re.compile(r"(^|\.)(lm_head|head|heads|head_dist|classifier|fc_out|output_layer|logits|score)(\.|$)")


def split_for_muon(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters that Muon trains, and the rest.

    Muon's are the hidden matrices: tensors of two dimensions that are neither in an embedding nor in an output
    layer (the last linear layer, and what is named ``head``, ``lm_head``, ``classifier`` and so on). The rest are
    embeddings, output layers, norms, biases, and the kernels of convolutions, which have more dimensions.
    """
    hidden = hidden_matrices(model)
    both: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for p in filter(lambda p: p.requires_grad, model.parameters()):
        both[id(p) not in hidden].append(p)
    return both


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that are hidden matrices (`split_for_muon`)."""
    outer = {id(p) for layer in output_layers(model) for p in layer.parameters()}
    for module in model.modules():
        if isinstance(module, EMBEDDINGS):
            outer |= {id(p) for p in module.parameters()}
    # a parameter that several names share, as a tied output layer, is outer under any of them
    for name, p in model.named_parameters(remove_duplicate=False):
        if _OUTER.search(name) or _HEAD.search(name):
            outer.add(id(p))
    return {id(p) for p in model.parameters() if p.ndim == 2 and id(p) not in outer}


def layer_numbers(model: nn.Module) -> dict[int, int]:
    """Return for each parameter, by id, how many layers are above it: 0 for the output layer.

    A layer is a numbered block (``blocks.3``, ``layer1.0``); what is before the first is one layer, the stem, and
    what is after the last is one, the head. Without numbered blocks each direct child is a layer. Each of several
    networks has layers of its own. Order is that of registration.
    """
    networks = model.members if isinstance(model, MultiNetwork) else (model,)
    numbers: dict[int, int] = {}
    for network in networks:
        numbers |= _from_the_top(list(network.named_parameters()))
    # what branches share is below all of them
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in numbers]
    depth = max(numbers.values(), default=-1) + 1
    return numbers | {key: depth + number for key, number in _from_the_top(rest).items()}


def _from_the_top(named: list[tuple[str, nn.Parameter]]) -> dict[int, int]:
    """Return for each parameter, by id, how many layers of these names are above it."""
    blocks = [match[0] if (match := re.match(r"(.*?\.)?\d+(?=\.)", name)) else "" for name, _ in named]
    numbered = [i for i, block in enumerate(blocks) if block]
    keys = [name.partition(".")[0] for name, _ in named]
    if numbered:
        first, last = numbered[0], numbered[-1]
        keys = ["stem" if i < first else "head" if i > last else block for i, block in enumerate(blocks)]
        for i in range(first + 1, last):
            keys[i] = keys[i] or keys[i - 1]  # what is between two blocks belongs to the one before
    order = list(dict.fromkeys(keys))
    return {id(p): len(order) - 1 - order.index(key) for (_, p), key in zip(named, keys, strict=True)}


def grouped(
    model: nn.Module,
    params: Sequence[nn.Parameter],
    *,
    decay_matrices_only: bool,
    layer_decay: float,
    factors: Mapping[str, float] | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]] | list[nn.Parameter]:
    """Return the parameter groups of an optimizer; the parameters themselves if there is one group.

    With ``decay_matrices_only`` tensors of at most one dimension (norms, biases) have a group with weight_decay 0.
    With a ``layer_decay`` d a group's rate is lr d^k, k the number of layers above (`layer_numbers`), stored as
    ``lr_scale``; the layers at the top come first. ``factors`` multiply the rates of selections of parameters, of
    several that have a parameter each one, and divide their ``weight_decay``: a step's decay stays what it is.

    Raises InputError for a selection without a parameter of the model.
    """
    if not decay_matrices_only and layer_decay == 1 and not factors:
        return list(params)
    above = layer_numbers(model) if layer_decay != 1 else {}
    factor_of = _rate_factors(model, factors or {})
    groups: dict[tuple[int, bool, float], list[nn.Parameter]] = {}
    for p in params:
        key = above.get(id(p), 0), decay_matrices_only and _is_vector(p), factor_of.get(id(p), 1.0)
        groups.setdefault(key, []).append(p)
    return [
        {"params": own, "lr_scale": layer_decay**k * factor, **_decay(vectors, factor, weight_decay)}
        for (k, vectors, factor), own in sorted(groups.items(), key=lambda item: item[0])
    ]


def _rate_factors(model: nn.Module, factors: Mapping[str, float]) -> dict[int, float]:
    """Return the product of the factors that select each parameter, by id."""
    params = [p for p in model.parameters() if p.requires_grad]
    owners, products = param_groups.owners(model, params), {id(p): 1.0 for p in params}
    for where, factor in factors.items():
        chosen = selection.select(model, params, owners, where)
        if not any(chosen):
            raise InputError(
                f"optim.lr_factors has {where}={factor:g} and no trainable parameter is that; "
                f"{selection.names(model)}"
            )
        for p, mine in zip(params, chosen, strict=True):
            products[id(p)] *= factor if mine else 1.0
    return products


def _decay(vectors: bool, factor: float, weight_decay: float) -> dict[str, float]:
    """Return a group's own weight decay, if it has one."""
    if vectors:
        return {"weight_decay": 0.0}
    return {"weight_decay": weight_decay / factor} if factor != 1 and weight_decay else {}


def _is_vector(p: Tensor) -> bool:
    return p.ndim <= 1
