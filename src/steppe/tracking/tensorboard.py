"""TensorBoard's event files, in the run's folder: ``tensorboard --logdir out``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from steppe.tracking.base import RunInfo


class TensorBoardTracker:
    """An event file; a run that goes on begins another, and TensorBoard shows both as one."""

    key = None

    def __init__(self, place: Path, about: RunInfo, lines: int):
        safe = about.name.replace("/", "-")
        # whatever a process that was killed wrote beyond what it had kept count of is not shown
        self._writer = SummaryWriter(str(place / safe), purge_step=lines + 1 if lines else None)
        if not lines:
            rows = "\n".join(f"    {k}: {v}" for k, v in about.settings().items())
            self._writer.add_text("configuration", rows)
        self._epoch = lines

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write one epoch's numbers, to disk."""
        self._epoch = epoch
        for key, value in values.items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.flush()

    def finish(self, values: Mapping[str, float], status: str) -> None:
        """Write what the run ended with, at its last epoch."""
        self.log(self._epoch, values)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def begin(place: Path, about: RunInfo, key: str | None, lines: int) -> TensorBoardTracker:
    """Begin an event file."""
    return TensorBoardTracker(place, about, lines)
