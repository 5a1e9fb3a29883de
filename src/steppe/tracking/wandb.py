"""Weights & Biases; its own settings give project, entity and mode (``WANDB_MODE=offline``)."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import wandb

from steppe.tracking.base import RunInfo


class WandbTracker:
    """A run of W&B; a resumed run keeps its id, and W&B ignores steps that it already has."""

    def __init__(self, folder: Path, info: RunInfo, key: str | None, lines: int):
        self.key: str | None = key or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "steppe"),
            id=self.key,
            name=info.name,
            config=info.settings() | {"digest": info.digest},
            dir=str(folder),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Send one epoch's numbers."""
        self._run.log(dict(values), step=epoch, commit=True)

    def finish(self, values: Mapping[str, float], status: str) -> None:
        """Put the run's result into its summary."""
        self._run.summary.update({**values, "status": status})

    def close(self) -> None:
        """Send the rest and close."""
        self._run.finish()
        if wandb.run is None:
            # wandb's service process writes after finish returns and would be killed with the worker
            wandb.teardown()


begin = WandbTracker
