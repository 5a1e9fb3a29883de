"""What a worker does with one run, on whatever machine it is: claim the folder, train, say how it went."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steppe import hardware
from steppe.config import Run
from steppe.errors import InputError, RunError
from steppe.experiments.run_lock import locked_run
from steppe.training import run as engine
from steppe.training.run import TrainingStatus

WORKERS = 3  # workers that a run is given if one after another is killed


def train_job(
    run: Run, folder: Path, tell: Callable[[TrainingStatus], None], patience: float
) -> dict[str, Any] | str:
    """Do one run and return its result, or in words why there is none.

    A run that is finished is returned as it is, so it does no harm to be given one twice; of two workers with the
    same run one trains and the other waits for ``patience`` seconds.
    """
    hardware.keep_freed_memory()
    try:
        with locked_run(folder, patience):
            return engine.train_run(run, folder, engine.load_data(run), tell)
    except (InputError, RunError) as error:
        return str(error)
    except Exception as error:
        with contextlib.suppress(OSError):
            (folder / "error.log").write_text(traceback.format_exc())
        first = str(error).splitlines()[0] if str(error) else ""
        return f"{type(error).__name__}: {first} (details in {folder / 'error.log'})"


def given_up(last: str) -> str:
    """Return what is said of a run that killed all its workers, the last one by ``last``."""
    return f"{WORKERS} workers were killed over it, the last by {last}; start the same command again to go on"
