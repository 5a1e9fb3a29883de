"""Methods in other libraries' training loops: one module for each library."""

import json
import pickle
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steppe import methods
from steppe.core.method import Method, name_of, overrides
from steppe.core.numerics import vector
from steppe.core.step import Step
from steppe.errors import InputError
from steppe.training.checkpoint.file import Checkpoint, prefixed, read, write

STATE, PARTS = "steppe.safetensors", ("state", "generators")  # the file, and its parts that are tensors


def ready(method: Method | str) -> Method:
    """Return the method, parsed as by `steppe.parse` if it is text.

    Raises InputError for any other type, and for a method of several networks, which builds the model itself.
    """
    method = methods.parse(method) if isinstance(method, str) else method
    if not isinstance(method, Method):
        raise InputError(f"method is of type {type(method).__name__}; give steppe.SAM(), say, or 'sam:rho=0.1'")
    if overrides(method, "build"):
        raise InputError(
            f"{name_of(method)} trains several networks or branches, which it builds itself; use steppe train"
        )
    return method


def deployed(step: Step | None, model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which the model has the deployed weights; it does nothing if ``step`` trains another."""
    return nullcontext() if step is None or step.runtime.net is not model else step.deployed_weights()


def deployed_by(method: Method | str, model: nn.Module, state: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Return a context in which the model has the weights that a saved ``state`` of the method deploys."""
    method = ready(method)
    if not overrides(method, "deployed_weights"):
        return nullcontext()
    own = method.init(model)
    try:
        own.load_state_dict(state["state"])
    except (KeyError, RuntimeError):
        raise InputError(f"the state is of {state.get('method')}, not of {method!r} on this model") from None
    return method.deployed_weights(model, own)


def load_deployed(model: nn.Module, method: Method | str, checkpoint: str | Path | Mapping[str, Any]) -> None:
    """Load the weights that a method deploys (the mean of EMA and SWA) from a checkpoint into the model.

    The model must have the checkpoint's own, trained weights; they stay where the method deploys them.

    Args:
        model: The network; a Lightning checkpoint needs the LightningModule.
        method: The method of the training, or its text.
        checkpoint: A `SteppeTrainer`'s checkpoint folder, a file of Lightning or timm, or its content, or what
            ``step.state_dict()`` returned.

    Raises:
        InputError: The checkpoint cannot be read, or has no state of this method.
    """
    state: Any = checkpoint
    if not isinstance(state, Mapping):
        path = Path(state)
        try:
            state = read_state(path) if path.is_dir() else torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"cannot read {path}: {reason}; give its content, as torch.load returns it") from None
    state = (state or {}).get("steppe", state)
    state = state[0] if isinstance(state, list) else state  # one for each process; all deploy the same
    if not state or "state" not in state:
        raise InputError(
            f"{checkpoint if isinstance(checkpoint, str | Path) else 'the checkpoint'} has no state "
            "of a method; give a checkpoint that was saved while the method trained"
        )
    with deployed_by(method, model, state):
        weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)


def check_modes(method: Method, optimizer: Any) -> None:
    """Raise InputError for EMA or SWA with a schedule-free optimizer: both exchange the weights for evaluation."""
    if overrides(method, "deployed_weights") and hasattr(optimizer, "eval"):
        raise InputError(
            f"the optimizer averages the weights itself, and so does {method!r}; leave one of them out"
        )


def check_accelerator(accelerator: Any) -> None:
    """Raise InputError for ways of sharing a model among processes that no method can train."""
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        raise InputError(f"distributed_type is {kind}, which does not expose gradients; use DDP or FSDP2")
    plugin = getattr(getattr(accelerator, "state", None), "fsdp_plugin", None)
    if kind == "FSDP" and getattr(plugin, "fsdp_version", 1) == 1:
        raise InputError(
            "fsdp_version is 1, where each process has the norm of its own shard; use fsdp_version: 2"
        )
    config = getattr(accelerator, "parallelism_config", None)
    for name in ("cp", "sp"):
        if getattr(config, f"{name}_enabled", False):
            raise InputError(f"{name}_size is above 1, which divides each sample; use DDP or FSDP2")


def write_state(folder: Path, state: dict[str, Any], rank: int, world: int) -> None:
    """Save a method's state of one process in a checkpoint folder, shards as whole tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Any] = {k: v for part in PARTS for k, v in prefixed(part, state[part]).items()}
    tensors = {k: v.full_tensor() if vector.sharded(v) else v for k, v in tensors.items()}
    data = {k: state[k] for k in ("method", "passes", "scaler")} | {"processes": world}
    write(folder / _name(rank), Checkpoint(tensors, json.loads(json.dumps(data))))


def read_state(folder: Path, rank: int = 0, world: int | None = None) -> dict[str, Any] | None:
    """Return a method's state of one process from a checkpoint folder, None without one.

    Raises InputError if ``world`` processes are not as many as saved it: each has its own random state.
    """
    paths = [path for path in (folder / _name(rank), folder / STATE) if path.exists()]
    if not paths:
        return None
    content = read(paths[0])
    if world is not None and (saved := content.data.get("processes", world)) != world:
        raise InputError(f"the checkpoint has {saved} processes and this run {world}; start as many")
    return {**content.data, **{part: dict(content.part(part)) for part in PARTS}}


def load_state(step: Step, state: dict[str, Any]) -> None:
    """Load what `read_state` returned into a step, also of a sharded model."""
    own, parts = step.state.state_dict(), {}
    for name, value in state["state"].items():
        target: Any = own.get(name)
        if vector.sharded(target):
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
        parts[name] = value
    step.load_state_dict({**state, "state": parts})


def _name(rank: int) -> str:
    return f"steppe-{rank}.safetensors" if rank else STATE
