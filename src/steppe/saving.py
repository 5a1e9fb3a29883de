"""What a run keeps on disk to go on from: its checkpoint, and the weights of its best epoch.

Written and read by all processes of a run together. Random streams are numbered: on as many processes as before
each goes on where it was, so that the run ends with the same bits. On another number of processes a stream that
the checkpoint has goes on, and one that it has not is derived from seed, number and step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steppe import checkpoint, shards, team
from steppe.checkpoint import Checkpoint
from steppe.errors import InputError
from steppe.step import Step
from steppe.vec import sharded

CHECKPOINT = "checkpoint.safetensors"


def derive(seed: int, purpose: str) -> int:
    """Return a 62-bit seed for one purpose of a run; seeds of different purposes are unrelated."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big") >> 2


@dataclass(frozen=True)
class Store:
    """The saved state of one run in its folder; ``net`` is the network below wrappers, ``seed`` the run's."""

    folder: Path
    net: nn.Module
    step: Step
    optimizer: torch.optim.Optimizer
    seed: int

    def save(self, content: Mapping[str, Any], *, improved: bool) -> None:
        """Save the best weights, then the checkpoint that names them, then drop what is older.

        ``content`` is what the trainer keeps, with the present ``epoch`` and the ``best`` one.
        """
        self.step.runtime.ranks.settle()
        best, path = self.folder / _best_name(content["best"]["epoch"]), self.folder / CHECKPOINT
        if improved:
            shards.write(best, Checkpoint(self._weights(), {"epoch": content["epoch"]}), best.stem)
        own = self.step.state_dict()
        optimizer, optimizer_data = checkpoint.pack_optimizer(self.optimizer)
        tensors = (
            self._weights()
            | checkpoint.prefixed("optimizer", optimizer)
            | checkpoint.prefixed("generators", self._streams(own["generators"]))
        )
        data = {
            "digest": self.folder.name,
            **content,
            **{name: own[name] for name in ("method", "passes", "scaler")},
            "optimizer": optimizer_data,
        }
        mark = f"{path.stem}-{content['epoch']}"
        shards.write(path, Checkpoint(tensors, data), mark)
        team.here().first(lambda: self._tidy(best, mark))

    def resume(self) -> dict[str, Any] | None:
        """Go on from the checkpoint and return what the trainer keeps, None if there is no checkpoint.

        Raises InputError, on all processes, if it is damaged or another run's.
        """
        path = self.folder / CHECKPOINT
        here = team.here()
        return here.all(lambda: self._resume(path)) if here.first(path.exists) else None

    def load_best(self, epoch: int) -> None:
        """Put the best epoch's weights in place; raises InputError, on all processes, if they are damaged."""
        team.here().all(lambda: self._load_weights(shards.read(self.folder / _best_name(epoch))))

    def _resume(self, path: Path) -> dict[str, Any]:
        saved = shards.read(path)
        try:
            self._take(saved, path)
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            # sound as a file, and made by another program or version
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise InputError(f"checkpoint {path} does not fit this run ({reason}); {checkpoint.REMEDY}") from error
        return saved.data

    def _take(self, saved: Checkpoint, path: Path) -> None:
        data = saved.data
        if data["digest"] != self.folder.name:
            raise InputError(
                f"checkpoint {path} belongs to run {data['digest']}; delete it to start this run anew"
            )
        counts = data["epoch"], data["best"]["epoch"]
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ValueError(f"epochs {counts[0]!r} and {counts[1]!r}")
        self._load_weights(saved)
        checkpoint.unpack_optimizer(self.optimizer, saved.part("optimizer"), data["optimizer"])
        self.step.load_state_dict(
            {
                "method": data["method"],
                "state": self.step.state.state_dict(),
                "generators": self._own_streams(saved),
                "passes": data["passes"],
                "scaler": data.get("scaler", {}),
            }
        )

    def _weights(self) -> dict[str, Tensor]:
        net = checkpoint.prefixed("net", self.net.state_dict())
        return net | checkpoint.prefixed("state", self.step.state.state_dict())

    def _load_weights(self, saved: Checkpoint) -> None:
        self.step.runtime.ranks.settle()
        for name, target in checkpoint.prefixed("net", self.net.state_dict()).items():
            checkpoint.fill(target, self._held(saved, name))
        remembered = {}
        for name, target in self.step.state.state_dict().items():
            value = self._held(saved, f"state.{name}")
            if sharded(target):
                checkpoint.fill(target, value)
            # what is remembered may have grown, so the state itself takes it in
            remembered[name] = target if sharded(target) else value
        self.step.state.load_state_dict(remembered)

    def _held(self, saved: Checkpoint, name: str) -> Tensor:
        if name not in saved.tensors:
            raise InputError(f"the checkpoint in {self.folder} has no {name}; {checkpoint.REMEDY}")
        return saved.tensors[name]

    def _numbers(self) -> dict[str, int]:
        """Return the number of each of this process's random streams; equal numbers are equal streams."""
        ranks = self.step.runtime.ranks
        return {"noise": ranks.noise, "masks": ranks.rank}

    def _streams(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the states of all processes' random streams."""
        numbers = self._numbers()
        held: dict[str, Tensor] = {}
        for states in team.here().every({_stream(k, numbers[k]): state for k, state in own.items()}):
            held |= states
        return held

    def _own_streams(self, saved: Checkpoint) -> dict[str, Tensor]:
        states = {}
        for name, number in self._numbers().items():
            held = f"generators.{_stream(name, number)}"
            if held in saved.tensors:
                states[name] = saved.tensors[held]
            else:
                seed = derive(self.seed, f"{name} {number} from step {saved.data['passes']['steps']}")
                device = self.step.runtime.generators()[name].device
                states[name] = torch.Generator(device=device).manual_seed(seed).get_state()
        return states

    def _tidy(self, best: Path, mark: str) -> None:
        """Drop the weights and shards of older epochs."""
        kept = tuple(f"{shards.PREFIX}{m}-" for m in (best.stem, mark))
        for old in [*self.folder.glob(_best_name("*")), *self.folder.glob(f"{shards.PREFIX}*")]:
            if old != best and not old.name.startswith(kept):
                old.unlink(missing_ok=True)


def _stream(name: str, number: int) -> str:
    return f"{name}.{number}" if number else name


def _best_name(epoch: int | str) -> str:
    return f"best-{epoch}.safetensors"
