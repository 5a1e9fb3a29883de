"""A checkpoint file: safetensors with plain data in its header, written atomically.

It has tensors and JSON only, so loading never runs code from it. A checksum over everything detects damage.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steppe.core.numerics.vector import sharded
from steppe.errors import InputError
from steppe.records import write_text


class CorruptCheckpoint(InputError):  # noqa: N818 - named after the state of the file
    """A file of a checkpoint is damaged or missing."""


class LazyTensors(Mapping[str, Tensor]):
    """Named tensors that are read when they are accessed, each by its function in ``read``."""

    def __init__(self, read: Mapping[str, Callable[[], Tensor]]):
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        return self._read[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._read

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and plain data."""

    tensors: Mapping[str, Tensor]
    data: dict[str, Any]

    def part(self, name: str) -> Mapping[str, Tensor]:
        """Return the tensors whose names start with ``name.``, without it."""
        prefix = f"{name}."
        names = [k for k in self.tensors if k.startswith(prefix)]
        return LazyTensors({k.removeprefix(prefix): partial(self.tensors.__getitem__, k) for k in names})


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under ``name.``."""
    return {f"{name}.{k}": v for k, v in tensors.items()}


def write(path: Path, checkpoint: Checkpoint) -> str:
    """Write atomically and return the checksum; raises what `steppe.records.write_text` raises."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    data = json.dumps(checkpoint.data)
    checksum = _checksum(tensors, data)
    # cloned because the format refuses tensors that share memory, as tied weights do
    write_text(path, save({k: v.clone() for k, v in tensors.items()}, {"data": data, "sha256": checksum}))
    return checksum


def read(path: Path) -> Checkpoint:
    """Read and verify a checkpoint; raises CorruptCheckpoint with the file and the remedy if it is damaged."""
    saved, _ = opened(path)
    return Checkpoint(dict(saved.tensors), saved.data)


def opened(path: Path) -> tuple[Checkpoint, str]:
    """Verify a checkpoint as `read` does; return it, with tensors that are read lazily, and its checksum."""
    try:
        content: Any = safe_open(path, framework="pt")
        tensors = LazyTensors({name: partial(content.get_tensor, name) for name in content.keys()})  # noqa: SIM118
        header = content.metadata() or {}
        data = header["data"]
        checksum = _checksum(tensors, data)
        plain, expected = json.loads(data), header["sha256"]
        if not isinstance(plain, dict):
            raise ValueError("its data is not an object")
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptCheckpoint(f"checkpoint {path} is damaged ({reason}); {REMEDY}") from None
    except FileNotFoundError:
        raise CorruptCheckpoint(f"checkpoint {path} is missing; {REMEDY}") from None
    except OSError as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror or error}; {REMEDY}") from None
    if expected != checksum:
        raise CorruptCheckpoint(f"checkpoint {path} is damaged (its checksum does not match); {REMEDY}")
    return Checkpoint(tensors, plain), checksum


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and plain data."""
    content = optimizer.state_dict()
    values = {f"{index}.{key}": v for index, state in content["state"].items() for key, v in state.items()}
    tensors = {k: v for k, v in values.items() if isinstance(v, Tensor)}
    plain = {k: v for k, v in values.items() if k not in tensors}
    return tensors, {"groups": content["param_groups"], "plain": plain}


def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into ``target``, into a shard this process's rows; InputError if shapes differ."""
    if target.shape != value.shape:
        raise InputError(
            f"a tensor of the checkpoint is {tuple(value.shape)}, not {tuple(target.shape)}; {REMEDY}"
        )
    with torch.no_grad():
        if sharded(target):
            start, local = shard_of(target)
            local.copy_(value[start : start + len(local)])
        else:
            target.copy_(value)


def shard_of(t: Tensor) -> tuple[int, Tensor]:
    """Return the first row of this process's shard of a sharded tensor, and the shard itself.

    Rows must be split as by `torch.chunk`, FSDP2's default; any other placement raises InputError.
    """
    dtensor: Any = t
    if dtensor.device_mesh.ndim != 1 or not dtensor.placements[0].is_shard(0):
        raise InputError(f"a tensor is sharded as {dtensor.placements}; only shards of rows can be saved")
    local: Tensor = dtensor.to_local()
    each = -(-t.shape[0] // dtensor.device_mesh.size())
    return min(each * dtensor.device_mesh.get_local_rank(), t.shape[0]), local


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], data: Mapping[str, Any]
) -> None:
    """Load what `pack_optimizer` returned, each tensor in the memory layout and sharding of its parameter.

    Fused optimizers read parameter and state in the order of memory, so a state in another layout would be wrong.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in chain(tensors.items(), data["plain"].items()):
        index, key = name.split(".", 1)
        param = params[int(index)]
        if isinstance(value, Tensor) and value.shape == param.shape:
            whole, value = value, torch.zeros_like(param, dtype=value.dtype)
            fill(value, whole)
        state.setdefault(int(index), {})[key] = value
    present = [{k: group[k] for k in _KERNELS if k in group} for group in optimizer.param_groups]
    groups = [{**saved, **own} for saved, own in zip(data["groups"], present, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


# implementations of the same update; sharded and unsharded parameters need different ones
_KERNELS = ("fused", "foreach")
REMEDY = "delete it to start this run from its beginning"
TRAIN_AGAIN = (
    "name another run, or delete this run's folder and train it again"  # instead, where nothing is trained
)


def _checksum(tensors: Mapping[str, Tensor], data: str) -> str:
    digest = hashlib.sha256(data.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return digest.hexdigest()
