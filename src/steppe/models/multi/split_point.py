"""Where a network can be split in two: the modules before and after a path, and where families are split.

A module counts as before the split point if it is registered before it, in the module that contains it or in any
module further out. That is the order in which nearly all networks use them.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from steppe.errors import InputError, unknown


def classifier_path(net: nn.Module) -> str:
    """Return the path of the last dense layer; raises InputError without one."""
    names: list[str] = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not names:
        raise InputError("the network has no dense layer, which its classifier must be; use dml, kdcl or okdph")
    return names[-1]


def first_layer(module: nn.Module) -> tuple[nn.Module, int]:
    """Return the first layer in a module that says how many channels it takes, and how many; else itself and 0."""
    for layer in module.modules():
        for name in ("in_channels", "in_features", "num_features", "num_channels"):
            width = getattr(layer, name, None)
            if isinstance(width, int):
                return layer, width
        shape = getattr(layer, "normalized_shape", None)
        if shape:
            return layer, int(shape[-1])
    return module, 0


def default_split(net: nn.Module) -> str:
    """Return where the last stage of the network begins.

    The search goes inwards, for stages or blocks that are most of the network before its classifier: modules of
    numbered names (layer1 .. layer4, unit4_2, inception5a, blocks.0), or those of a sequence. The split point
    is the last of them that reduces the resolution, or follows a module that does; without such a reduction in
    their second half it is before their last quarter (the last three of twelve blocks). Dense layers and norms at
    the end belong to the classifier.

    Raises InputError if there are no such parts.
    """
    path, module, head = "", net, classifier_path(net)
    while True:
        inner = head[len(path) + 1 if path else 0 :] if f"{head}.".startswith(f"{path}.") or not path else ""
        body = _before_classifier(module, inner)
        for names in _series(module, body):
            if any(2 * sum(size(body[n]) for n in names) >= sum(map(size, body.values())) for size in _SIZES):
                return _join(path, _last_stage(body, names))
        name = max(body, key=lambda n: _modules(body[n]), default="")
        if not name or not body[name]._modules:
            raise InputError(
                f"split_at is not given, and {type(net).__name__} has no family of numbered parts to choose from; "
                "name the module that branches begin with, such as 'layer4', or train whole networks (dml, kdcl, "
                "okdph, okddip:form=network)"
            )
        path, module = _join(path, name), body[name]


def _before_classifier(module: nn.Module, head: str) -> dict[str, nn.Module]:
    """Return the children of a module before its dense layers at the end; ``head`` is the last's path in it."""
    children = {n: m for n, m in module._modules.items() if m is not None}
    if not head:
        return children
    outer = head.split(".")[0]
    body = dict(list(children.items())[: list(children).index(outer)])
    weights = sum(map(_count, body.values()))
    inside = children[outer]
    larger = _modules(inside) > sum(map(_modules, body.values()))
    if not weights or (larger and not all(map(_is_dense, inside.children()))):
        return {outer: inside}  # which is more than a classifier
    trimmed = dict(body)
    while trimmed and _is_dense(trimmed[last := next(reversed(trimmed))]):
        del trimmed[last]
    return trimmed or body


def _is_dense(m: nn.Module) -> bool:
    """Whether a module is a dense layer, a norm or without weights."""
    return not m._modules and (isinstance(m, nn.Linear) or "Norm" in type(m).__name__ or not _count(m))


def _series(module: nn.Module, body: Mapping[str, nn.Module]) -> list[list[str]]:
    """Return the names with weights that form a series: by what is before their number, or in a sequence."""
    weighted = [name for name in body if _count(body[name])]
    stems: dict[str, list[str]] = {}
    for name in weighted:
        if match := re.match(r"\D*(?=\d)", name):
            stems.setdefault(match[0], []).append(name)
    series = sorted(stems.values(), key=lambda names: [-sum(size(body[n]) for n in names) for size in _SIZES])
    if isinstance(module, nn.Sequential | nn.ModuleList):
        series.append(weighted)
    return [names for names in series if len(names) > 1]


def _last_stage(body: Mapping[str, nn.Module], names: Sequence[str]) -> str:
    """Return the name in a series at which the last stage begins."""
    order = list(body)
    reductions = [i for i, m in enumerate(body.values()) if any(map(_reduces, m.modules()))]
    starts = [next((k for k, n in enumerate(names) if order.index(n) >= i), len(names)) for i in reductions]
    late = [k for k in starts if len(names) // 2 <= k < len(names)]
    return names[max(late, default=3 * len(names) // 4)]


def _reduces(m: nn.Module) -> bool:
    """Whether a layer is a convolution or a pooling with a stride above 1."""
    stride = getattr(m, "stride", 1)
    return not m._modules and any(
        isinstance(s, int) and s > 1 for s in (stride if isinstance(stride, tuple) else (stride,))
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _modules(module: nn.Module) -> int:
    return sum(1 for _ in module.modules())


_SIZES = (_modules, _count)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def containers(path: str) -> list[str]:
    """Return the paths of the modules that contain the one at ``path``, the outermost, '', first."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def modules_before_and_after(net: nn.Module, path: str) -> tuple[list[str], list[str]]:
    """Return the paths of the modules before the one at ``path``, and from it on, in order of registration."""
    before, after = [], [path]
    for outer in containers(path):
        inner = path[len(outer) + 1 if outer else 0 :].split(".")[0]
        names = [n for n, m in net.get_submodule(outer)._modules.items() if m is not None]
        at = names.index(inner)
        before += [_join(outer, n) for n in names[:at]]
        after += [_join(outer, n) for n in names[at + 1 :]]
    return before, after


def check_split(net: nn.Module, path: str, before: Sequence[str], after: Sequence[str]) -> None:
    """Raise InputError if nothing with weights is before the split point, or weights are on both sides of it."""
    own = {id(p) for name in before for p in net.get_submodule(name).parameters()}
    if not own:
        raise InputError(f"split_at is {path!r}, before which there are no weights; name a later module")
    if any(id(p) in own for name in after for p in net.get_submodule(name).parameters()):
        raise InputError(
            f"split_at is {path!r}, and weights before it are used after it too; name an earlier module"
        )


def first_called(net: nn.Module, path: str) -> str:
    """Return the path; in place of a list or a dictionary of modules, which is not called, its first module's."""
    paths = [name for name, _ in net.named_modules() if name]
    if path not in paths:
        raise unknown("module for split_at", path, paths)
    while type(module := net.get_submodule(path)).forward is nn.Module.forward and module._modules:
        path = _join(path, next(iter(module._modules)))
    return path


def with_standins(
    net: nn.Module, standin: Callable[..., nn.Module], names: Sequence[str], sources: Iterable[nn.Module]
) -> nn.Module:
    """Return the network with stand-ins for ``sources`` in the place of its modules ``names``.

    The modules that contain them are copies; the other modules and all parameters are the network's own.
    """
    around = {path for name in names for path in containers(name)}
    memo: dict[int, Any] = {id(m): m for path, m in net.named_modules() if path not in around}
    memo |= {id(p): p for p in net.parameters()}
    shared: dict[int, nn.Module] = {}  # a module of two names has one stand-in
    for name, source in zip(names, sources, strict=True):
        replaced = shared.get(id(source)) or standin(name, source, shared)
        for (_, old), new in zip(net.get_submodule(name).named_modules(), replaced.modules(), strict=True):
            memo[id(old)] = new
    return copy.deepcopy(net, memo)
