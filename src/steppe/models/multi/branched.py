"""A network of any kind split in two: one trunk, and several branches from a named module on.

The trunk is the network without the modules after the split point; its pass ends when the split point is reached.
A branch is the network with the modules before the split point replaced by stubs that replay the trunk's cached
outputs. So the trunk runs once, and whatever happens between modules is the network's own code.

A module counts as before the split point if it is registered before it (see `split_point`). A module that is
registered after the split point but used before it is refused when that shows, and so is one with weights that is
registered before it and used again after it. Parameters of the modules that contain the split point (a class
token, a position embedding) belong to the trunk and are shared by the branches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from steppe.core.amp import upcast_to_float32
from steppe.core.method import with_weights
from steppe.core.model_call import call_for_logits, call_model
from steppe.errors import InputError
from steppe.models.multi._standins import ActivationCache, CachedModule, SplitReached, Standin, TrunkEnd
from steppe.models.multi.inputs import fresh_networks, inputs_of, of_one_shape
from steppe.models.multi.split_point import (
    check_split,
    classifier_path,
    containers,
    default_split,
    first_called,
    first_layer,
    modules_before_and_after,
    with_standins,
)


@dataclass
class BranchOutputs:
    """The outputs of one forward pass, one of each list per branch.

    ``logits`` are (B, classes). ``features`` (B, D) are the inputs of the last dense layer. ``maps`` (B, D, H, W)
    are the last feature maps with as many channels, or the features as (B, D, 1, 1) if there are none. ``entered``
    (B, C) is the mean over positions of the input of the split point, on the first view; of the input of its first
    layer, if that takes several positions as one (Swin's merged patches).
    """

    logits: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    entered: Tensor = field(default_factory=lambda: torch.empty(0))


class BranchedNetwork(nn.Module):
    """One trunk and ``branches``; called with one input for all, or with ``views``, one for each.

    Args:
        networks: As many whole networks as there are branches. They are taken apart: the trunk is the first's,
            each branch its own.
        split_at: Path of the module that branches begin with; if it is empty, `default_split` chooses it.

    Raises:
        InputError: There is no such module, nothing is before it, the networks differ, or the trunk and a branch
            share a parameter.
    """

    def __init__(self, networks: Sequence[nn.Module], split_at: str = ""):
        super().__init__()
        self.split_at = first_called(networks[0], split_at or default_split(networks[0]))
        self.cache = ActivationCache(self.split_at)
        before, after = modules_before_and_after(networks[0], self.split_at)
        check_split(networks[0], self.split_at, before, after)
        self.entry = first_layer(networks[0].get_submodule(self.split_at))[1]
        self.before, self.after = before, after
        self.head = classifier_path(networks[0])
        for net in networks[1:]:
            if modules_before_and_after(net, self.split_at) != (before, after):
                raise InputError(f"split_at is {self.split_at!r} and the networks differ; build equal ones")
        self.trunk = self._with_standins(TrunkEnd, networks[0], after, networks[0])
        self.branches = nn.ModuleList(self._as_branch(net, before, after) for net in networks)
        for name in before:
            self.cache.record(name, self.trunk.get_submodule(name))

    @property
    def size(self) -> int:
        """The number of branches."""
        return len(self.branches)

    @property
    def width(self) -> int:
        """The width D of the features."""
        return _classifier(self.branches[0], self.head).in_features

    @property
    def classes(self) -> int:
        """The number of classes."""
        return _classifier(self.branches[0], self.head).out_features

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> BranchOutputs:
        """Return the outputs of all branches; the trunk runs once per view."""
        result = BranchOutputs()
        inputs = inputs_of(self.size, x, views, named)
        try:
            for number, (branch, own) in enumerate(zip(self.branches, inputs, strict=True)):
                if number == 0 or views is not None:
                    self._run_trunk(own)
                self.cache.start_branch()
                result.logits.append(call_for_logits(branch, own))
                self.cache.check_unchanged()
                if number == 0:
                    result.entered = self._entered()
                result.features.append(features_of(self.cache, self.head))
                result.maps.append(self._last_map(result.features[-1]))
        except InputError as error:
            if reason := self._exchanged():
                raise reason from error
            raise
        finally:
            self.cache.end_pass()
        return result

    def _run_trunk(self, x: Any) -> None:
        """Run the trunk up to the split point, which fills the cache."""
        self.cache.start_trunk()
        try:
            call_model(self.trunk, x)
        except SplitReached:
            return
        raise InputError(f"split_at is {self.split_at!r}, which the network does not use; name another module")

    def _exchanged(self) -> InputError | None:
        """Return the error for a module that was exchanged after the split: it has no hooks. None if none was."""
        for net, names in ((self.trunk, self.before), *((branch, [self.head]) for branch in self.branches)):
            for name in names:
                module = dict(net.named_modules()).get(name)
                if module is None or not (module._forward_hooks or module._forward_pre_hooks):
                    return exchanged(name)
        return None

    def _entered(self) -> Tensor:
        """Return the mean over positions of the first tensor among the arguments of the split point."""
        for value in tree_leaves(self.cache.split_inputs):
            if isinstance(value, Tensor):
                entered, first = pooled(value, self.entry), self.cache.first_input
                merged = entered.shape[1:] != (self.entry,) and isinstance(first, Tensor)
                return pooled(first, self.entry) if merged else entered
        raise InputError(f"split_at is {self.split_at!r}, which is not called with a tensor; name another module")

    def _last_map(self, features: Tensor) -> Tensor:
        """Return the last maps of as many channels as there are features, of several positions if possible."""
        maps = [m for m in self.cache.maps if m.shape[1] == features.shape[1]]
        large = [m for m in maps if m.shape[2] * m.shape[3] > 1]
        return (large or maps or [features[:, :, None, None]])[-1]

    def _with_standins(self, kind: type[Standin], net: nn.Module, names: list[str], real: nn.Module) -> nn.Module:
        return with_standins(net, partial(kind, self.cache), names, map(real.get_submodule, names))

    def _as_branch(self, whole: nn.Module, before: list[str], after: list[str]) -> nn.Module:
        """Return the network with stand-ins for the trunk's modules, and the trunk's own parameters."""
        net = self._with_standins(CachedModule, whole, before, self.trunk)
        for path in containers(self.split_at):
            net.get_submodule(path)._parameters.update(self.trunk.get_submodule(path)._parameters)
        split = net.get_submodule(self.split_at)
        split.register_forward_pre_hook(self.cache.replay_split_inputs, with_kwargs=True)
        first_layer(split)[0].register_forward_pre_hook(self.cache.store_first_input)
        net.get_submodule(self.head).register_forward_pre_hook(self.cache.store_features)
        for name in after:
            net.get_submodule(name).register_forward_hook(self.cache.store_maps)
        return net

    def plain(self, branch: int, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of the trunk and of one branch, for use alone."""
        net, own = new_model(), self.branches[branch]
        before, after = modules_before_and_after(net, self.split_at)
        for names, source in ((before, self.trunk), (after, own)):
            for name in names:
                with_weights(net.get_submodule(name), source.get_submodule(name).state_dict())
        with torch.no_grad():
            for path in containers(self.split_at):
                for name, p in net.get_submodule(path).named_parameters(recurse=False):
                    p.copy_(self.trunk.get_submodule(path).get_parameter(name))
                for name, b in net.get_submodule(path).named_buffers(recurse=False):
                    b.copy_(own.get_submodule(path).get_buffer(name))
        return net


class SeparateNetworks(nn.Module):
    """Networks that share nothing, with the call and the outputs of a `BranchedNetwork`, but no maps."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.cache = ActivationCache("")
        self.heads = [classifier_path(net) for net in networks]
        for net, head in zip(networks, self.heads, strict=True):
            net.get_submodule(head).register_forward_pre_hook(self.cache.store_features)
        widths = [_classifier(net, head).in_features for net, head in zip(networks, self.heads, strict=True)]
        if len(set(widths)) > 1:
            raise InputError(
                f"the networks' classifiers take {', '.join(map(str, widths))} features, and attention compares "
                "them; give networks of one width, or train these with dml or kdcl"
            )

    @property
    def size(self) -> int:
        """The number of networks."""
        return len(self.networks)

    @property
    def width(self) -> int:
        """The width D of the features."""
        return _classifier(self.networks[0], self.heads[0]).in_features

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> BranchOutputs:
        """Return the outputs of all networks."""
        result = BranchOutputs()
        for net, own, head in zip(self.networks, inputs_of(self.size, x, views, named), self.heads, strict=True):
            result.logits.append(call_for_logits(net, own))
            if not net.get_submodule(head)._forward_pre_hooks:
                raise exchanged(head)
            result.features.append(features_of(self.cache, head))
            self.cache.end_pass()
        of_one_shape(result.logits)
        return result

    def plain(self, number: int, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of one of these."""
        return with_weights(new_model(), self.networks[number].state_dict())


def exchanged(name: str) -> InputError:
    """Return the error for a module that was exchanged after the networks were put together."""
    return InputError(
        f"{name} was exchanged after the method built its networks; exchange it in the function that build gets"
    )


def features_of(cache: ActivationCache, head: str) -> Tensor:
    """Return the input of the classifier in this pass (B, D), averaged over positions.

    Raises InputError if it was not called.
    """
    if cache.features is None:
        raise InputError(
            f"the last dense layer, {head}, is not called; this method needs one that gives the logits"
        )
    t = upcast_to_float32(cache.features)
    return t if t.ndim <= 2 else t.flatten(1, -2).mean(1)


def _classifier(net: nn.Module, path: str) -> nn.Linear:
    layer = net.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return layer


def build_branched(new_model: Callable[[], nn.Module], count: int, split_at: str | int) -> BranchedNetwork:
    """Make ``count`` networks and split them; see `BranchedNetwork`. A number is a part of a sequence."""
    return BranchedNetwork(fresh_networks(new_model, count), str(split_at))


def pooled(t: Tensor, width: int = 0) -> Tensor:
    """Return the mean over positions of maps or tokens as (B, C); vectors (B, C) as they are.

    Channels are the second dimension of maps and the last of tokens, or whichever has ``width`` of them.
    """
    t = upcast_to_float32(t)
    if t.ndim <= 2:
        return t
    channels_second = t.ndim == 4 if width not in (t.shape[1], t.shape[-1]) else t.shape[1] == width
    return t.flatten(2).mean(2) if channels_second else t.flatten(1, -2).mean(1)
