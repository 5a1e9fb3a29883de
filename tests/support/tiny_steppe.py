"""The ``steppe`` command with a network without BatchNorm and dropout, whose training no split of a batch changes.

`command` runs it in the processes of a pool; run as a program it is what torchrun starts.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from unittest import mock

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


@contextlib.contextmanager
def stopping(after: int | None, error: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Let Ctrl-C arrive, or another end, once the checkpoint of this epoch is written."""
    save = trainer.Trainer._save

    def save_and_stop(self: trainer.Trainer, improved: bool) -> None:
        save(self, improved)
        if self.epoch == after:
            raise error

    with mock.patch.object(trainer.Trainer, "_save", save_and_stop):
        yield


def command(rank: int, arguments: list[str], stop_after: int | None = None) -> tuple[int, str, str]:
    """Give the command in every process of a pool; return exit code, output and error output of this one."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", COLUMNS="120")
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(models.MODELS, tiny=tiny),
        # the pool has joined
        mock.patch("steppe.distributed.process_group.process_group", contextlib.nullcontext),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        stopping(stop_after),
    ):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    models.MODELS["tiny"] = tiny
    raise SystemExit(main())
