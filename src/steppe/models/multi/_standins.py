"""Stand-ins for the modules that a trunk or a branch does not run: they have those modules' attributes.

A trunk has stand-ins from the split point on, the first of which ends its pass. A branch has stand-ins before the
split point, which replay the trunk's outputs, call by call. Networks may read attributes of the modules in whose
place they are, iterate over them, or call modules inside them.
"""

from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from steppe.errors import InputError

_REMEDY = "name another module, or train whole networks (dml, kdcl, okdph, okddip:form=network)"


class SplitReached(Exception):  # noqa: N818 - ends the trunk's pass, and is caught where that began
    """The trunk has reached the split point."""


class ActivationCache:
    """Outputs of the trunk in this pass, and what the branch that runs has computed.

    ``calls`` are the outermost calls of modules before the split point, with their outputs; ``replayed`` counts
    those that the branch has repeated; ``split_inputs`` are the arguments of the split point, ``first_input`` is
    that of its first layer. ``features`` and ``maps`` are the branch's. The methods are hooks, so that a copy of
    the network has hooks on its own cache.
    """

    def __init__(self, split_at: str) -> None:
        self.split_at = split_at
        self.end_pass()

    def end_pass(self) -> None:
        """Forget the pass, so that no activation outlives it."""
        self.phase = "none"  # or "trunk"; "replay" and, from the split point on, "branch"
        self.calls: list[tuple[str, Any]] = []
        self.depth = 0
        self.split_inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.versions: list[int] = []
        self.start_branch()

    def start_trunk(self) -> None:
        """Forget the last trunk's pass and record a new one."""
        self.end_pass()
        self.phase = "trunk"

    def start_branch(self) -> None:
        """Replay from the first call on."""
        if self.phase != "none":
            self.phase = "replay"
        self.replayed = 0
        self.first_input: Any = None
        self.features: Tensor | None = None
        self.maps: list[Tensor] = []

    def end_trunk(self, *args: Any, **kwargs: Any) -> None:
        """Store the arguments of the split point, and how often each activation was changed in place."""
        self.split_inputs, self.phase = (args, kwargs), "replay"
        self.versions = self.changes_in_place()

    def record_start(self, module: nn.Module, args: Any) -> None:
        """Count the calls in each other."""
        self.depth += self.phase == "trunk"

    def record_output(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        """Store the output of a call, unless the call is part of another one."""
        if self.phase == "trunk":
            self.depth -= 1
            if not self.depth:
                self.calls.append((path, output))

    def replay(self, path: str) -> Any:
        """Return the output of the next call, which the trunk made of the module at ``path``."""
        expected, output = self.calls[self.replayed] if self.replayed < len(self.calls) else ("no other", None)
        if expected != path:
            raise InputError(
                f"split_at is {self.split_at!r}, and a branch calls {path} where the trunk called {expected}; "
                + _REMEDY
            )
        self.replayed += 1
        return _own(output)

    def replay_split_inputs(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call the split point with the arguments that it had in the trunk, the first time."""
        if self.phase != "replay":
            return args, kwargs
        self.phase = "branch"
        return _own(self.split_inputs)

    def check_unchanged(self) -> None:
        """Raise InputError if a branch has changed an activation of the trunk in place."""
        if self.changes_in_place() != self.versions:
            raise InputError(
                f"split_at is {self.split_at!r}, and the network changes an activation before it in place; "
                + _REMEDY
            )

    def changes_in_place(self) -> list[int]:
        """Return how often each activation has been changed in place."""
        leaves = tree_leaves((self.split_inputs, [output for _, output in self.calls]))
        return [t._version for t in leaves if isinstance(t, Tensor) and not t.is_inference()]

    def store_first_input(self, module: nn.Module, args: Any) -> None:
        """Store the first input of the first layer from the split point on."""
        if self.first_input is None and args:
            self.first_input = args[0]

    def store_features(self, module: nn.Module, args: Any) -> None:
        """Store the input of the classifier."""
        self.features = args[0]

    def store_maps(self, module: nn.Module, args: Any, output: Any) -> None:
        """Store the output of a module if it is feature maps (B, C, H, W)."""
        if isinstance(output, Tensor) and output.ndim == 4:
            self.maps.append(output)

    def record(self, path: str, module: nn.Module) -> None:
        """Store what a module of the trunk, or one inside it, returns."""
        for name, m in module.named_modules(prefix=path):
            m.register_forward_pre_hook(self.record_start)
            m.register_forward_hook(partial(self.record_output, name))


def _own(value: Any) -> Any:
    """Return a value with lists and dictionaries of its own, which a network may change, and the same tensors."""
    return value if isinstance(value, Tensor) else tree_map(lambda leaf: leaf, value)


class Standin(nn.Module):
    """In the place of ``source``, with its attributes; without weights of its own, and with stand-ins inside it.

    During a pass it is an instance of the source's class.
    """

    def __init__(self, cache: ActivationCache, path: str, source: nn.Module, memo: dict[int, nn.Module]):
        super().__init__()
        self.cache_, self.path_ = cache, path
        self.source_ = (source,)  # in a tuple, so that its weights are not this module's too
        memo[id(source)] = self
        for name, m in source._modules.items():
            inner = None if m is None else memo.get(id(m)) or type(self)(cache, f"{path}.{name}", m, memo)
            self._modules[name] = inner
        self.training = source.training

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        running = "cache_" in self.__dict__ and self.cache_.phase != "none"
        return type(self.source_[0]) if running else type(self)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        if "source_" not in self.__dict__:
            raise AttributeError(name)
        source = self.source_[0]
        value = getattr(source, name)
        # so that a method calls the stand-ins of the modules inside
        return MethodType(value.__func__, self) if getattr(value, "__self__", None) is source else value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the source's code on the stand-ins inside; a call of ``forward`` itself passes no hooks."""
        return type(self.source_[0]).forward(self, *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        iterator: Iterator[Any] = type(self.source_[0]).__iter__(self)  # type: ignore[attr-defined]
        return iterator

    def __getitem__(self, key: Any) -> Any:
        kind: Any = type(self.source_[0])
        return kind.__getitem__(self, key)

    def __len__(self) -> int:
        return len(self.source_[0])  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return bool(self.source_[0])


class TrunkEnd(Standin):
    """The trunk's stand-in for the split point and what follows: the split point ends the pass.

    A module without weights that is used before the split point is run; the branches repeat it, so it must not be
    random.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Store the arguments and end the pass."""
        split_at = self.cache_.split_at
        if self.path_ == split_at:
            self.cache_.end_trunk(*args, **kwargs)
            raise SplitReached
        if self.path_.startswith(f"{split_at}."):
            raise InputError(f"split_at is {split_at!r}, which is not called itself; name {self.path_!r}")
        random = any("Drop" in type(m).__name__ for m in self.source_[0].modules())
        if not random and next(iter(self.source_[0].state_dict()), None) is None:
            return self.source_[0](*args, **kwargs)
        raise InputError(
            f"split_at is {split_at!r}, and {self.path_} is called before it though registered after it; {_REMEDY}"
        )


class CachedModule(Standin):
    """A branch's stand-in for a module of the trunk: it replays that module's outputs.

    Called after the split point, it runs the module itself, if that has no weights.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the trunk's output of this call."""
        if self.cache_.phase == "replay":
            return self.cache_.replay(self.path_)
        if next(iter(self.source_[0].state_dict()), None) is None:
            return self.source_[0](*args, **kwargs)
        raise InputError(
            f"{self.path_} is registered before split_at and used after it; choose a split_at before "
            f"{self.path_}, or train whole networks (dml, kdcl, okdph, okddip:form=network)"
        )
