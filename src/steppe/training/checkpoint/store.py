"""What a run keeps on disk to go on from: its checkpoint, the one before it, and the weights of its best epoch.

Written and read by all processes of a run together. Random streams are numbered: on as many processes as before
each goes on where it was, so that the run ends with the same bits. On another number of processes a stream that
the checkpoint has goes on, and one that it has not is derived from seed, number and step.

The checkpoint before the newest is there for the day on which the newest is damaged: disks lose blocks. A finished
run needs it no more and drops it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steppe import records
from steppe.core.numerics.vector import sharded
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


def verify(folder: Path) -> None:
    """Read a run's checkpoint; of a damaged one say so and put the one before it in its place.

    Raises Damaged if there is none before it, or that is damaged too.
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
    # the same file by now, which the next bad block would damage under both names
    before.unlink(missing_ok=True)
    instead = "it is kept as %s, and the run goes on from the one before it, of epoch %d"
    _log.warning("%s; " + instead, reason, DAMAGED, epoch)


@dataclass(frozen=True)
class CheckpointStore:
    """The saved state of one run in its folder; ``net`` is the network below wrappers, ``seed`` the run's."""

    folder: Path
    net: nn.Module
    step: Step
    optimizer: torch.optim.Optimizer
    seed: int
    # names in the files of the newest checkpoint and of the one before it
    _marks: list[tuple[str, str]] = field(default_factory=list)

    def save(self, content: Mapping[str, Any], *, improved: bool) -> None:
        """Save the best weights, then the checkpoint that names them, then drop what only older ones need.

        ``content`` is what the trainer keeps, with the present ``epoch`` and the ``best`` one.
        """
        self.step.runtime.parallel.reshard()
        path, (best, mark) = self.folder / CHECKPOINT, _marks(content)
        if improved:
            weights = Checkpoint(self._weights(), {"epoch": content["epoch"]})
            shards.write(self.folder / f"{best}.safetensors", weights, best)
        own = self.step.state_dict()
        optimizer, optimizer_data = file.pack_optimizer(self.optimizer)
        tensors = (
            self._weights()
            | file.prefixed("optimizer", optimizer)
            | file.prefixed("generators", self._streams(own["generators"]))
        )
        data = {
            "digest": self.folder.name,
            **content,
            **{name: own[name] for name in ("method", "passes", "scaler")},
            "optimizer": optimizer_data,
        }
        here = collectives.current_world()
        here.on_main_process(lambda: self._keep_before(path))
        shards.write(path, Checkpoint(tensors, data), mark)
        self._marks[:] = [*self._marks[-1:], (best, mark)]
        here.on_main_process(self._tidy)

    def resume(self) -> dict[str, Any] | None:
        """Go on from the checkpoint and return what the trainer keeps, None if there is no checkpoint.

        From the one before it if it is damaged, saying so in the log.

        Raises InputError, on all processes, if both are damaged, or it is another run's.
        """
        path = self.folder / CHECKPOINT
        here = collectives.current_world()
        if not here.on_main_process(path.exists):
            return None
        try:
            return here.on_every_process(lambda: self._resume(path))
        except CorruptCheckpoint as error:
            damaged = error
        here.on_main_process(lambda: _step_back(self.folder, damaged))
        return here.on_every_process(lambda: self._resume(path))

    def finish(self) -> None:
        """Drop what a run that is over needs no more."""
        del self._marks[:-1]
        self._tidy()
        (self.folder / BEFORE).unlink(missing_ok=True)

    def load_best(self, epoch: int) -> None:
        """Put the best epoch's weights in place; raises InputError, on all processes, if they are damaged."""
        collectives.current_world().on_every_process(
            lambda: self._load_weights(shards.read(self.folder / _best_name(epoch)))
        )

    def _resume(self, path: Path) -> dict[str, Any]:
        saved = shards.read(path)
        try:
            self._take(saved, path)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, InputError) and str(path) in str(error):
                raise
            # sound as a file, and made by another program or version
            said = str(error).removesuffix(f"; {file.REMEDY}")
            reason = next(iter(said.splitlines()), type(error).__name__)[:200]
            raise InputError(f"checkpoint {path} does not fit this run ({reason}); {file.REMEDY}") from error
        self._marks[:] = [_marks(saved.data)]
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
        file.unpack_optimizer(self.optimizer, saved.part("optimizer"), data["optimizer"])
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
        net = file.prefixed("net", self.net.state_dict())
        return net | file.prefixed("state", self.step.state.state_dict())

    def _load_weights(self, saved: Checkpoint) -> None:
        self.step.runtime.parallel.reshard()
        for name, target in file.prefixed("net", self.net.state_dict()).items():
            file.fill(target, self._held(saved, name))
        remembered = {}
        for name, target in self.step.state.state_dict().items():
            value = self._held(saved, f"state.{name}")
            if sharded(target):
                file.fill(target, value)
            # what is remembered may have grown, so the state itself takes it in
            remembered[name] = target if sharded(target) else value
        self.step.state.load_state_dict(remembered)

    def _held(self, saved: Checkpoint, name: str) -> Tensor:
        if name not in saved.tensors:
            raise InputError(f"the checkpoint in {self.folder} has no {name}; {file.REMEDY}")
        return saved.tensors[name]

    def _numbers(self) -> dict[str, int]:
        """Return the number of each of this process's random streams; equal numbers are equal streams."""
        ranks = self.step.runtime.parallel
        return {"noise": ranks.noise_id, "masks": ranks.rank}

    def _streams(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the states of all processes' random streams."""
        numbers = self._numbers()
        held: dict[str, Tensor] = {}
        for states in collectives.current_world().all_gather_object(
            {_stream(k, numbers[k]): state for k, state in own.items()}
        ):
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

    def _keep_before(self, path: Path) -> None:
        if path.exists():
            records.keep_as(path, self.folder / BEFORE)
        else:
            # of a training that was begun anew
            (self.folder / BEFORE).unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Drop the weights and shards that neither the newest checkpoint nor the one before it names."""
        best = {f"{stem}.safetensors" for stem, _ in self._marks}
        kept = tuple(f"{shards.PREFIX}{mark}-" for pair in self._marks for mark in pair)
        for old in [*self.folder.glob(_best_name("*")), *self.folder.glob(f"{shards.PREFIX}*")]:
            if old.name not in best and not old.name.startswith(kept):
                old.unlink(missing_ok=True)


def _marks(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return what names the files of a checkpoint: its best weights, its shards."""
    return Path(_best_name(data["best"]["epoch"])).stem, f"{Path(CHECKPOINT).stem}-{data['epoch']}"


def _stream(name: str, number: int) -> str:
    return f"{name}.{number}" if number else name


def _best_name(epoch: int | str) -> str:
    return f"best-{epoch}.safetensors"
