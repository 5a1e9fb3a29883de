"""A network of any kind split in two: one trunk, and several branches from a named module on.

The trunk is the network without the modules after the split point; its pass ends when the split point is reached.
A branch is the network with the modules before the split point replaced by stubs that replay the trunk's cached
outputs. So the trunk runs once, and whatever happens between modules is the network's own code.

A module counts as before the split point if it is registered before it (see `split_point`). A module that is
registered after the split point but used before it is refused when that shows, and so is one with weights that is
registered before it and used again after it. Parameters of the modules that contain the split point (a class
token, a position embedding) belong to the trunk and are shared by the branches.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.amp import upcast_to_float32
from steppe.core.model_call import call_model, extract_logits
from steppe.core.numerics.losses import mean_of
from steppe.errors import InputError
from steppe.models.multi.inputs import fresh_networks, inputs_of
from steppe.models.multi.split_point import (
    check_split,
    classifier_path,
    containers,
    default_split,
    input_width,
    modules_before_and_after,
    replace_module,
    without_modules,
)


@dataclass
class BranchOutputs:
    """The outputs of one forward pass, one of each list per branch.

    ``logits`` are (B, classes). ``features`` (B, D) are the inputs of the last dense layer. ``maps`` (B, D, H, W)
    are the last feature maps with as many channels, or the features as (B, D, 1, 1) if there are none. ``entered``
    (B, C) is the mean over positions of the input of the split point, on the first view.
    """

    logits: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    entered: Tensor = field(default_factory=lambda: torch.empty(0))


class _SplitReached(Exception):  # noqa: N818 - ends the trunk's pass, and is caught where that began
    """The trunk has reached the split point."""


class _ActivationCache:
    """Outputs of the trunk in this pass, and what the branch that runs has computed.

    ``outputs`` holds the outputs of each module before the split point, call by call; ``replayed`` how many of
    them the branch has used; ``split_inputs`` the arguments of the split point. ``features`` and ``maps`` are the
    branch's. The methods are hooks, so that a copy of the network has hooks on its own cache.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, list[Any]] = {}
        self.replayed: dict[str, int] = {}
        self.split_inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.features: Tensor | None = None
        self.maps: list[Tensor] = []

    def start_trunk(self) -> None:
        """Forget the last pass."""
        self.outputs, self.split_inputs = {}, None
        self.start_branch()

    def start_branch(self) -> None:
        """Replay from the first output on."""
        self.replayed = {}
        self.features, self.maps = None, []

    def store_output(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self.outputs.setdefault(name, []).append(output)

    def replay_split_inputs(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call the split point with the arguments that it had in the trunk."""
        return self.split_inputs

    def store_features(self, module: nn.Module, args: Any) -> None:
        self.features = args[0]

    def store_maps(self, module: nn.Module, args: Any, output: Any) -> None:
        """Store the output of a module if it is feature maps (B, C, H, W)."""
        if isinstance(output, Tensor) and output.ndim == 4:
            self.maps.append(output)


class _TrunkEnd(nn.Module):
    """The trunk's stub for the split point: it stores its arguments and ends the pass."""

    def __init__(self, cache: _ActivationCache):
        super().__init__()
        self.cache = cache

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.cache.split_inputs = (args, kwargs)
        raise _SplitReached


class _CachedModule(nn.Module):
    """A branch's stub for a module of the trunk: it replays that module's outputs.

    Called more often than the trunk did, it runs ``own``, a copy of the module, if that has no weights.
    """

    def __init__(self, cache: _ActivationCache, name: str, own: nn.Module | None):
        super().__init__()
        self.cache, self.name, self.own = cache, name, own

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs, call = self.cache.outputs.get(self.name, []), self.cache.replayed.get(self.name, 0)
        if call < len(outputs):
            self.cache.replayed[self.name] = call + 1
            return outputs[call]
        if self.own is not None:
            return self.own(*args, **kwargs)
        raise InputError(
            f"{self.name} is registered before split_at and used after it; choose a split_at before {self.name}"
        )


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
        self.split_at = split_at or default_split(networks[0])
        self.cache = _ActivationCache()
        before, after = modules_before_and_after(networks[0], self.split_at)
        check_split(networks[0], self.split_at, before, after)
        self.entry = input_width(networks[0].get_submodule(self.split_at))
        self.head = classifier_path(networks[0])
        for net in networks[1:]:
            if modules_before_and_after(net, self.split_at) != (before, after):
                raise InputError(f"split_at is {self.split_at!r} and the networks differ; build equal ones")
        self.trunk = without_modules(networks[0], after)
        replace_module(self.trunk, self.split_at, _TrunkEnd(self.cache))
        self.branches = nn.ModuleList(self._as_branch(net, before, after) for net in networks)
        for name in before:
            self.trunk.get_submodule(name).register_forward_hook(partial(self.cache.store_output, name))

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
        for number, (branch, own) in enumerate(zip(self.branches, inputs, strict=True)):
            if number == 0 or views is not None:
                self._run_trunk(own)
            if number == 0:
                result.entered = pooled(self._split_input(), self.entry)
            self.cache.start_branch()
            z = extract_logits(call_model(branch, own))
            features = self.cache.features
            assert features is not None
            result.logits.append(z)
            result.features.append(pooled(features))
            result.maps.append(self._last_map(result.features[-1]))
        self.cache.start_trunk()  # so that no activation outlives the pass
        return result

    def _run_trunk(self, x: Any) -> None:
        """Run the trunk up to the split point, which fills the cache."""
        self.cache.start_trunk()
        try:
            call_model(self.trunk, x)
        except _SplitReached:
            return
        raise InputError(f"split_at is {self.split_at!r}, which the network does not use; name another module")

    def _split_input(self) -> Tensor:
        """Return the first tensor among the arguments of the split point."""
        assert self.cache.split_inputs is not None
        args, kwargs = self.cache.split_inputs
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                return value
        raise InputError(f"split_at is {self.split_at!r}, which is not called with a tensor; name another module")

    def _last_map(self, features: Tensor) -> Tensor:
        """Return the last maps of as many channels as there are features, of several positions if possible."""
        maps = [m for m in self.cache.maps if m.shape[1] == features.shape[1]]
        large = [m for m in maps if m.shape[2] * m.shape[3] > 1]
        return (large or maps or [features[:, :, None, None]])[-1]

    def _as_branch(self, net: nn.Module, before: list[str], after: list[str]) -> nn.Module:
        """Replace the layers before the split point by stubs that replay the trunk's cached outputs."""
        for name in before:
            module = net.get_submodule(name)
            has_state = next(iter(module.state_dict()), None) is not None
            # a copy, because the hook on the trunk's own module would store its output
            own = None if has_state else copy.deepcopy(module)
            replace_module(net, name, _CachedModule(self.cache, name, own))
        for path in containers(self.split_at):
            net.get_submodule(path)._parameters.update(self.trunk.get_submodule(path)._parameters)
        split = net.get_submodule(self.split_at)
        split.register_forward_pre_hook(self.cache.replay_split_inputs, with_kwargs=True)
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
                net.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())
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
        self.cache = _ActivationCache()
        self.head = classifier_path(networks[0])
        for net in networks:
            net.get_submodule(self.head).register_forward_pre_hook(self.cache.store_features)

    @property
    def size(self) -> int:
        """The number of networks."""
        return len(self.networks)

    @property
    def width(self) -> int:
        """The width D of the features."""
        return _classifier(self.networks[0], self.head).in_features

    def forward(self, x: Any = None, *, views: Sequence[Any] | None = None, **named: Any) -> BranchOutputs:
        """Return the outputs of all networks."""
        result = BranchOutputs()
        for net, own in zip(self.networks, inputs_of(self.size, x, views, named), strict=True):
            result.logits.append(extract_logits(call_model(net, own)))
            assert self.cache.features is not None
            result.features.append(pooled(self.cache.features))
        self.cache.start_branch()
        return result

    def plain(self, number: int, new_model: Callable[[], nn.Module]) -> nn.Module:
        """Return a network from ``new_model`` with the weights of one of these."""
        net = new_model()
        net.load_state_dict(self.networks[number].state_dict())
        return net


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


def branch_outputs(net: nn.Module, x: Any, kind: type[nn.Module], last: str) -> dict[str, Tensor]:
    """Return by name the logits of each branch, their mean, and the module's last output, which ``last`` names.

    'deployed' is the first branch. A network that is not of this ``kind`` only has 'deployed'.
    """
    outputs = call_model(net, x)
    if not isinstance(net, kind):
        return {"deployed": extract_logits(outputs)}
    *branches, final = outputs
    named = {"deployed": branches[0]} | {f"branch {i}": z for i, z in enumerate(branches, 1)}
    return named | {"mean": mean_of(branches), last: final}
