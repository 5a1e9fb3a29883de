"""The checkpoints of a run: the newest, the one before in case of damage, and the best epoch's weights.

All processes of a run write and read them together. Generators are numbered: one whose state is in the checkpoint
resumes, so that a run on as many processes ends with the same bits; any other is seeded from the run's seed, its
number and the step.
"""

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steppe import records
from steppe.core.numerics.vector import sharded
from steppe.core.optimizers.joint import evaluation_weights
from steppe.core.step import Step
from steppe.distributed import collectives
from steppe.errors import InputError
from steppe.training.checkpoint import file
from steppe.training.checkpoint import sharded as shards
from steppe.training.checkpoint.file import Checkpoint, CorruptCheckpoint

CHECKPOINT = "checkpoint.safetensors"
BEFORE = "checkpoint-before.safetensors"
DAMAGED = "checkpoint-damaged.safetensors"

_log = logging.getLogger(__name__)


def derive(seed: int, purpose: str) -> int:
    """Return a 62-bit seed for one purpose of a run; seeds of different purposes are unrelated."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big") >> 2


def save_seconds() -> float:
    """Return how long a run goes on, at least, before it is saved again: what is lost if it is killed.

    It is that of the environment variable STEPPE_SAVE_SECONDS, else 1 second.

    Raises InputError for what is no number.
    """
    text = os.environ.get("STEPPE_SAVE_SECONDS", "1")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        raise InputError(
            f"STEPPE_SAVE_SECONDS is {text!r}; give a number of seconds, or 0 to save after every epoch"
        )
    return seconds


def verify(folder: Path) -> None:
    """Verify a run's checkpoint; a damaged one is logged and replaced by the previous one.

    Raises CorruptCheckpoint if that is missing or damaged too.
    """
    try:
        shards.read(folder / CHECKPOINT)
    except CorruptCheckpoint as error:
        _step_back(folder, error)


def _step_back(folder: Path, error: CorruptCheckpoint) -> None:
    path, before = folder / CHECKPOINT, folder / BEFORE
    if not before.exists():
        raise error
    reason = str(error).removesuffix(f"; {file.REMEDY}")
    try:
        epoch = shards.read(before).data["epoch"]
    except (CorruptCheckpoint, KeyError):
        raise CorruptCheckpoint(f"{reason}, and so is the one before it; {file.REMEDY}") from None
    records.keep_as(path, folder / DAMAGED)
    records.keep_as(before, path)
    # both names are one file now, which a bad block would damage under both
    before.unlink(missing_ok=True)
    instead = "it is kept as %s, and the run goes on from the one before it, of epoch %d"
    _log.warning("%s; " + instead, reason, DAMAGED, epoch)


@dataclass(frozen=True)
class CheckpointStore:
    """The saved state of one run in its folder; ``net`` is the unwrapped network, ``seed`` the run's."""

    folder: Path
    net: nn.Module
    step: Step
    optimizer: torch.optim.Optimizer
    seed: int
    # names in the files of the previous checkpoint and of the newest
    _marks: list[tuple[str, str]] = field(default_factory=list)
    # the best weights, if they are not saved yet
    _best: list[Checkpoint] = field(default_factory=list)

    def hold_best(self, epoch: int) -> None:
        """Copy the weights of an epoch, the best one, for the next `save`."""
        self.step.runtime.parallel.reshard()
        with evaluation_weights(self.optimizer):
            # on the host, which has room where a GPU may have none
            weights = {
                name: t.detach().clone() if sharded(t) else t.detach().to("cpu", copy=True)
                for name, t in self._weights().items()
            }
        self._best[:] = [Checkpoint(weights, {"epoch": epoch})]

    def save(self, content: Mapping[str, Any], *, improved: bool, weights_only: bool = False) -> None:
        """Save the best weights, then the checkpoint that names them, then remove files of older checkpoints.

        ``content`` is the trainer's state, with the current ``epoch`` and the ``best`` one. ``weights_only`` omits
        the states of the optimizer and of the generators, which only further steps need.
        """
        self.step.runtime.parallel.reshard()
        path, (best, mark) = self.folder / CHECKPOINT, _marks(content)
        if improved:
            with evaluation_weights(self.optimizer):
                weights = Checkpoint(self._weights(), {"epoch": content["epoch"]})
                shards.write(self.folder / f"{best}.safetensors", weights, best)
        elif self._best:
            shards.write(self.folder / f"{best}.safetensors", self._best[0], best)
        self._best.clear()
        step = self.step.state_dict()
        tensors = self._weights()
        data = {
            "digest": self.folder.name,
            **content,
            **{name: step[name] for name in ("method", "passes", "scaler", "host_draws")},
        }
        if weights_only:
            data["weights_only"] = True
        else:
            optimizer, data["optimizer"] = file.pack_optimizer(self.optimizer)
            tensors |= file.prefixed("optimizer", optimizer)
            tensors |= file.prefixed("generators", self._all_generators(step["generators"]))
        world = collectives.current_world()
        world.on_main_process(lambda: self._keep_before(path))
        shards.write(path, Checkpoint(tensors, data), mark)
        self._marks[:] = [*self._marks[-1:], (best, mark)]
        world.on_main_process(self._remove_old)

    def resume(self, required: Sequence[str] = ()) -> dict[str, Any] | None:
        """Load the checkpoint, or the previous one as `verify` does; return the trainer's state, None if missing.

        Raises InputError, on all processes, if both are damaged, it belongs to another run, or the trainer's state
        lacks a ``required`` entry.
        """
        path = self.folder / CHECKPOINT
        world = collectives.current_world()
        if not world.on_main_process(path.exists):
            return None
        try:
            return world.on_every_process(lambda: self._resume(path, required))
        except CorruptCheckpoint as error:
            damaged = error
        world.on_main_process(lambda: _step_back(self.folder, damaged))
        return world.on_every_process(lambda: self._resume(path, required))

    def finish(self) -> None:
        """Remove the files that a finished run no longer needs."""
        del self._marks[:-1]
        self._remove_old()
        (self.folder / BEFORE).unlink(missing_ok=True)

    def load_best(self, epoch: int) -> None:
        """Load the best epoch's weights; raises InputError, on all processes, if they are damaged."""
        collectives.current_world().on_every_process(
            lambda: self._load_weights(shards.read(self.folder / _best_name(epoch)))
        )

    def _resume(self, path: Path, required: Sequence[str]) -> dict[str, Any]:
        saved = shards.read(path)
        try:
            self._load(saved, path)
            for name in required:
                saved.data[name]
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, InputError) and str(path) in str(error):
                raise
            # the file is sound, but was written by another program or version
            message = str(error).removesuffix(f"; {file.REMEDY}")
            reason = next(iter(message.splitlines()), type(error).__name__)[:200]
            raise InputError(f"checkpoint {path} does not fit this run ({reason}); {file.REMEDY}") from error
        self._marks[:] = [_marks(saved.data)]
        return saved.data

    def _load(self, saved: Checkpoint, path: Path) -> None:
        data = saved.data
        if data["digest"] != self.folder.name:
            raise InputError(f"checkpoint {path} belongs to run {data['digest']}; {file.REMEDY}")
        counts = data["epoch"], data["best"]["epoch"]
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ValueError(f"epochs {counts[0]!r} and {counts[1]!r}")
        self._load_weights(saved)
        if data.get("weights_only") is not True:  # as that of a finished run is
            file.unpack_optimizer(self.optimizer, saved.part("optimizer"), data["optimizer"])
        self.step.load_state_dict(
            {
                "method": data["method"],
                "state": self.step.state.state_dict(),
                "generators": self._generators(saved),
                "passes": data["passes"],
                "scaler": data["scaler"],
                "host_draws": data.get("host_draws"),  # older ones have none
            }
        )

    def _weights(self) -> dict[str, Tensor]:
        net = file.prefixed("net", self.net.state_dict())
        return net | file.prefixed("state", self.step.state.state_dict())

    def _load_weights(self, saved: Checkpoint) -> None:
        self.step.runtime.parallel.reshard()
        for name, target in file.prefixed("net", self.net.state_dict()).items():
            file.fill(target, self._tensor(saved, name))
        state = {}
        for name, target in self.step.state.state_dict().items():
            value = self._tensor(saved, f"state.{name}")
            if sharded(target):
                file.fill(target, value)
            # a tensor of the state may have grown, so the state loads it itself
            state[name] = target if sharded(target) else value
        self.step.state.load_state_dict(state)

    def _tensor(self, saved: Checkpoint, name: str) -> Tensor:
        if name not in saved.tensors:
            raise InputError(f"the checkpoint in {self.folder} has no {name}; {file.REMEDY}")
        return saved.tensors[name]

    def _numbers(self) -> dict[str, int]:
        """Return the number of each of this process's generators; equal numbers mean equal states."""
        parallel = self.step.runtime.parallel
        return {"noise": parallel.noise_id, "masks": parallel.rank}

    def _all_generators(self, local: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the states of all processes' generators."""
        numbered = {_numbered(name, self._numbers()[name]): state for name, state in local.items()}
        gathered = collectives.current_world().all_gather_object(numbered)
        return {name: state for states in gathered for name, state in states.items()}

    def _generators(self, saved: Checkpoint) -> dict[str, Tensor]:
        """Return the states for this process's generators."""
        states = {}
        for name, number in self._numbers().items():
            key = f"generators.{_numbered(name, number)}"
            if key in saved.tensors:
                states[name] = saved.tensors[key]
            else:
                seed = derive(self.seed, f"{name} {number} from step {saved.data['passes']['steps']}")
                device = self.step.runtime.generators[name].device
                states[name] = torch.Generator(device=device).manual_seed(seed).get_state()
        return states

    def _keep_before(self, path: Path) -> None:
        if path.exists():
            records.keep_as(path, self.folder / BEFORE)
        else:  # what is left by a training that was started anew
            (self.folder / BEFORE).unlink(missing_ok=True)

    def _remove_old(self) -> None:
        """Remove the weights and shards that neither the newest checkpoint nor the previous one names."""
        best = {f"{stem}.safetensors" for stem, _ in self._marks}
        prefixes = tuple(f"{shards.PREFIX}{mark}-" for pair in self._marks for mark in pair)
        for path in [*self.folder.glob(_best_name("*")), *self.folder.glob(f"{shards.PREFIX}*")]:
            if path.name not in best and not path.name.startswith(prefixes):
                path.unlink(missing_ok=True)


def _marks(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of a checkpoint's best weights and of its shards, as they occur in file names."""
    return Path(_best_name(data["best"]["epoch"])).stem, f"{Path(CHECKPOINT).stem}-{data['epoch']}"


def _numbered(name: str, number: int) -> str:
    return f"{name}.{number}" if number else name


def _best_name(epoch: int | str) -> str:
    return f"best-{epoch}.safetensors"
