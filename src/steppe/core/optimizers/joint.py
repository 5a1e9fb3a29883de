"""Several optimizers that train one model, with the interface of one; and what one optimizer holds inside."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.state.snapshot import Elsewhere
from steppe.errors import InputError


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers as one: ``step`` and ``zero_grad`` are made by each of them, in order.

    The parameter groups are the optimizers' own dictionaries, so that a scheduler of one of them works as before.
    The state dict is that of one optimizer with all the groups.

    Raises InputError for what is no optimizer, for none, and for a parameter that two of them hold.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self.optimizers = list(optimizers)
        if not self.optimizers:
            raise InputError("the list of optimizers is empty; give at least one")
        for optimizer in self.optimizers:
            _require_optimizer(optimizer)
        # groups, state and settings are the optimizers' own: only the hooks of step are made here
        super().__setstate__({"defaults": {}})
        holders: dict[int, str] = {}
        for optimizer in self.optimizers:
            name = type(optimizer).__name__
            for p in {id(p): p for group in optimizer.param_groups for p in group["params"]}.values():
                if id(p) in holders:
                    raise InputError(
                        f"a parameter {tuple(p.shape)} is in two optimizers, {holders[id(p)]} and {name}; "
                        "give each parameter to one"
                    )
                holders[id(p)] = name

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all the optimizers, in order."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        """What the optimizers keep for each parameter; a new dictionary of their own entries."""
        return {p: entry for optimizer in self.optimizers for p, entry in optimizer.state.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise InputError: a group belongs to one of the optimizers."""
        raise InputError("these are several optimizers; add the group to the one that is to train it")

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make each optimizer's step, after the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def train(self) -> None:
        """Switch those that evaluate other weights than they train to training."""
        for optimizer in self.optimizers:
            switch(optimizer, "train")

    def eval(self) -> None:
        """Switch those that evaluate other weights than they train to evaluation."""
        for optimizer in self.optimizers:
            switch(optimizer, "eval")

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all as that of one optimizer: the parameters are numbered through."""
        state: dict[Any, Any] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for optimizer in self.optimizers:
            own = optimizer.state_dict()
            state |= {first + key: entry for key, entry in own["state"].items()}
            groups += [g | {"params": [first + i for i in g["params"]]} for g in own["param_groups"]]
            first += _count(optimizer)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; raises InputError if the numbers of groups or parameters differ."""
        groups, first, start = state_dict["param_groups"], 0, 0
        sizes = [[len(g["params"]) for g in groups], [len(g["params"]) for g in self.param_groups]]
        if sizes[0] != sizes[1]:
            raise InputError(f"the state has groups of {sizes[0]} parameters and the optimizers of {sizes[1]}")
        for optimizer in self.optimizers:
            end, stop = first + _count(optimizer), start + len(optimizer.param_groups)
            state = {key - first: entry for key, entry in state_dict["state"].items() if first <= key < end}
            own = [g | {"params": [i - first for i in g["params"]]} for g in groups[start:stop]]
            optimizer.load_state_dict({"state": state, "param_groups": own})
            first, start = end, stop

    def __repr__(self) -> str:
        return f"JointOptimizer({', '.join(type(o).__name__ for o in self.optimizers)})"


def _count(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _require_optimizer(optimizer: Any) -> None:
    if hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step"):
        raise InputError(f"{type(optimizer).__name__} makes SAM steps itself; bind its base optimizer")
    if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "step")):
        raise InputError(
            f"optimizer is of type {type(optimizer).__name__}; give a torch.optim.Optimizer of the model's "
            "parameters"
        )


def joined(optimizer: Any) -> torch.optim.Optimizer:
    """Return an optimizer as it is, several in a list as one; raises InputError for what is neither."""
    if isinstance(optimizer, list | tuple) and len(optimizer) != 1:
        return JointOptimizer(optimizer)
    optimizer = optimizer[0] if isinstance(optimizer, list | tuple) else optimizer
    _require_optimizer(optimizer)
    one: torch.optim.Optimizer = optimizer
    return one


def parts_of(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """Return the optimizers that are joined in one, else the optimizer itself."""
    return optimizer.optimizers if isinstance(optimizer, JointOptimizer) else [optimizer]


def with_inner(optimizer: Any) -> list[torch.optim.Optimizer]:
    """Return an optimizer and those that it wraps, at any depth."""
    optimizers: dict[int, Any] = {}
    stack = [optimizer]
    while stack:
        one = stack.pop()
        if id(one) in optimizers:
            continue
        optimizers[id(one)] = one
        if isinstance(one, JointOptimizer):
            stack += one.optimizers  # also those that only have the interface of an optimizer
        for value in getattr(one, "__dict__", {}).values():
            values = value if isinstance(value, list | tuple) else (value,)
            stack += [v for v in values if isinstance(v, torch.optim.Optimizer)]
    return list(optimizers.values())


def states_of(optimizers: Iterable[Any]) -> list[dict[Any, Any]]:
    """Return the state dictionaries of optimizers, each once; one that wraps another may share them."""
    own = (o.state for o in optimizers if hasattr(o, "state") and not isinstance(o, JointOptimizer))
    return list({id(state): state for state in own}.values())


def groups_of(optimizers: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the parameter groups of optimizers, each once."""
    return list({id(group): group for o in optimizers for group in o.param_groups}.values())


def switch(optimizer: Any, mode: str) -> None:
    """Call ``optimizer.train()`` or ``optimizer.eval()``, if it has one, as schedule-free optimizers do."""
    function = getattr(optimizer, mode, None)
    if callable(function):
        function()


@contextmanager
def evaluation_weights(optimizer: Any) -> Iterator[None]:
    """Within it the parameters have the weights that a schedule-free optimizer evaluates: x instead of y.

    Such an optimizer has ``train`` and ``eval``, and ``train_mode`` in its groups or as an attribute. On leaving,
    weights and modes are what they were, bit for bit. It does nothing for other optimizers, or in evaluation mode.
    """
    modes: list[Any] = [o for o in with_inner(optimizer) if _trains(o)]
    if not modes:
        yield
        return
    groups = [g for o in modes for g in o.param_groups if g.get("train_mode")]
    whole = [o for o in modes if _has_mode(o)]
    moved = chain(groups, *(o.param_groups for o in whole))
    params = {id(p): p for p in chain.from_iterable(g["params"] for g in moved)}

    def change() -> None:
        for one in modes:
            switch(one, "eval")

    def leave() -> None:
        for group in groups:
            group["train_mode"] = True
        for one in whole:
            one.train_mode = True

    with Elsewhere(list(params.values()), change, leave=leave):
        yield


def _trains(optimizer: Any) -> bool:
    modes = all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))
    return modes and (_has_mode(optimizer) or any(group.get("train_mode") for group in optimizer.param_groups))


def _has_mode(optimizer: Any) -> bool:
    """Return whether this is in training mode by an attribute, as `schedulefree.ScheduleFreeWrapper`."""
    return getattr(optimizer, "train_mode", None) is True


def names_of(net: nn.Module, params: Sequence[Tensor], most: int = 3) -> str:
    """Return the first names of parameters in the network, for a message."""
    names = {id(p): name for name, p in net.named_parameters()}
    own = [names.get(id(p), f"{tuple(p.shape)}") for p in params[:most]]
    return ", ".join(own) + (", ..." if len(params) > most else "")
