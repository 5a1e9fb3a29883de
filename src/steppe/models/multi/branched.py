"""A network of any kind cut in two: one trunk, and branches of their own from a named module on.

A trunk is the network with the modules from the cut on taken out; it runs until the cut is reached. A branch is a
network whose modules before the cut are taken out and, as it runs, say what the trunk's have said, so that the
trunk is computed once and everything between the modules happens as the network's own code has it.

Modules count as before the cut if they are registered before it (see `cutting`); one used before the cut and
registered after it, or with weights and used again after it, is refused when that is met. Parameters that a module
around the cut holds itself (a class token, a position embedding) are the trunk's, and shared by the branches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.amp import upcast_to_float32
from steppe.core.model_call import call_model, extract_logits
from steppe.errors import InputError
from steppe.models.multi.inputs import fresh_networks, inputs_of, mean_of
from steppe.models.multi.split_point import (
    check_split,
    classifier_path,
    classifier_width,
    default_split,
    module_lists,
    modules_before_and_after,
    replace_module,
    without_module,
)


@dataclass
class BranchOutputs:
    """What the branches said in one pass: logits (B, classes), features (B, D) and feature maps, of each.

    The features are what reaches the last dense layer; the maps (B, D, H, W) the last of as many channels, the
    features (B, D, 1, 1) where there are none. ``entered`` (B, C) is the mean over positions of what reached the
    cut, on the first view.
    """

    logits: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    entered: Tensor = field(default_factory=lambda: torch.empty(0))


class _Reached(Exception):  # noqa: N818 - ends the trunk's pass, and is caught where that began
    """The trunk has come to the cut."""


class _ActivationCache:
    """What the trunk said in this pass, by module, and what arrived at the cut; and what a branch has seen."""

    def __init__(self) -> None:
        self.said: dict[str, list[Any]] = {}
        self.left: dict[str, int] = {}
        self.arrived: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.features: Tensor | None = None
        self.maps: list[Tensor] = []

    def rewind(self) -> None:
        """Start again from the first word, for the next branch."""
        self.left = {}
        self.features, self.maps = None, []


class _Cut(nn.Module):
    """Stands in the trunk where the cut is."""

    def __init__(self, tape: _ActivationCache):
        super().__init__()
        self.tape = tape

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.tape.arrived = (args, kwargs)
        raise _Reached


class _Replayed(nn.Module):
    """Stands in a branch for a module of the trunk. ``own`` is that module, if it has no weights."""

    def __init__(self, tape: _ActivationCache, name: str, own: nn.Module | None):
        super().__init__()
        self.tape, self.name, self.own = tape, name, own

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        said, number = self.tape.said.get(self.name, []), self.tape.left.get(self.name, 0)
        if number < len(said):
            self.tape.left[self.name] = number + 1
            return said[number]
        if self.own is not None:
            return self.own(*args, **kwargs)
        raise InputError(
            f"{self.name} is registered before split_at and used after it; choose a split_at before {self.name}"
        )


class BranchedNetwork(nn.Module):
    """One trunk and ``branches``; called with one input for all, or with ``views``, one for each.

    Args:
        networks: As many whole networks as there are branches, which are taken apart: the trunk is the first's,
            each branch its own.
        split_at: Path of the module that branches begin with; found for the usual families if it is empty.

    Raises:
        InputError: There is no such module, nothing is before it, the networks differ, or the trunk and a branch
            share a parameter.
    """

    def __init__(self, networks: Sequence[nn.Module], split_at: str = ""):
        super().__init__()
        self.split_at = split_at or default_split(networks[0])
        self.tape = _ActivationCache()
        before, after = modules_before_and_after(networks[0], self.split_at)
        check_split(networks[0], self.split_at, before, after)
        self.entry = classifier_width(networks[0].get_submodule(self.split_at))
        self.head = classifier_path(networks[0])
        for net in networks[1:]:
            if modules_before_and_after(net, self.split_at) != (before, after):
                raise InputError(f"split_at is {self.split_at!r} and the networks differ; build equal ones")
        self.trunk = self._as_trunk(networks[0], after)
        self.branches = nn.ModuleList(self._as_branch(net, before, after) for net in networks)
        for name in before:
            self.trunk.get_submodule(name).register_forward_hook(_Listener(self.tape, name))

    @property
    def size(self) -> int:
        """How many branches there are."""
        return len(self.branches)

    @property
    def width(self) -> int:
        """The width D of the features."""
        head = self.branches[0].get_submodule(self.head)
        return int(head.in_features)  # type: ignore[arg-type]

    @property
    def classes(self) -> int:
        """The number of classes."""
        head = self.branches[0].get_submodule(self.head)
        return int(head.out_features)  # type: ignore[arg-type]

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> BranchOutputs:
        """Return what the branches say; the trunk runs once per view."""
        given = inputs_of(self.size, x, views, named)
        said = BranchOutputs()
        for number, (branch, own) in enumerate(zip(self.branches, given, strict=True)):
            if number == 0 or views is not None:
                self._begin(own)
            if number == 0:
                said.entered = pooled(self._entered(), self.entry)
            self.tape.rewind()
            z = extract_logits(call_model(branch, own))
            features = self.tape.features
            assert features is not None
            said.logits.append(z)
            said.features.append(pooled(features))
            said.maps.append(self._map(said.features[-1]))
        # nothing of this pass outlives it here
        self.tape.said, self.tape.arrived = {}, None
        self.tape.rewind()
        return said

    def _begin(self, x: Any) -> None:
        """Let the trunk speak."""
        self.tape.said, self.tape.arrived = {}, None
        try:
            call_model(self.trunk, x)
        except _Reached:
            return
        raise InputError(f"split_at is {self.split_at!r}, which the network does not use; name another module")

    def _entered(self) -> Tensor:
        assert self.tape.arrived is not None
        args, kwargs = self.tape.arrived
        found = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        if not found:
            raise InputError(
                f"split_at is {self.split_at!r}, which is not called with a tensor; name another module"
            )
        return found[0]

    def _map(self, features: Tensor) -> Tensor:
        maps = [m for m in self.tape.maps if m.shape[1] == features.shape[1]]
        wide = [m for m in maps if m.shape[2] * m.shape[3] > 1]
        return (wide or maps or [features[:, :, None, None]])[-1]

    def _as_trunk(self, net: nn.Module, after: list[str]) -> nn.Module:
        """Return the network without what comes from the cut on."""
        trunk = without_module(net, after)
        replace_module(trunk, self.split_at, _Cut(self.tape))
        return trunk

    def _as_branch(self, net: nn.Module, before: list[str], after: list[str]) -> nn.Module:
        """Return the network with the trunk's words in the place of what comes before the cut."""
        for name in before:
            module = net.get_submodule(name)
            silent = next(iter(module.state_dict()), None) is None
            # a copy, for what the trunk's own says is recorded
            replace_module(net, name, _Replayed(self.tape, name, copy.deepcopy(module) if silent else None))
        for path in module_lists(self.split_at):
            own, common = net.get_submodule(path), self.trunk.get_submodule(path)
            for name, p in common._parameters.items():
                own._parameters[name] = p
        net.get_submodule(self.split_at).register_forward_pre_hook(_Arrival(self.tape), with_kwargs=True)
        net.get_submodule(self.head).register_forward_pre_hook(_Features(self.tape))
        for name in after:
            net.get_submodule(name).register_forward_hook(_Maps(self.tape))
        return net

    def plain(self, branch: int, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of the trunk and of one branch, for use alone."""
        net = new_model()
        before, after = modules_before_and_after(net, self.split_at)
        source = self.branches[branch]
        for names, held in ((before, self.trunk), (after, source)):
            for name in names:
                net.get_submodule(name).load_state_dict(held.get_submodule(name).state_dict())
        with torch.no_grad():
            for path in module_lists(self.split_at):
                for name, p in net.get_submodule(path)._parameters.items():
                    if p is not None:
                        p.copy_(self.trunk.get_submodule(path).get_parameter(name))
                for name, b in net.get_submodule(path)._buffers.items():
                    if b is not None:
                        b.copy_(source.get_submodule(path).get_buffer(name))
        return net


class SeparateNetworks(nn.Module):
    """Networks that share nothing, called as `Branches` are and saying the same."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.tape = _ActivationCache()
        self.head = classifier_path(networks[0])
        for net in networks:
            net.get_submodule(self.head).register_forward_pre_hook(_Features(self.tape))

    @property
    def size(self) -> int:
        """How many networks there are."""
        return len(self.networks)

    @property
    def width(self) -> int:
        """The width D of the features."""
        return int(self.networks[0].get_submodule(self.head).in_features)  # type: ignore[arg-type]

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> BranchOutputs:
        """Return what the networks say, without maps."""
        said = BranchOutputs()
        for net, own in zip(self.networks, inputs_of(self.size, x, views, named), strict=True):
            said.logits.append(extract_logits(call_model(net, own)))
            assert self.tape.features is not None
            said.features.append(pooled(self.tape.features))
        self.tape.rewind()
        return said

    def plain(self, number: int, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of one of these."""
        net = new_model()
        net.load_state_dict(self.networks[number].state_dict())
        return net


class _Listener:
    def __init__(self, tape: _ActivationCache, name: str):
        self.tape, self.name = tape, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.tape.said.setdefault(self.name, []).append(output)


class _Arrival:
    def __init__(self, tape: _ActivationCache):
        self.tape = tape

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        assert self.tape.arrived is not None
        return self.tape.arrived


class _Features:
    def __init__(self, tape: _ActivationCache):
        self.tape = tape

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.tape.features = args[0]


class _Maps:
    def __init__(self, tape: _ActivationCache):
        self.tape = tape

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            self.tape.maps.append(output)


def build_branched(new_model: Callable[[], nn.Module], count: int, split_at: str | int) -> BranchedNetwork:
    """Make ``count`` networks and cut them; see `Branches`. A number is a part of a sequence."""
    return BranchedNetwork(fresh_networks(new_model, count), str(split_at))


def pooled(t: Tensor, width: int = 0) -> Tensor:
    """Return the mean over positions of maps or tokens as (B, C); vectors (B, C) as they are.

    Channels are the second dimension of maps and the last of tokens, or whichever has ``width`` of them.
    """
    wide = upcast_to_float32(t)
    first = wide.ndim == 4 if width not in (wide.shape[1], wide.shape[-1]) else wide.shape[1] == width
    return (wide.flatten(2).mean(2) if first else wide.flatten(1, -2).mean(1)) if wide.ndim > 2 else wide


def branch_outputs(net: nn.Module, x: Any, kind: type[nn.Module], last: str) -> dict[str, Tensor]:
    """Return what each branch of a built module says, their mean, and the module's ``last`` output, by name.

    Deployed is the first branch; a network that is not of this ``kind`` is only deployed.
    """
    said = call_model(net, x)
    if not isinstance(net, kind):
        return {"deployed": extract_logits(said)}
    *branches, final = said
    found = {"deployed": branches[0]} | {f"branch {i}": z for i, z in enumerate(branches, 1)}
    return found | {"mean": mean_of(branches), last: final}
