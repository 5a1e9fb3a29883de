"""Where a network can be split in two: the modules before and after a path, and where families are split.

A module counts as before the split point if it is registered before it, in the module that contains it or in any
module further out. That is the order in which nearly all networks use them.
"""

import copy
import re
from collections.abc import Sequence

from torch import nn

from steppe.errors import InputError, unknown


def classifier_path(net: nn.Module) -> str:
    """Return the path of the last dense layer; raises InputError without one."""
    names: list[str] = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not names:
        raise InputError("the network has no dense layer, which its classifier must be; choose another network")
    return names[-1]


def input_width(module: nn.Module) -> int:
    """Return how many channels a module takes, from the first layer in it that has such an attribute, else 0."""
    for layer in module.modules():
        for name in ("in_channels", "in_features", "num_features", "num_channels"):
            width = getattr(layer, name, None)
            if isinstance(width, int):
                return width
        shape = getattr(layer, "normalized_shape", None)
        if shape:
            return int(shape[-1])
    return 0


def default_split(net: nn.Module) -> str:
    """Return where the last stage of the usual families begins.

    The search goes from the outermost module inwards, for a series of numbered stages or blocks (layer1 .. layer4,
    denseblock1, blocks.0, features.0) that has most of the network's parameters. The split point is before its
    last quarter: the last of three or four stages, the last three of twelve blocks. A stage that contains the
    classifier itself is not split off alone.

    Raises InputError if there is no such series.
    """
    path, module = "", net
    total = _count(net)
    head = classifier_path(net)
    while True:
        for names in _series(module):
            stages = [(n, module.get_submodule(n)) for n in names]
            if 2 * sum(_count(m) for _, m in stages) >= total:
                headless = [n for n, m in stages if _count(m) and not f"{head}.".startswith(f"{_join(path, n)}.")]
                late = [n for n in headless if names.index(n) >= 3 * len(stages) // 4]
                if len(headless) > 1:
                    return _join(path, late[0] if late else headless[-1])
        children = sorted(module.named_children(), key=lambda c: _count(c[1]))
        if not children or not _count(children[-1][1]):
            raise InputError(
                f"split_at is not given, and {type(net).__name__} has no family of numbered parts to choose from; "
                "name the module that branches begin with, such as 'layer4'"
            )
        path, module = _join(path, children[-1][0]), children[-1][1]


def _series(module: nn.Module) -> list[list[str]]:
    """Return the names of children that form a series of three or more: by a common stem, or in a sequence."""
    stems: dict[str, list[str]] = {}
    for name, _ in module.named_children():
        match = re.fullmatch(r"(.*?)(\d+)", name)
        if match:
            stems.setdefault(match[1], []).append(name)
    series = sorted(stems.values(), key=lambda n: -sum(_count(module.get_submodule(k)) for k in n))
    if isinstance(module, nn.Sequential | nn.ModuleList):
        series.append([name for name, _ in module.named_children()])
    return [names for names in series if len(names) > 2]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def containers(path: str) -> list[str]:
    """Return the paths of the modules that contain the one at ``path``, the outermost, '', first."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def modules_before_and_after(net: nn.Module, path: str) -> tuple[list[str], list[str]]:
    """Return the paths of the modules before the one at ``path``, and from it on, in order of registration."""
    paths = [name for name, _ in net.named_modules() if name]
    if path not in paths:
        raise unknown("module for split_at", path, paths)
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


def replace_module(net: nn.Module, path: str, by: nn.Module) -> None:
    """Put ``by`` in the place of the module at ``path``."""
    outer, _, name = path.rpartition(".")
    net.get_submodule(outer)._modules[name] = by


def without_modules(net: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return the network with empty modules in the place of ``names``, all from the first of them on.

    The modules that contain them are copies; the other modules and all parameters are the network's own.
    """
    before, _ = modules_before_and_after(net, names[0])
    shared = {id(m): m for m in map(net.get_submodule, before)}
    parameters = {id(p): p for p in net.parameters()}
    empty = {id(net.get_submodule(name)): nn.Module() for name in names}
    return copy.deepcopy(net, {**shared, **parameters, **empty})
