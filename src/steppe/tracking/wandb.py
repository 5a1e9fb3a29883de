"""Weights & Biases; project, entity and mode (``WANDB_MODE=offline``) are what its own settings say."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import wandb

from steppe.tracking.base import RunInfo


class WandbTracker:
    """A run of W&B; one that goes on keeps its id, and steps that are there already are not taken twice."""

    def __init__(self, place: Path, about: RunInfo, key: str | None):
        self.key: str | None = key or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "steppe"),
            id=self.key,
            name=about.name,
            config=about.settings() | {"digest": about.digest},
            dir=str(place),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Send one epoch's numbers."""
        self._run.log(dict(values), step=epoch, commit=True)

    def finish(self, values: Mapping[str, float], status: str) -> None:
        """Put what the run ended with into its summary."""
        self._run.summary.update({**values, "status": status})

    def close(self) -> None:
        """Send the rest and leave."""
        self._run.finish()
        if wandb.run is None:
            # its own process writes on after finish returns, and does not outlive a worker's; nobody else uses it
            wandb.teardown()


def begin(place: Path, about: RunInfo, key: str | None, lines: int) -> WandbTracker:
    """Begin a run, or go on with the one of this id."""
    return WandbTracker(place, about, key)
