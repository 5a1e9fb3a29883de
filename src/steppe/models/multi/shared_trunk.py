"""Split a sequential network in two, so that two forward passes share the lower part; count what that saves."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from steppe.core.model_call import call_model
from steppe.core.numerics.complex_params import leaf, like_leaf
from steppe.core.numerics.vector import Vec


def split_sequential(net: nn.Module, child: nn.Module | None) -> tuple[nn.Sequential, nn.Sequential] | None:
    """Split ``net`` before the first of its parts that contains ``child``.

    Returns:
        ``(below, above)``, two Sequentials of the very modules of ``net`` under their names in it, with
        ``above(below(x))`` equal to ``net(x)``; ``above`` starts with the part that contains ``child``. None
        if calling the two would not be the same as calling ``net``, or changing ``child`` would change
        ``below``: ``net`` is not exactly an ``nn.Sequential``, has hooks of its own, is compiled in place,
        does not contain ``child``, ``child`` is None, or ``child`` shares parameters with a part below.
    """
    if child is None or type(net) is not nn.Sequential:
        return None
    if "forward" in vars(net) or net._compiled_call_impl is not None:
        return None
    if net._forward_hooks or net._forward_pre_hooks or net._backward_hooks or net._backward_pre_hooks:
        return None
    # named_children() would leave out the second use of a module that stands in two places
    parts = [(name, part) for name, part in net._modules.items() if part is not None]
    contains = [any(module is child for module in part.modules()) for _, part in parts]
    if not any(contains):
        return None
    first = contains.index(True)
    below, above = nn.Sequential(OrderedDict(parts[:first])), nn.Sequential(OrderedDict(parts[first:]))
    own = {id(p) for p in child.parameters()}
    if any(id(p) in own for p in below.parameters()):
        return None
    below.training = above.training = net.training
    return below, above


def flops_share(net: nn.Module, part: nn.Module, x: Any) -> float:
    """Return the fraction of the multiply-adds of ``net(x)`` that is spent in ``part``, from 0 to 1.

    ``part`` is a module of ``net``, or a container of such modules like the two that `split_sequential` returns.
    It is counted on the activations that reach it. The fraction barely depends on the number of samples of ``x``
    (B, ...). Training flags, buffers and the random state are not changed.

    Raises ValueError if ``part`` has no module of ``net``.
    """
    total, spent = count_flops(net, x, [part])
    return spent / total if total else 0.0


def count_flops(net: nn.Module, x: Any, parts: Sequence[nn.Module] = ()) -> tuple[int, int]:
    """Return the floating-point operations of matrix products in ``net(x)``: all, and those spent in ``parts``.

    Arguments and errors are those of `flops_share`.
    """
    modules = {id(m) for m in net.modules()}
    roots = [root for part in parts for root in _roots(part, modules)]
    if not roots and any(not (isinstance(part, nn.Sequential) and len(part) == 0) for part in parts):
        raise ValueError("part is no part of net")
    counter = FlopCounterMode(display=False)
    spent = depth = start = 0

    def enter(*_: object) -> None:
        nonlocal depth, start
        if depth == 0:
            start = counter.get_total_flops()
        depth += 1

    def leave(*_: object) -> None:
        nonlocal depth, spent
        depth -= 1
        if depth == 0:
            spent += counter.get_total_flops() - start

    flags = [(module, module.training) for module in net.modules()]
    handles = [r.register_forward_pre_hook(enter) for r in roots]
    # a trunk's pass ends with an exception
    handles += [r.register_forward_hook(leave, always_call=True) for r in roots]
    tensors = x.values() if isinstance(x, Mapping) else [x]
    devices = {t.device for t in tensors if isinstance(t, Tensor) and t.is_cuda}
    try:
        # one by one, because train() of a network with frozen layers may do more than set the flag
        for module, _ in flags:
            module.training = False
        with torch.random.fork_rng(list(devices)), torch.no_grad(), counter:
            call_model(net, x)
    finally:
        for module, training in flags:
            module.training = training
        for handle in handles:
            handle.remove()
    return counter.get_total_flops(), spent


def _roots(part: nn.Module, modules: set[int]) -> Iterator[nn.Module]:
    """Yield the outermost modules of ``part`` that are modules of the network, whose ids are ``modules``."""
    if id(part) in modules:
        yield part
        return
    for child in part.children():
        yield from _roots(child, modules)


def is_within(offsets: Sequence[Vec], params: Sequence[nn.Parameter], part: nn.Module) -> bool:
    """Return whether offsets move parameters of this part of a network only."""
    inside = {id(p) for p in part.parameters()}
    return all(
        o is None or id(leaf(p)) in inside for offset in offsets for p, o in zip(params, offset, strict=True)
    )


def branch_logits(
    trunk: nn.Module,
    top: nn.Module,
    params: Sequence[nn.Parameter],
    offsets: Sequence[Vec],
    x: Tensor,
    rng_restored: Callable[[], AbstractContextManager[None]],
) -> list[Tensor]:
    """Return the logits of each top at its offset from the weights; the trunk runs once.

    All tops have the same dropout masks: ``rng_restored`` is the context in which all but the last run.
    """
    names = {id(p): name for name, p in top.named_parameters()}
    inputs, logits = trunk(x), []
    for number, offset in enumerate(offsets, 1):
        pairs = zip(params, offset, strict=True)
        moved = {names[id(leaf(p))]: leaf(p) + like_leaf(o, p) for p, o in pairs if o is not None}
        with rng_restored() if number < len(offsets) else nullcontext():
            logits.append(functional_call(top, moved, (inputs,)))
    return logits
