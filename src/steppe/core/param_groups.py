"""The parameters that a method works on, the module of each, and what their groups set for them."""

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from steppe.core.numerics import vector
from steppe.core.numerics.complex_params import leaf, real_view
from steppe.core.numerics.filters import EMBEDDINGS
from steppe.core.numerics.vector import Vec
from steppe.core.optimizers.joint import names_of, parts_of, with_inner
from steppe.core.schedules import finite
from steppe.errors import InputError


def trainable(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the optimizer's trainable parameters, each once, in its order; raises InputError if it has none."""
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    unique = {id(p): p for p in params if p.requires_grad}
    if not unique:
        raise InputError("the optimizer holds no trainable parameter; give it model.parameters()")
    return list(unique.values())


def require_trainable(
    modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter]
) -> None:
    """Raise InputError if the optimizer cannot train these modules in a step of several passes."""
    if any(map(is_lazy, chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules))):
        raise InputError("the model has lazy tensors without a shape; call model(x) once before the optimizer")
    own = {id(p): p for m in modules for p in m.parameters()}
    for one in parts_of(optimizer):
        name = type(one).__name__
        if own and not any(id(p) in own for group in one.param_groups for p in group["params"]):
            raise InputError(f"{name} has no parameter of the model; make it anew from model.parameters()")
        closure = inspect.signature(one.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise InputError(f"{name} needs a closure and makes passes of its own; use an optimizer without one")
    refuse_accumulation_hooks(params)
    for module in chain.from_iterable(m.modules() for m in modules):
        if isinstance(module, EMBEDDINGS) and module.sparse and module.weight.requires_grad:
            raise InputError(f"{type(module).__name__} has sparse gradients; make it with sparse=False")
    chosen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [p for key, p in own.items() if p.requires_grad and key not in chosen]
    if left:
        warnings.warn(
            f"{len(left)} trainable parameters of the model are in no group of the optimizer "
            f"({names_of(modules[0], left)}): this step does not train them; freeze them with "
            "requires_grad_(False) if that is meant",
            stacklevel=5,
        )


def refuse_accumulation_hooks(params: Iterable[Tensor]) -> None:
    """Raise InputError for hooks that run after each backward pass, such as an optimizer's step in it."""
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in params):
        raise InputError("a parameter has a post_accumulate_grad_hook, which each pass would run; remove it")


def require_dense(grads: Sequence[Tensor | None]) -> None:
    """Raise InputError for sparse gradients."""
    if any(g is not None and g.layout != torch.strided for g in grads):
        raise InputError("a gradient is sparse; make its layer with sparse=False")


def same(a: Sequence[nn.Parameter], b: Sequence[nn.Parameter]) -> bool:
    """Return whether these are the same parameters in the same order."""
    return len(a) == len(b) and all(map(is_, a, b))


def learning_rate(optimizer: torch.optim.Optimizer) -> Any:
    """Return the learning rate of the first group, NaN if it is None as in Adafactor, or missing.

    One that is a tensor stays one: to read it is to wait for a GPU.
    """
    lr = optimizer.param_groups[0].get("lr")
    return math.nan if lr is None else lr if isinstance(lr, Tensor) else float(lr)


def owners(net: nn.Module, params: Sequence[nn.Parameter]) -> list[nn.Module]:
    """Return the module that each parameter belongs to, the network itself for one that is not in it.

    What a weight is computed from (`torch.nn.utils.parametrize`) belongs to the module that has the weight.
    """
    modules = {id(p): m for m in net.modules() for p in m.parameters(recurse=False)}
    for m in filter(is_parametrized, net.modules()):
        modules |= {id(p): m for p in m.get_submodule("parametrizations").parameters()}
    return [modules.get(id(leaf(p)), net) for p in params]


def setting(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], name: str, common: float) -> Any:
    """Return a method's hyper-parameter: one number, or one per parameter where groups set it (`check_setting`).

    Raises InputError for a value that is not a finite number of at least 0.
    """
    _check_value(name, common)
    if not check_setting(optimizer, name):
        return common
    return per_parameter(_groups_for(optimizer, name), params, name, common)


