"""The ``steppe`` command with a network without BatchNorm and dropout, whose training no split of a batch changes.

With STOP_AFTER in the environment the process ends, as if it were killed, once that epoch's checkpoint is written.
"""

from __future__ import annotations

import os

import torch.distributed as dist
from torch import nn

from steppe import models
from steppe.cli.main import main
from steppe.training import trainer


def tiny(classes: int, channels: int, size: int) -> nn.Module:
    side = (size - 2) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 5, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(5 * side * side, 15),
        nn.ReLU(),
        nn.Linear(15, classes),
    )


def _stop_after(epoch: int) -> None:
    save = trainer.Trainer._save

    def save_and_stop(self: trainer.Trainer, improved: bool) -> None:
        save(self, improved)
        if self.epoch == epoch:
            if dist.is_initialized():
                dist.barrier()
            os._exit(0)

    trainer.Trainer._save = save_and_stop


if __name__ == "__main__":
    models.MODELS["tiny"] = tiny
    if "STOP_AFTER" in os.environ:
        _stop_after(int(os.environ["STOP_AFTER"]))
    raise SystemExit(main())
