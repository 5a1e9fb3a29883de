"""TensorBoard's event files, in the run's folder: ``tensorboard --logdir out``."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from steppe.tracking.base import RunInfo


class TensorBoardTracker:
    """An event file; a resumed run begins another one, and TensorBoard shows both as one run."""

    key = None

    def __init__(self, folder: Path, info: RunInfo, key: str | None, lines: int):
        name = info.name.replace("/", "-")
        # purge_step hides epochs that a killed process wrote and did not count
        self._writer = SummaryWriter(str(folder / name), purge_step=lines + 1 if lines else None)
        if not lines:
            rows = "\n".join(f"    {k}: {v}" for k, v in info.settings().items())
            self._writer.add_text("configuration", rows)
        self._epoch = lines

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write one epoch's numbers to disk."""
        self._epoch = epoch
        for key, value in values.items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.flush()

    def finish(self, values: Mapping[str, float], status: str) -> None:
        """Write the run's result at its last epoch."""
        self.log(self._epoch, values)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


begin = TensorBoardTracker