def check_setting(optimizer: torch.optim.Optimizer, name: str) -> bool:
    """Return whether parameter groups set a method's hyper-parameter ``name``.

    A key that the optimizer has itself (an argument of its class, or in ``optimizer.defaults``: Adadelta's rho,
    say) is the optimizer's; of one that wraps another and shares its groups, also those of the inner one.

    Raises InputError for a group's value that is not a finite number of at least 0.
    """
    values = [group[name] for group in _groups_for(optimizer, name) if group.get(name) is not None]
    for value in values:
        _check_value(name, value, " in a parameter group")
    return bool(values)


def _groups_for(optimizer: torch.optim.Optimizer, name: str) -> list[dict[str, Any]]:
    """Return the groups in which ``name`` is a method's setting, not their optimizer's."""
    parts = [one for one in parts_of(optimizer) if not any(_has_own(o, name) for o in with_inner(one))]
    return [group for one in parts for group in one.param_groups]


def _has_own(optimizer: torch.optim.Optimizer, name: str) -> bool:
    if name in getattr(optimizer, "defaults", ()):
        return True
    # what an optimizer keeps in its groups need not be in its defaults
    return name in inspect.signature(type(optimizer)).parameters


def add_decoupled(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], values: Vec) -> None:
    """Add values times their learning rate to the parameters, past the optimizer."""
    own = [p for p, v in zip(params, values, strict=True) if v is not None]
    rates = per_parameter(optimizer.param_groups, params, "lr", 0.0)
    with torch.no_grad():
        vector.move(own, vector.present(vector.scale(values, rates)))


def momentum(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], expected: bool) -> Vec:
    """Return the momentum that the optimizer, or one in it, keeps for each parameter, None where there is none.

    Raises InputError if it is ``expected`` and there is none at all.
    """
    states = [o.state for o in with_inner(optimizer) if hasattr(o, "state")]

    def of(p: nn.Parameter) -> Tensor | None:
        entries = [state[leaf(p)] for state in states if leaf(p) in state]
        return real_view(next((e[key] for e in entries for key in _MOMENTUM if e.get(key) is not None), None))

    values = list(map(of, params))
    if expected and not any(v is not None for v in values):
        raise InputError(
            f"{type(optimizer).__name__} keeps no momentum; give it some, as in SGD(..., momentum=0.9) or AdamW"
        )
    return values


_MOMENTUM = ("momentum_buffer", "exp_avg")  # of SGD and RMSprop; of Adam's family


def _check_value(name: str, value: Any, where: str = "") -> None:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not finite(number) or number < 0:
        raise InputError(f"{name} is {number!r}{where}; give a finite number of at least 0")


def per_parameter(
    groups: Iterable[dict[str, Any]], params: Sequence[nn.Parameter], name: str, common: float
) -> Any:
    """Return what the parameters' groups set under ``name``: one number if all agree, else one per parameter."""
    own: dict[int, Any] = {}
    for group in groups:
        if group.get(name) is not None:
            own |= {id(p): group[name] for p in group["params"]}
    if not own:
        return common
    values = [own.get(id(leaf(p)), common) for p in params]
    if all(isinstance(v, Tensor) and v is values[0] for v in values):
        return values[0]
    if any(isinstance(v, Tensor) and v.device.type != "cpu" for v in values):
        return [v if isinstance(v, Tensor) else torch.full((), v) for v in values]
    values = list(map(float, values))
    return values[0] if len(set(values)) == 1 else values


@contextmanager
def switched_off(params: Sequence[nn.Parameter]) -> Iterator[None]:
    """Compute no gradient for these parameters."""
    for p in params:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(True)


def has_custom_backward(loss: Tensor) -> bool:
    """Return whether a loss's graph has a backward pass written in Python, such as that of reentrant checkpoints.

    It may use parameters that the graph does not show.
    """
    nodes: set[Any] = set()
    stack: list[Any] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if isinstance(node, BackwardCFunction):
            return True
        if node is not None and node not in nodes:
            nodes.add(node)
            stack += [n for n, _ in node.next_functions]
    return False
