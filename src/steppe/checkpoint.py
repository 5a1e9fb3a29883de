"""Checkpoints: one safetensors file with its plain data in the header, written whole or not at all.

Tensors and JSON only: loading one never runs code from it. A checksum over everything tells a damaged file
from a sound one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steppe.errors import InputError
from steppe.records import write_text

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and plain data that belong together."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with ``name.``, without it."""
        return {k.removeprefix(name + "."): v for k, v in self.tensors.items() if k.startswith(name + ".")}


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under ``name.``."""
    return {f"{name}.{k}": v for k, v in tensors.items()}


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; raises RunError if the disk is full or the folder cannot be written."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    data = json.dumps(checkpoint.data, sort_keys=True)
    header = {"steppe": str(FORMAT), "data": data, "sha256": _checksum(tensors, data)}
    write_text(path, save({k: v.clone() for k, v in tensors.items()}, header))


def read(path: Path) -> Checkpoint:
    """Read and verify; raises InputError, naming the file and the remedy, if it is damaged."""
    try:
        with safe_open(path, framework="pt") as f:
            header = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - safe_open is no mapping
        data = header["data"]
        sound = header["sha256"] == _checksum(tensors, data)
        content = json.loads(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"checkpoint {path} is damaged ({reason}); {_REMEDY}") from None
    except OSError as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror or error}; {_REMEDY}") from None
    if not sound:
        raise InputError(f"checkpoint {path} is damaged (its checksum does not match); {_REMEDY}")
    return Checkpoint(tensors, content)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and plain data."""
    content = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, state in content["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                plain[f"{index}.{key}"] = value
    return tensors, {"groups": content["param_groups"], "plain": plain}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], data: Mapping[str, Any]
) -> None:
    """Load what `pack_optimizer` gave, each tensor in the memory layout of its parameter.

    Fused optimizers walk parameter and state side by side in memory, so equal values in another layout
    would be other values to them.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *data["plain"].items()]:
        index, key = name.split(".", 1)
        param = params[int(index)]
        if isinstance(value, Tensor) and value.shape == param.shape:
            value = torch.empty_like(param, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": data["groups"]})


_REMEDY = "delete it to start this run from its beginning"


def _checksum(tensors: Mapping[str, Tensor], data: str) -> str:
    digest = hashlib.sha256(data.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return digest.hexdigest()
